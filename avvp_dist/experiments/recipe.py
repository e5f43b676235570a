"""The configuration of a run: the sections of all packages, loaded from a recipe and overrides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from avvp_dist import storage
from avvp_dist.config import (
    PathMarker,
    Section,
    Text,
    Url,
    assignment,
    convert_paths,
    discarded,
    merge,
    parse_overrides,
    parse_yaml,
    validate,
)
from avvp_dist.experiments.earlier_keys import earlier_keys, present_keys, present_paths, warn_once, with_task_name
from avvp_dist.experiments.shipped import read_yaml, shipped
from avvp_dist.loading.split import DataConfig
from avvp_dist.methods import MethodConfig
from avvp_dist.models import ModelConfig
from avvp_dist.storage.config import StorageConfig
from avvp_dist.tasks import DEFAULT_TASK, TaskConfig
from avvp_dist.text.suggest import did_you_mean
from avvp_dist.tracking.base import TrackingConfig
from avvp_dist.train.evaluate import LAST, EvaluateConfig
from avvp_dist.train.loop import TrainConfig
from avvp_dist.train.optim import OptimConfig

_FOLDER = "recipes"  # of the shipped recipes
S = TypeVar("S", bound=Section)

# the key that a bare value stands for: launch=ray is launch.name=ray
_SHORTHAND = {
    "data": "url",
    "task": "name",
    "model": "name",
    "method": "name",
    "optim": "name",
    "tracking": "name",
    "launch": "name",
}
_VARIANTS = ("task", "model", "method")  # sections whose name selects a class with keys of its own
# by section, keys that do not change the results
_EXECUTION_KEYS = {
    "": ("tracking", "launch", "store", "storage"),
    "train": ("device",),
    "data": ("workers", "prefetch", "on_bad", "cache", "cache_gb", "share"),
}
# likewise, where a run is stored, and how often it validates, saves and polls
_LOCATION_AND_INTERVAL_KEYS = {"": ("output",), "train": ("check_every", "checkpoint_every"), "evaluate": ("batch_size",)}
# by section, further keys that no stage artifact depends on, or only through what its key contains instead: the fingerprints
# of data and labels, and the order of the videos
_STAGE_INDEPENDENT_KEYS = {
    "": ("recipe",),
    "data": ("url", "dataset", "refined", "mode", "memory_gb", "streams", "window"),
}


class LaunchConfig(Section):
    """How the workers are started."""

    name: Literal["local", "ray"] = "local"
    """local: this process, or each process of torchrun; ray: Ray Train, on the cluster of RAY_ADDRESS or on this machine."""
    workers: int = Field(1, ge=1)
    """Number of Ray workers; the global batch is divided among them."""
    min_workers: int | None = Field(None, ge=1)
    """Smallest number of Ray workers to continue with if there are no nodes for all ``workers``; null waits for all."""
    resize_every: float = Field(60.0, gt=0)
    """Seconds between two checks whether Ray can run more workers; if so, all restart from the last checkpoint."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs per Ray worker; 0 trains on CPU."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs per Ray worker."""
    wait: float = Field(1800.0, ge=0)
    """Seconds to wait for resources in use or for new nodes; resources that the cluster can never have are refused."""
    max_failures: int = Field(3, ge=-1)
    """Number of times Ray restarts the workers after a failure, from the last checkpoint; -1 for no limit."""

    @model_validator(mode="after")
    def _check_min_workers(self) -> LaunchConfig:
        if self.min_workers is None:
            return self
        if self.name != "ray":
            raise ValueError(f"min_workers={self.min_workers} needs name=ray: only Ray can change the number of workers")
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")
        return self


class RunConfig(Section):
    """Config of one reproducible run."""

    recipe: Text
    """Name of the recipe that this config was loaded from."""
    seed: int = Field(0, ge=0)
    """Random seed of initial weights, order of videos and dropout."""
    output: Url
    """Folder or URL of the run: result.json, model, stages, checkpoints, figures."""
    store: Url | None = None
    """Folder or URL of finished stages, which several runs can share; null for <output>/stages."""
    data: DataConfig = DataConfig()
    task: TaskConfig = Field(default_factory=DEFAULT_TASK)
    model: ModelConfig
    method: MethodConfig
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    storage: StorageConfig = StorageConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="wrap")
    @classmethod
    def _select_by_default_metric(cls, content: Any, handler: ModelWrapValidatorHandler[RunConfig]) -> RunConfig:
        """Replace a null ``evaluate.select``, so that config.yaml states the metric and equal settings are equal."""
        config = handler(content)
        if config.evaluate.select is not None:
            return config
        evaluate = config.evaluate.model_copy(update={"select": config.task.default_metric})
        return config.model_copy(update={"evaluate": evaluate})

    @model_validator(mode="after")
    def _check_task(self) -> RunConfig:
        problems = list(self._task_problems())
        if problems:
            details = [
                InitErrorDetails(type=PydanticCustomError("task", "{text}", {"text": text}), loc=key, input={})
                for key, text in problems
            ]
            raise ValidationError.from_exception_data(type(self).__name__, details)
        return self

    def _task_problems(self) -> Iterator[tuple[tuple[str, str], str]]:
        """Yield the key and the problem of everything that does not fit the task."""
        task = self.task
        for key, kind, section, background in (
            ("model", "network", self.model, self.model.background),
            ("method", "method", self.method, None),
        ):
            reason = task.unsuitable(section.tracks, background)
            if reason:
                yield (key, "name"), f"{kind} {section.name!r} cannot be used for task {task.name!r}: {reason}"
        names = [metric.name for metric in task.metrics]
        select = self.evaluate.select
        if select not in (None, LAST, *names):
            hint = did_you_mean(str(select), names)
            yield ("evaluate", "select"), f"unknown metric {select!r}{hint} Valid names: {', '.join(names)}, {LAST}"

    def to_yaml(self) -> str:
        """Return the resolved config as YAML, without credentials; `load` accepts it as a recipe."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)

    def absolute(self) -> RunConfig:
        """Return the config with absolute local paths, see `absolute`."""
        return absolute(self)

    def relative(self) -> dict[str, str]:
        """Return the keys that hold a relative local path, each with the absolute path."""
        return {key: new for key, (_, new) in changed_keys(self.model_dump(), self.absolute().model_dump()).items()}


