"""Sweeps: from a sweep file (recipe, search space, seeds, search algorithm) to a list of trials, without side effects."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from avvp_dist import storage
from avvp_dist.config import KeyValue, Section, Text, assignment, parse_yaml, validate
from avvp_dist.errors import ConfigError
from avvp_dist.experiments.recipe import RunConfig, absolute_overrides, absolute_value, load, run_folder
from avvp_dist.experiments.search_space import Dimension, SchedulerConfig, SearchConfig
from avvp_dist.experiments.shipped import read_yaml, shipped
from avvp_dist.text.suggest import did_you_mean

_FOLDER = "sweeps"  # of the shipped sweeps
SweepPoint = dict[str, Any]
"""One point of the search space: swept keys with their values, in the order of the space. Users know it as a setting."""

# keys that the sweep sets for each trial -> what to use instead
_RESERVED = {"seed": "use seeds", "output": "use --output", "store": "a sweep always shares the stages of its trials"}
_ONE_SERVER = "one server tracks all trials; set it as an override tracking.uri=..."


class SweepConfig(Section):
    """Config of a sweep."""

    title: Text
    """Purpose of the sweep, in one line."""
    recipe: str
    """Recipe of all trials: a name, or the path or URL of a YAML file."""
    overrides: tuple[KeyValue, ...] = ()
    """``key=value`` overrides of the recipe for all trials."""
    space: dict[str, Dimension] = Field(min_length=1)
    """Swept keys, e.g. method.temperature, and their values."""
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1)
    """Every setting is trained with each of these seeds."""
    metric: Text | None = None
    """Metric on val, under the task's own view, that the sweep optimizes; null for the task's default metric."""
    mode: Literal["max", "min"] | None = None
    """Whether the metric is to be maximized or minimized; null for the direction of the metric."""
    search: SearchConfig = SearchConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    cpus_per_trial: float = Field(1.0, gt=0)
    """CPU cores per trial, or per worker if launch.workers is more than 1; also the number of compute threads."""
    gpus_per_trial: float = Field(0.0, ge=0)
    """GPUs per trial; 0.25 places four trials on one GPU."""
    concurrency: int | None = Field(None, ge=1)
    """Maximum number of concurrent trials; null for as many as the resources allow."""
    hours: float | None = Field(None, gt=0)
    """Time limit of the sweep; trials that are running then stop and can be resumed."""
    trials: int | None = Field(None, ge=1)
    """Maximum number of trials in total; each seed of a setting counts."""

    @model_validator(mode="after")
    def _coherent(self) -> SweepConfig:
        problems = [f"space.{key}: {_RESERVED[key]}" for key in self.space if key in _RESERVED]
        set_here = [override.partition("=")[0].strip() for override in self.overrides]
        problems += [f"overrides: {key}: {_RESERVED[key]}" for key in set_here if key in _RESERVED]
        problems += [f"space.{key}: {_ONE_SERVER}" for key in self.space if key in ("tracking", "tracking.uri")]
        before: list[str] = []
        for key, dimension in self.space.items():
            problems += [
                f"space.{key}.when: {other!r} must be a swept key listed before it"
                for other in dimension.when
                if other not in before
            ]
            before.append(key)
            continuous = dimension.values is None and self.search.name == "grid"
            problems += (
                [f"space.{key}: search.name=grid needs a finite number of values; give step, or use search.name=random"]
                if continuous
                else []
            )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            problems.append(f"seeds: {list(self.seeds)} must be distinct integers from 0 on")
        if self.scheduler.name == "pbt" and (self.search.name != "random" or any(d.when for d in self.space.values())):
            problems.append("scheduler.name=pbt changes settings during training: it needs search.name=random and no when")
        if self.scheduler.name != "fifo" and "train.epochs" in self.space:
            problems.append("space.train.epochs: only scheduler.name=fifo supports trials of different lengths")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True)
class Trial:
    """One point of the search space with one seed.

    Attributes:
        config: complete except for ``output`` and ``store``, which depend on the sweep's folder.
        name: name of the run's folder; the same point, seed and data always have the same name.
    """

    point: SweepPoint
    seed: int
    config: RunConfig
    name: str


def sweeps() -> dict[str, str]:
    """Return the shipped sweeps: name -> YAML text."""
    return shipped(_FOLDER)


def read(sweep: str, changes: Mapping[str, Any] | None = None) -> tuple[str, SweepConfig]:
    """Read a sweep; returns its short name and its config.

    Args:
        sweep: name of a shipped sweep, or the path or URL of a YAML file.
        changes: dotted keys of the sweep itself (seeds, search.samples, ...) that replace those of the file.

    Raises:
        ConfigError: there is no such sweep, or all problems with it.
    """
    name, text = read_yaml(sweep, "sweep", _FOLDER)
    return name, with_changes(parse_yaml(text, sweep), changes or {}, f"sweep {name}")


def with_changes(content: dict[str, Any], changes: Mapping[str, Any], source: str) -> SweepConfig:
    """Validate a sweep's content with other values for some of its own dotted keys.

    Raises:
        ConfigError: all problems with the sweep.
    """
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return validate(SweepConfig, content, source)


def with_metric(sweep: SweepConfig, base: RunConfig) -> SweepConfig:
    """Return the sweep with metric and mode set, from the task of its recipe if the sweep file sets none.

    Raises:
        ConfigError: the task has no such metric.
    """
    metrics = {metric.name: metric for metric in base.task.metrics}
    name = sweep.metric or base.task.default_metric
    if name not in metrics:
        hint = did_you_mean(name, metrics)
        raise ConfigError(f"metric: task {base.task.name} has no metric {name!r}{hint} Valid names: {', '.join(metrics)}")
    mode = sweep.mode or ("max" if metrics[name].higher_is_better else "min")
    return sweep.model_copy(update={"metric": name, "mode": mode})


def with_absolute_paths(sweep: SweepConfig, overrides: Sequence[str]) -> tuple[SweepConfig, list[str]]:
    """Return a sweep and the user's overrides with absolute local paths: trials run and resume in other folders.

    Relative paths in the recipe file, or in defaults, become overrides of the sweep.

    Raises:
        ConfigError: recipe and overrides are invalid.
    """
    given, own = absolute_overrides(overrides), absolute_overrides(sweep.overrides)
    recipe = storage.absolute(sweep.recipe) if sweep.recipe.endswith((".yaml", ".yml")) else sweep.recipe
    base = load(recipe, [*own, *given])
    moved = {key: value for key, value in base.relative().items() if key not in _RESERVED}
    fixed = [key for key in moved if {(name := key.partition(".")[0]), f"{name}.name"} & sweep.space.keys()]
    if fixed:
        raise ConfigError(
            [f"{key}: give an absolute path in {recipe}, because the sweep varies {key.partition('.')[0]}" for key in fixed],
            f"sweep {sweep.title!r}: relative paths that do not apply to every trial",
        )
    space = {key: _absolute(key, dimension) for key, dimension in sweep.space.items()}
    own += [assignment(key, value) for key, value in moved.items()]
    return sweep.model_copy(update={"recipe": recipe, "overrides": tuple(own), "space": space}), given


def _absolute(key: str, dimension: Dimension) -> Dimension:
    def moved(name: str, values: Sequence[Any] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(absolute_value(name.split("."), value) for value in values)

    update = {"grid": moved(key, dimension.grid), "choice": moved(key, dimension.choice)}
    when = {other: moved(other, values) for other, values in dimension.when.items()}
    return dimension.model_copy(update={**update, "when": when})


def sweep_points(sweep: SweepConfig) -> list[SweepPoint]:
    """Return the points of a grid or of a random search, without duplicates, in a fixed order."""
    if sweep.search.name == "grid":
        found: list[SweepPoint] = [{}]
        for key, dimension in sweep.space.items():
            assert dimension.values is not None  # checked by SweepConfig
            found = [
                {**point, **({key: value} if value is not _ABSENT else {})}
                for point in found
                for value in (dimension.values if _applies(dimension, point) else (_ABSENT,))
            ]
        return found
    rng = np.random.default_rng(sweep.search.seed)
    drawn: dict[str, SweepPoint] = {}
    for _ in range(100 * sweep.search.samples):  # a small space may have fewer points than requested
        if len(drawn) == sweep.search.samples:
            break
        point = applicable(sweep, {key: dimension.draw(rng) for key, dimension in sweep.space.items()})
        drawn.setdefault(json.dumps(point, sort_keys=True), point)
    return list(drawn.values())


def trials(sweep: SweepConfig, points: Sequence[SweepPoint], overrides: Sequence[str], fingerprint: str) -> list[Trial]:
    """Return the trials of all points with all seeds, seed by seed, up to the sweep's maximum number of trials.

    Args:
        sweep: the sweep.
        points: points of its search space.
        overrides: the user's ``key=value`` overrides, applied after the sweep's.
        fingerprint: fingerprint of the data.

    Raises:
        ConfigError: all points without a valid config, or all overrides of keys that the sweep sets.
    """
    problems = refused_overrides(sweep, overrides)
    if problems:
        raise ConfigError(problems, "overrides of keys that the sweep sets")
    found: list[Trial] = []
    for seed, point in itertools.product(sweep.seeds, points):
        try:
            found.append(make_trial(sweep, point, seed, overrides, fingerprint))
        except ConfigError as error:
            problems += [f"setting {label(point)}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), f"sweep {sweep.title!r}: settings that cannot be run")
    return found[: sweep.trials]


def make_trial(sweep: SweepConfig, point: SweepPoint, seed: int, overrides: Sequence[str], fingerprint: str) -> Trial:
    """Make the trial of one point and seed.

    Raises:
        ConfigError: all problems with its config.
    """
    # JSON is valid YAML, which is how overrides are parsed
    swept = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in point.items()]
    config = load(sweep.recipe, [*sweep.overrides, *overrides, *swept, f"seed={seed}"])
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", label(point)).strip("-")[:80]
    return Trial(point, seed, config, run_folder(slug, config, fingerprint))


def example(sweep: SweepConfig, overrides: Sequence[str], fingerprint: str) -> Trial:
    """Return an arbitrary trial as an example of those that a search algorithm will choose."""
    rng = np.random.default_rng(0)
    point = applicable(sweep, {key: dimension.draw(rng) for key, dimension in sweep.space.items()})
    return make_trial(sweep, point, sweep.seeds[0], overrides, fingerprint)


def points_to_check(sweep: SweepConfig) -> list[SweepPoint]:
    """Return points that contain each value of each key at least once, see `Dimension.values_to_check`.

    They are checked in advance in place of those that a search algorithm or a population will choose.
    """
    found: list[SweepPoint] = []
    first = {key: dimension.values_to_check()[0] for key, dimension in sweep.space.items()}
    for key, dimension in sweep.space.items():
        for value in dimension.values_to_check():
            point = applicable(sweep, {**first, **_conditions(sweep, key), key: value})
            if point not in found:
                found.append(point)
    return found


def _conditions(sweep: SweepConfig, key: str) -> SweepPoint:
    """Return values of other keys under which ``key`` is swept."""
    found: SweepPoint = {}
    for other, values in sweep.space[key].when.items():
        found |= {**_conditions(sweep, other), other: values[0]}
    return found


def applicable(sweep: SweepConfig, values: Mapping[str, Any]) -> SweepPoint:
    """Make a point from values of all keys, leaving out keys whose conditions (``when``) do not hold."""
    point: SweepPoint = {}
    for key, dimension in sweep.space.items():
        if key in values and _applies(dimension, point):
            point[key] = values[key]
    return point


def refused_overrides(sweep: SweepConfig, overrides: Sequence[str]) -> list[str]:
    """Return problems with overrides of keys that the sweep varies or sets."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    problems = [f"{key}: {_RESERVED[key]}" for key in keys if key in _RESERVED]
    return problems + [f"{key}: the sweep varies it; change its space instead" for key in keys if key in sweep.space]


def label(point: Mapping[str, Any]) -> str:
    """Return a short text for a point: the last part of each key, if that is unambiguous, and its value."""
    last = [key.rsplit(".", 1)[-1] for key in point]
    names = [short if last.count(short) == 1 else key for short, key in zip(last, point, strict=True)]
    values = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in point.values()]
    return ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True)) or "as the recipe"


_ABSENT = object()


def _applies(dimension: Dimension, point: SweepPoint) -> bool:
    return all(point.get(key, _ABSENT) in values for key, values in dimension.when.items())
