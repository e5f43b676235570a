"""Sweeps: a recipe, a search space over its keys, seeds, and how to search. Pure: a sweep file in, trials out."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from avvp_dist import storage
from avvp_dist.config import KeyValue, Section, Text, parse_yaml, validate
from avvp_dist.errors import ConfigError
from avvp_dist.recipe import RunConfig, load, what_it_is

Setting = dict[str, Any]
"""Swept keys with their values, in the order of the space."""

# keys that a sweep gives each trial itself -> how to choose them
_RESERVED = {"seed": "use seeds", "output": "use --output", "store": "a sweep shares the stages of all its trials itself"}
_ONE_SERVER = "all trials are tracked by one server; give it as tracking.uri=..."


class Dimension(Section):
    """Values of one config key. Exactly one of grid, choice, uniform, loguniform."""

    grid: tuple[Any, ...] | None = None
    """Every one of these values."""
    choice: tuple[Any, ...] | None = None
    """One of these values; under search=grid the same as grid."""
    uniform: tuple[float, float] | None = None
    """A number between two bounds."""
    loguniform: tuple[float, float] | None = None
    """A number between two bounds above 0 whose logarithm is uniform."""
    step: float | None = Field(None, gt=0)
    """uniform: distance between the values it can take, counted from the lower bound; whole numbers stay whole."""
    when: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """The key is swept only where each of these other swept keys has one of these values; elsewhere the recipe's holds."""

    @field_validator("when", mode="before")
    @classmethod
    def _one_value(cls, when: Any) -> Any:
        if not isinstance(when, Mapping):
            return when
        return {key: value if isinstance(value, list | tuple) else [value] for key, value in when.items()}

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        kinds = [name for name in ("grid", "choice", "uniform", "loguniform") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"needs exactly one of grid, choice, uniform, loguniform; has {', '.join(kinds) or 'none'}")
        if self.values is not None and not self.values:
            raise ValueError(f"{kinds[0]} is empty")
        bounds = self.uniform or self.loguniform
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"{kinds[0]}: the first bound must be the smaller one, got {list(bounds)}")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform: bounds must be above 0")
        if self.step and not self.uniform:
            raise ValueError("step goes with uniform")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values it can take; None where they cannot be counted."""
        if self.grid is not None or self.choice is not None:
            return self.grid if self.grid is not None else self.choice
        if self.uniform is None or self.step is None:
            return None
        low, high = self.uniform
        whole = all(float(number).is_integer() for number in (low, self.step))
        count = math.floor((high - low) / self.step + 1e-9) + 1
        # rounded: 0.1 + 2 * 0.1 must read 0.3 in tables and folders
        numbers = [round(low + place * self.step, 12) for place in range(count)]
        return tuple(int(number) for number in numbers) if whole else tuple(numbers)

    def draw(self, rng: np.random.Generator) -> Any:
        """One value at random."""
        if self.values is not None:
            return self.values[int(rng.integers(len(self.values)))]
        if self.loguniform:
            low, high = (math.log(bound) for bound in self.loguniform)
            return math.exp(rng.uniform(low, high))
        assert self.uniform
        return float(rng.uniform(*self.uniform))


class SearchConfig(Section):
    """How settings are chosen."""

    name: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination; random: draws; optuna: each next setting from the scores of those before it (TPE)."""
    samples: int = Field(16, ge=1)
    """random, optuna: settings to try, each with every seed."""
    seed: int = Field(0, ge=0)
    """random, optuna: root of the draws."""


class SchedulerConfig(Section):
    """Which trials are ended early."""

    name: Literal["fifo", "asha", "pbt"] = "fifo"
    """fifo: none; asha: those that are behind after some epochs (successive halving); pbt: those behind take over weights
    and changed settings of those in front (population-based training)."""
    grace_epochs: int = Field(5, ge=1)
    """asha: epochs of the last stage that every trial gets."""
    reduction: int = Field(3, ge=2)
    """asha: of this many trials one goes on at each rung."""
    perturb_every: int = Field(4, ge=1)
    """pbt: epochs of the last stage between two exchanges."""