def absolute(section: S) -> S:
    """Return a section with all local paths made absolute.

    Called once when a command starts: workers and trials run in other folders, and config.yaml is read from other folders.
    """
    return type(section).model_validate(convert_paths(type(section), section.model_dump(), _absolute))


def absolute_overrides(overrides: Sequence[str]) -> list[str]:
    """Return ``key=value`` overrides with all local paths made absolute; overrides without such paths are unchanged.

    Raises:
        ConfigError: all overrides that cannot be parsed.
    """
    found = []
    for override, (path, value) in zip(overrides, parse_overrides(overrides), strict=True):
        moved = absolute_value(path, value)
        found.append(override if moved == value else assignment(".".join(path), moved))
    return found


def absolute_value(path: Sequence[str], value: Any) -> Any:
    """Return the value of a config key, e.g. ``("data", "refined")``, with all local paths in it made absolute."""
    short = _SHORTHAND.get(path[0]) if len(path) == 1 and not isinstance(value, Mapping) else None
    keys = [*path, *([short] if short else [])]
    content = value
    for key in reversed(keys):
        content = {key: content}
    content = convert_paths(RunConfig, content, _absolute)
    for key in keys:
        content = content[key]
    return content


def _absolute(url: str, marker: PathMarker) -> str:
    return (marker.absolute or storage.absolute)(url) if url else url


def recipes() -> dict[str, str]:
    """Return the shipped recipes: name -> YAML text."""
    return shipped(_FOLDER)


