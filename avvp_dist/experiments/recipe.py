"""A whole run's configuration: every room's section together, read from a recipe and overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, model_validator

from avvp_dist import storage
from avvp_dist.config import (
    PathMarker,
    Section,
    Text,
    Url,
    assignment,
    convert_paths,
    merge,
    parse_overrides,
    parse_yaml,
    validate,
)
from avvp_dist.experiments.shipped import read_yaml, shipped
from avvp_dist.loading.split import DataConfig
from avvp_dist.methods import MethodConfig
from avvp_dist.models import ModelConfig
from avvp_dist.storage.config import StorageConfig
from avvp_dist.tracking.base import TrackingConfig
from avvp_dist.train.evaluate import EvaluateConfig
from avvp_dist.train.loop import TrainConfig
from avvp_dist.train.optim import OptimConfig

_FOLDER = "recipes"  # of the shipped ones
S = TypeVar("S", bound=Section)

# what a bare value stands for: launch=ray is launch.name=ray
_SHORTHAND = {"data": "url", "model": "name", "method": "name", "tracking": "name", "launch": "name"}
# by section, what changes nothing in what comes out
_EXECUTION_KEYS = {
    "": ("tracking", "launch", "store", "storage"),
    "train": ("device",),
    "data": ("workers", "prefetch", "on_bad", "cache", "cache_gb", "share"),
}
# likewise, where a run lies, and how often it looks after itself
_PLACE_AND_INTERVAL_KEYS = {"": ("output",), "train": ("check_every", "checkpoint_every"), "evaluate": ("batch_size",)}
# by section, what no artifact of a stage depends on besides, or only through what is recorded in its place: fingerprints of
# data and labels, and the order of the videos
_STAGE_INDEPENDENT_KEYS = {
    "": ("recipe",),
    "data": ("url", "dataset", "refined", "mode", "memory_gb", "streams", "window"),
}


class LaunchConfig(Section):
    """Who starts the workers."""

    name: Literal["local", "ray"] = "local"
    """local: this process, or each of torchrun's; ray: Ray Train, on the cluster of RAY_ADDRESS or on this machine."""
    workers: int = Field(1, ge=1)
    """Ray workers; the global batch is divided among them."""
    min_workers: int | None = Field(None, ge=1)
    """Ray workers with which a run goes on where nodes for all of ``workers`` are not there; null waits for all of them."""
    resize_every: float = Field(60.0, gt=0)
    """Seconds between two looks whether Ray can run more of them; if so, all start again, from the last checkpoint."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs of a Ray worker; 0 trains on CPU."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs a Ray worker asks for."""
    wait: float = Field(1800.0, ge=0)
    """Seconds to wait for what others use or new nodes are to bring; what a cluster can never give is refused at once."""
    max_failures: int = Field(3, ge=-1)
    """Times Ray starts the workers again after a failure, from the last checkpoint; -1 without end."""

    @model_validator(mode="after")
    def _check_min_workers(self) -> LaunchConfig:
        if self.min_workers is None:
            return self
        if self.name != "ray":
            raise ValueError(f"min_workers={self.min_workers} needs name=ray: only Ray changes the number of workers")
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")
        return self