class SweepConfig(Section):
    """One sweep."""

    title: Text
    """What is asked, in one line."""
    recipe: str
    """Recipe of all trials."""
    overrides: tuple[KeyValue, ...] = ()
    """``key=value`` for all trials, on top of the recipe."""
    space: dict[str, Dimension] = Field(min_length=1)
    """Swept keys, e.g. method.temperature, with their values."""
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1)
    """Every setting is trained with each of them."""
    metric: str = "segment.type"
    """Score on val, under the recipe's protocol, by which settings are ranked; its best epoch counts."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better."""
    search: SearchConfig = SearchConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    cpus_per_trial: float = Field(1.0, gt=0)
    """CPU cores of a trial (of each worker, where launch.workers is more than 1); also its compute threads."""
    gpus_per_trial: float = Field(0.0, ge=0)
    """GPUs of a trial; 0.25 puts four trials on one."""
    concurrency: int | None = Field(None, ge=1)
    """Most trials at once; null for as many as the resources hold."""
    hours: float | None = Field(None, gt=0)
    """No trial starts or goes on after this time; what is running then can be resumed."""
    trials: int | None = Field(None, ge=1)
    """Most trials in all, counting each seed of a setting."""

    @model_validator(mode="after")
    def _coherent(self) -> SweepConfig:
        problems = [f"space.{key}: {_RESERVED[key]}" for key in self.space if key in _RESERVED]
        problems += [f"space.{key}: {_ONE_SERVER}" for key in self.space if key in ("tracking", "tracking.uri")]
        before: list[str] = []
        for key, dimension in self.space.items():
            problems += [
                f"space.{key}.when: {other!r} must be a swept key that stands before it"
                for other in dimension.when
                if other not in before
            ]
            before.append(key)
            endless = dimension.values is None and self.search.name == "grid"
            problems += (
                [f"space.{key}: search=grid cannot count its values; give step, or search.name=random"] if endless else []
            )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            problems.append(f"seeds: {list(self.seeds)} must be different whole numbers from 0 on")
        if self.scheduler.name == "pbt" and (self.search.name != "random" or any(d.when for d in self.space.values())):
            problems.append("scheduler.name=pbt changes settings as it goes: it needs search.name=random and no when")
        if self.scheduler.name != "fifo" and "train.epochs" in self.space:
            problems.append("space.train.epochs: only scheduler.name=fifo can compare trials of different length")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True)
class Trial:
    """One setting with one seed.

    Attributes:
        config: complete, but for ``output`` and ``store``, which belong to the sweep's folder.
        name: of its folder; the same setting, seed and data always have the same one.
    """

    setting: Setting
    seed: int
    config: RunConfig
    name: str