def load(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a recipe with overrides.

    If an override selects another network or method than the recipe's, the recipe's settings for it are discarded, and a
    warning names them: the new one starts from its own defaults.

    Args:
        recipe: name of a shipped recipe, or the path or URL of a YAML file, such as a run's config.yaml.
        overrides: ``key=value``, e.g. ``optim.lr=1e-3``, ``launch=ray``.

    Raises:
        ConfigError: all problems of recipe and overrides, among them keys that the selected network or method does not have.
    """
    name, text = read_yaml(recipe, "recipe", _FOLDER)
    content = present_keys(parse_yaml(text, recipe))
    content.setdefault("recipe", name)
    merged = with_task_name(merge(content, present_paths(parse_overrides(overrides)), _SHORTHAND, _VARIANTS))
    merged.setdefault("output", f"outputs/{merged['recipe']}-seed{merged.get('seed', 0)}")
    config = validate(RunConfig, merged, f"recipe {recipe}")
    for warning in _variant_warnings(content, merged):
        warn_once(warning)
    return config


def _variant_warnings(content: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[str]:
    """Yield what no longer applies because overrides selected another network or method than the recipe's."""
    for section in _VARIANTS:
        lost = discarded(content, merged, section)
        if lost is None:
            continue
        before, after = content[section]["name"], merged[section]["name"]
        # discarded values are not validated: they can be anything that YAML has, e.g. dates
        shown = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in lost.items()}
        settings = ", ".join(f"{section}.{key}={value}" for key, value in shown.items())
        text = f"{section}={after} replaces {section} {before} of recipe {merged['recipe']}"
        if settings:
            text += f"; not applied: {settings}"
        text += f"; {section} {after} uses its own defaults for all keys that are not set explicitly"
        if section == "method":
            text += f"; train and optim settings are still those chosen for {before}"
            if after in recipes():
                text += f" (recipe {after} has the published settings of {after})"
        yield text


def changed_keys(one: Any, other: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which two dumped configs differ, with both values; None if a config lacks the key."""
    if isinstance(one, dict) and isinstance(other, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*one, *other]):
            found |= changed_keys(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        return found
    return {} if one == other else {path: (one, other)}


def run_identity(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dumped config without the keys that only say how a run is executed, tracked and stored."""
    return _drop_keys(content, _EXECUTION_KEYS)


def run_folder(slug: str, config: RunConfig, fingerprint: str) -> str:
    """Return the name of a run's folder: ``<slug>-seed<seed>-<key>``.

    The key is a hash of the config (see `run_identity`, without ``output``) and of the data, so runs that differ in either
    never share a folder, and the same run always finds its own folder again.

    Args:
        slug: readable part of the name.
        config: config of the run.
        fingerprint: fingerprint of its data, and of its refined labels if it has any.
    """
    identity = earlier_keys(run_identity(config.model_dump(mode="json", exclude={"output"})))
    key = hashlib.sha256(f"{fingerprint} {json.dumps(identity, sort_keys=True)}".encode()).hexdigest()[:8]
    return f"{slug}-seed{config.seed}-{key}"


def result_identity(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `run_identity` without location and intervals as well: runs that differ only in them have the same results.

    Names of run folders contain a hash of `run_identity`, not of this, so that folders of earlier versions are found.
    """
    return _drop_keys(run_identity(content), _LOCATION_AND_INTERVAL_KEYS)


def stage_config(config: RunConfig) -> dict[str, Any]:
    """Return the part of a config that stage artifacts can depend on; each stage drops the method keys it does not use."""
    return _drop_keys(earlier_keys(result_identity(config.model_dump(mode="json"))), _STAGE_INDEPENDENT_KEYS)


def _drop_keys(content: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return a dumped config without some keys, given by section."""
    kept = {key: value for key, value in content.items() if key not in names.get("", ())}
    for section in kept.keys() & names.keys():
        if isinstance(kept[section], Mapping):
            kept[section] = {key: value for key, value in kept[section].items() if key not in names[section]}
    return kept


def describe_changes(one: Any, other: Any) -> list[str]:
    """Return one line for each dotted key in which two dumped configs differ, with both values."""
    return [
        f"{key}: {_shown(there)} there, {_shown(here)} in this command"
        for key, (there, here) in changed_keys(one, other).items()
    ]


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
