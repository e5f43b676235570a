"""Sweeps: a recipe, a search space over its keys, seeds, and how to search. Pure: a sweep file in, trials out."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from avvp_dist import storage
from avvp_dist.config import KeyValue, Section, Text, assignment, parse_yaml, validate
from avvp_dist.errors import ConfigError
from avvp_dist.experiments.recipe import RunConfig, absolute_overrides, absolute_value, load, run_identity
from avvp_dist.experiments.search_space import Dimension, SchedulerConfig, SearchConfig
from avvp_dist.experiments.shipped import read_yaml, shipped
from avvp_dist.metrics.names import DEFAULT_SCORE, SCORES
from avvp_dist.text.suggest import did_you_mean

_FOLDER = "sweeps"  # of the shipped ones
Setting = dict[str, Any]
"""Swept keys with their values, in the order of the space."""

# keys that a sweep gives each trial itself -> how to choose them
_RESERVED = {"seed": "use seeds", "output": "use --output", "store": "a sweep shares the stages of all its trials itself"}
_ONE_SERVER = "all trials are tracked by one server; give it as tracking.uri=..."


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
    metric: str = DEFAULT_SCORE
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

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in SCORES:
            hint = did_you_mean(metric, SCORES)
            raise ValueError(f"unknown score{hint} Valid names: {', '.join(SCORES)}")
        return metric

    @model_validator(mode="after")
    def _coherent(self) -> SweepConfig:
        problems = [f"space.{key}: {_RESERVED[key]}" for key in self.space if key in _RESERVED]
        set_here = [override.partition("=")[0].strip() for override in self.overrides]
        problems += [f"overrides: {key}: {_RESERVED[key]}" for key in set_here if key in _RESERVED]
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


def sweeps() -> dict[str, str]:
    """The shipped sweeps: name -> YAML text."""
    return shipped(_FOLDER)


def read(sweep: str, changes: Mapping[str, Any] | None = None) -> tuple[str, SweepConfig]:
    """A sweep and its short name.

    Args:
        sweep: name of a shipped sweep, or the path or URL of a YAML file.
        changes: keys of the sweep itself to put in the place of the file's (seeds, search.samples, ...), dotted.

    Raises:
        ConfigError: there is no such sweep, or everything that is wrong with it.
    """
    name, text = read_yaml(sweep, "sweep", _FOLDER)
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


def absolute(sweep: SweepConfig, overrides: Sequence[str]) -> tuple[SweepConfig, list[str]]:
    """A sweep and the user's overrides with every local path made absolute: trials run, and go on, in other folders.

    Relative paths that only the recipe file or a default names become overrides of the sweep.

    Raises:
        ConfigError: no run can be made of recipe and overrides.
    """
    mine, own = absolute_overrides(overrides), absolute_overrides(sweep.overrides)
    recipe = storage.absolute(sweep.recipe) if sweep.recipe.endswith((".yaml", ".yml")) else sweep.recipe
    base = load(recipe, [*own, *mine])
    moved = {key: value for key, value in base.relative().items() if key not in _RESERVED}
    fixed = [key for key in moved if {(name := key.partition(".")[0]), f"{name}.name"} & sweep.space.keys()]
    if fixed:
        raise ConfigError(
            [f"{key}: give an absolute path in {recipe}, since the sweep varies {key.partition('.')[0]}" for key in fixed],
            f"sweep {sweep.title!r}: relative paths that are not of every trial",
        )
    space = {key: _absolute(key, dimension) for key, dimension in sweep.space.items()}
    own += [assignment(key, value) for key, value in moved.items()]
    return sweep.model_copy(update={"recipe": recipe, "overrides": tuple(own), "space": space}), mine


def _absolute(key: str, dimension: Dimension) -> Dimension:
    def moved(name: str, values: Sequence[Any] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(absolute_value(name.split("."), value) for value in values)

    update = {"grid": moved(key, dimension.grid), "choice": moved(key, dimension.choice)}
    when = {other: moved(other, values) for other, values in dimension.when.items()}
    return dimension.model_copy(update={**update, "when": when})


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
    swept = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in setting.items()]
    config = load(sweep.recipe, [*sweep.overrides, *overrides, *swept, f"seed={seed}"])
    what = run_identity(config.model_dump(mode="json", exclude={"output"}))
    key = hashlib.sha256(f"{fingerprint} {json.dumps(what, sort_keys=True)}".encode()).hexdigest()[:8]
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", label(setting)).strip("-")[:80]
    return Trial(setting, seed, config, f"{slug}-seed{seed}-{key}")


def example(sweep: SweepConfig, overrides: Sequence[str], fingerprint: str) -> Trial:
    """One trial that stands for those a searcher has yet to choose."""
    rng = np.random.default_rng(0)
    setting = applicable(sweep, {key: dimension.draw(rng) for key, dimension in sweep.space.items()})
    return trial(sweep, setting, sweep.seeds[0], overrides, fingerprint)


def settings_to_check(sweep: SweepConfig) -> list[Setting]:
    """Settings in which every value of every key comes at least once, see `Dimension.values_to_check`.

    They stand for those that a searcher or a population has yet to choose.
    """
    found: list[Setting] = []
    first = {key: dimension.values_to_check()[0] for key, dimension in sweep.space.items()}
    for key, dimension in sweep.space.items():
        for value in dimension.values_to_check():
            setting = applicable(sweep, {**first, **_conditions(sweep, key), key: value})
            if setting not in found:
                found.append(setting)
    return found


def _conditions(sweep: SweepConfig, key: str) -> Setting:
    """Values of other keys with which ``key`` is swept."""
    found: Setting = {}
    for other, values in sweep.space[key].when.items():
        found |= {**_conditions(sweep, other), other: values[0]}
    return found


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