def shipped() -> dict[str, str]:
    """The sweeps that come with the package: name -> YAML text."""
    folder = resources.files("avvp_dist") / "sweeps"
    found = {item.name.removesuffix(".yaml"): item for item in folder.iterdir() if item.name.endswith(".yaml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def read(sweep: str, changes: Mapping[str, Any] | None = None) -> tuple[str, SweepConfig]:
    """A sweep and its short name.

    Args:
        sweep: name of a shipped sweep, or the path or URL of a YAML file.
        changes: keys of the sweep itself to put in the place of the file's (seeds, search.samples, ...), dotted.

    Raises:
        ConfigError: there is no such sweep, or everything that is wrong with it.
    """
    known = shipped()
    if sweep in known:
        name, text = sweep, known[sweep]
    elif sweep.endswith((".yaml", ".yml")):
        if not storage.exists(sweep):
            raise ConfigError(f"{sweep}: no such sweep file")
        name, text = PurePosixPath(sweep).stem, storage.read_text(sweep)
    else:
        close = difflib.get_close_matches(sweep, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"unknown sweep {sweep!r}{hint} Valid names: {', '.join(known)}, or the path of a .yaml file")
    return name, changed(parse_yaml(text, sweep), changes or {}, f"sweep {name}")


def changed(content: dict[str, Any], changes: Mapping[str, Any], source: str) -> SweepConfig:
    """A sweep's content with other values for some of its own keys, dotted.

    Raises:
        ConfigError: everything that is wrong with it.
    """
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return validate(SweepConfig, content, source)


def settings(sweep: SweepConfig) -> list[Setting]:
    """The settings of a grid, or the draws of a random search; each once, in a fixed order."""
    if sweep.search.name == "grid":
        found: list[Setting] = [{}]
        for key, dimension in sweep.space.items():
            assert dimension.values is not None  # SweepConfig refuses it
            found = [
                {**setting, **({key: value} if value is not _ABSENT else {})}
                for setting in found
                for value in (dimension.values if _applies(dimension, setting) else (_ABSENT,))
            ]
        return found
    rng = np.random.default_rng(sweep.search.seed)
    drawn: dict[str, Setting] = {}
    for _ in range(100 * sweep.search.samples):  # a small space may hold fewer settings than are asked for
        if len(drawn) == sweep.search.samples:
            break
        setting = applicable(sweep, {key: dimension.draw(rng) for key, dimension in sweep.space.items()})
        drawn.setdefault(json.dumps(setting, sort_keys=True), setting)
    return list(drawn.values())


def trials(sweep: SweepConfig, chosen: Sequence[Setting], overrides: Sequence[str], fingerprint: str) -> list[Trial]:
    """Every setting with every seed, setting by setting within a seed, cut to the sweep's budget of trials.

    Args:
        sweep: the sweep.
        chosen: its settings.
        overrides: the user's own ``key=value``, on top of the sweep's.
        fingerprint: of the data.

    Raises:
        ConfigError: settings that no run can have; overrides of what the sweep sets itself; all of them at once.
    """
    problems = refused_overrides(sweep, overrides)
    if problems:
        raise ConfigError(problems, "these belong to the sweep")
    found: list[Trial] = []
    for seed, setting in itertools.product(sweep.seeds, chosen):
        try:
            found.append(trial(sweep, setting, seed, overrides, fingerprint))
        except ConfigError as error:
            problems += [f"setting {label(setting)}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), f"sweep {sweep.title!r}: settings that cannot be run")
    return found[: sweep.trials]


def trial(sweep: SweepConfig, setting: Setting, seed: int, overrides: Sequence[str], fingerprint: str) -> Trial:
    """One setting with one seed.

    Raises:
        ConfigError: what is wrong with its config.
    """
    # values as JSON, which is YAML: what overrides are read as
    swept = [f"{key}={json.dumps(value)}" for key, value in setting.items()]
    config = load(sweep.recipe, [*sweep.overrides, *overrides, *swept, f"seed={seed}"])
    what = what_it_is(config.model_dump(mode="json", exclude={"output"}))
    key = hashlib.sha256(f"{fingerprint} {json.dumps(what, sort_keys=True)}".encode()).hexdigest()[:8]
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", label(setting)).strip("-")[:80]
    return Trial(setting, seed, config, f"{slug}-seed{seed}-{key}")


def example(sweep: SweepConfig, overrides: Sequence[str], fingerprint: str) -> Trial:
    """One trial that stands for those a searcher has yet to choose."""
    rng = np.random.default_rng(0)
    setting = applicable(sweep, {key: dimension.draw(rng) for key, dimension in sweep.space.items()})
    return trial(sweep, setting, sweep.seeds[0], overrides, fingerprint)


def applicable(sweep: SweepConfig, values: Mapping[str, Any]) -> Setting:
    """A setting of ``values`` of all keys: without those whose conditions do not hold."""
    setting: Setting = {}
    for key, dimension in sweep.space.items():
        if key in values and _applies(dimension, setting):
            setting[key] = values[key]
    return setting


def refused_overrides(sweep: SweepConfig, overrides: Sequence[str]) -> list[str]:
    """Problems with overrides of keys that the sweep varies or sets itself."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    problems = [f"{key}: {_RESERVED[key]}" for key in keys if key in _RESERVED]
    return problems + [f"{key}: the sweep varies it; change its space instead" for key in keys if key in sweep.space]


def label(setting: Mapping[str, Any]) -> str:
    """A setting in a few words: the last part of each key where that is clear, and its value."""
    last = [key.rsplit(".", 1)[-1] for key in setting]
    names = [short if last.count(short) == 1 else key for short, key in zip(last, setting, strict=True)]
    values = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in setting.values()]
    return ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True)) or "as the recipe"


_ABSENT = object()


def _applies(dimension: Dimension, setting: Setting) -> bool:
    return all(setting.get(key, _ABSENT) in values for key, values in dimension.when.items())