class RunConfig(Section):
    """One reproducible run."""

    recipe: Text
    """Name of the recipe this came from."""
    seed: int = Field(0, ge=0)
    """Root of all randomness: fresh weights, order of videos, dropout."""
    output: Url
    """Folder or URL of the run: result.json, model, stages, checkpoints, pictures."""
    store: Url | None = None
    """Folder or URL of finished stages, to share them among runs; null for <output>/stages."""
    data: DataConfig = DataConfig()
    model: ModelConfig
    method: MethodConfig
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    storage: StorageConfig = StorageConfig()
    launch: LaunchConfig = LaunchConfig()

    def to_yaml(self) -> str:
        """The resolved config, without credentials; `load` reads it back."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)

    def absolute(self) -> RunConfig:
        """See `absolute`."""
        return absolute(self)

    def relative(self) -> dict[str, str]:
        """Dotted keys that hold a relative local path, each with the absolute one."""
        return {key: new for key, (_, new) in changed_keys(self.model_dump(), self.absolute().model_dump()).items()}


def absolute(section: S) -> S:
    """A section with every local path in it made absolute.

    Called once, where a command starts: workers and trials run in other folders, and config.yaml is read from elsewhere.
    """
    return type(section).model_validate(convert_paths(type(section), section.model_dump(), _absolute))


def absolute_overrides(overrides: Sequence[str]) -> list[str]:
    """``key=value`` overrides of a run with every local path in them made absolute; the others stay as they were written.

    Raises:
        ConfigError: every override that cannot be read.
    """
    found = []
    for override, (path, value) in zip(overrides, parse_overrides(overrides), strict=True):
        moved = absolute_value(path, value)
        found.append(override if moved == value else assignment(".".join(path), moved))
    return found


def absolute_value(path: Sequence[str], value: Any) -> Any:
    """The value of one key of a run, e.g. ``("data", "refined")``, with every local path in it made absolute."""
    short = _SHORTHAND.get(path[0]) if len(path) == 1 and not isinstance(value, Mapping) else None
    keys = [*path, *([short] if short else [])]
    content = value
    for key in reversed(keys):
        content = {key: content}
    content = convert_paths(RunConfig, content, _absolute)
    for key in keys:
        content = content[key]
    return content


def _absolute(url: str, place: PathMarker) -> str:
    return (place.absolute or storage.absolute)(url) if url else url


def recipes() -> dict[str, str]:
    """The shipped recipes: name -> YAML text."""
    return shipped(_FOLDER)


def load(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A recipe with overrides.

    Args:
        recipe: name of a shipped recipe, or the path or URL of a YAML file (a run's config.yaml, say).
        overrides: ``key=value``, e.g. ``optim.lr=1e-3``, ``launch=ray``.

    Raises:
        ConfigError: everything that is wrong with them, at once.
    """
    name, text = read_yaml(recipe, "recipe", _FOLDER)
    content = parse_yaml(text, recipe)
    content.setdefault("recipe", name)
    merged = merge(content, parse_overrides(overrides), _SHORTHAND)
    merged.setdefault("output", f"outputs/{merged['recipe']}-seed{merged.get('seed', 0)}")
    return validate(RunConfig, merged, f"recipe {recipe}")


def changed_keys(one: Any, other: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two dumped configs differ, with both values; None where one lacks the key."""
    if isinstance(one, dict) and isinstance(other, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*one, *other]):
            found |= changed_keys(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        return found
    return {} if one == other else {path: (one, other)}


def run_identity(content: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped config without what only says how the run is run: who starts it, where it is read from and told to."""
    return _drop_keys(content, _EXECUTION_KEYS)


def result_identity(content: Mapping[str, Any]) -> dict[str, Any]:
    """`run_identity` without its place and its pace as well: two runs in which nothing else differs leave the same.

    Names of run folders hash `run_identity`, so that those of earlier versions are found again.
    """
    return _drop_keys(run_identity(content), _PLACE_AND_INTERVAL_KEYS)


def stage_config(config: RunConfig) -> dict[str, Any]:
    """All of a dumped config that artifacts of stages may depend on; each stage drops what of the method it does without."""
    return _drop_keys(result_identity(config.model_dump(mode="json")), _STAGE_INDEPENDENT_KEYS)


def _drop_keys(content: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """A dumped config without the keys named by section."""
    kept = {key: value for key, value in content.items() if key not in names.get("", ())}
    for section in kept.keys() & names.keys():
        if isinstance(kept[section], Mapping):
            kept[section] = {key: value for key, value in kept[section].items() if key not in names[section]}
    return kept


def describe_changes(one: Any, other: Any) -> list[str]:
    """Dotted keys in which two dumped configs differ, with both values, a line each."""
    return [f"{key}: {there!r} there, {here!r} here" for key, (there, here) in changed_keys(one, other).items()]
