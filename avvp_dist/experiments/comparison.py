"""Reads finished runs and groups them into settings: runs whose configs differ only in the seed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.errors import ConfigError, DataError, UserError
from avvp_dist.experiments.recipe import RunConfig, changed_keys, load, result_identity
from avvp_dist.experiments.result import CONFIG, check_files, read_result
from avvp_dist.metrics.per_video import FILE as PER_VIDEO
from avvp_dist.metrics.per_video import VideoStatistics
from avvp_dist.report.runs import Run, RunGroup, TaskInfo
from avvp_dist.storage import integrity
from avvp_dist.tasks import TASKS
from avvp_dist.tasks.base import TaskSection
from avvp_dist.text.suggest import did_you_mean
from avvp_dist.tracking.base import flatten

_SWEEPS = "outputs/sweeps"
_ABSENT = object()  # for a missing key, as opposed to a key whose value is null
_TOLERANCE = 1e-6  # points by which scores of one network may differ
# keys of the provenance that can change scores
_PROVENANCE_KEYS = ("world_size", "launcher", "device", "torch", "avvp_dist", "git_commit")
# keys of the config that do not identify a setting, in addition to those that do not change the results; data are identified
# by their fingerprint
_IGNORED_KEYS = {"seed", "recipe"}


@dataclass(frozen=True)
class FinishedSweep:
    """The finished runs of a sweep.

    Attributes:
        runs: folders of its finished runs.
        metric: the score that it optimizes, such as ``segment.type``; None if there is no sweep.json.
        trials: number of planned runs; None if there is no sweep.json.
    """

    runs: list[str]
    metric: str | None
    trials: int | None


def read_sweep(sweep: str) -> FinishedSweep:
    """Find the finished runs of a sweep: those that its sweep.json lists and no others.

    Args:
        sweep: folder or URL of a sweep, or the name of one in ``outputs/sweeps``. For a folder without a sweep.json, all
            folders below it with a result.json and a config.yaml count as runs, except those inside another run.

    Raises:
        DataError: the folder does not exist or has no finished run, or its sweep.json is invalid.
    """
    candidates = [sweep, *([] if "/" in sweep else [storage.join(_SWEEPS, sweep)])]
    folder = next((candidate for candidate in candidates if storage.exists(candidate)), None)
    if folder is None:
        raise DataError(
            f"no sweep {sweep!r}: neither {' nor '.join(candidates)} exists"
            if len(candidates) > 1
            else f"no sweep {sweep!r}"
        )
    url = storage.join(folder, "sweep.json")
    if "sweep.json" not in storage.names(folder):
        found = FinishedSweep(_runs_below(folder), None, None)
    else:
        try:
            about = json.loads(storage.read_text(url))
            metric = str(about["metric"]).removeprefix("val ")
            names = [str(row["name"]) for row in about["trials"]]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{url}: not the record of a sweep; expected an object with metric and trials") from None
        runs = [storage.join(folder, "runs", name) for name in names]
        finished = [run for run in runs if storage.exists(storage.join(run, "result.json"))]
        found = FinishedSweep(finished, metric, len(names))
    if not found.runs:
        raise DataError(f"{folder}: no finished run (no result.json)")
    return found


def _runs_below(folder: str) -> list[str]:
    """Return the run folders below ``folder``. Copies inside a run, such as those in its tracking journal, do not count."""
    configs = set(storage.find(folder, "config.yaml"))
    runs: list[str] = []
    for url in sorted(storage.find(folder, "result.json"), key=len):
        folder_of_run = url.removesuffix("/result.json")
        if f"{folder_of_run}/config.yaml" in configs and not any(folder_of_run.startswith(f"{run}/") for run in runs):
            runs.append(folder_of_run)
    return sorted(runs)


def read_settings(runs: Sequence[str]) -> tuple[list[RunGroup], list[str]]:
    """Group finished runs into settings, in the order of their first runs.

    Runs belong to one setting if their data are the same and their configs differ only in the seed and in where and how they
    were executed.

    Args:
        runs: folders or URLs of finished runs.

    Returns:
        the settings, and notes on runs that were left out.

    Raises:
        DataError: all runs that are not finished or cannot be read.
    """
    found, problems = [], []
    for url in dict.fromkeys(storage.absolute(run.rstrip("/")) for run in runs):
        try:
            found.append(_read(url))
        except UserError as error:
            problems += error.problems
    if problems:
        raise DataError(problems, f"{len(problems)} problem{'s' if len(problems) > 1 else ''} with the runs to compare")
    groups: list[tuple[dict[str, Any], RunConfig, list[Run]]] = []
    notes = []
    for config, run in found:
        identity = _setting_identity(config, run)
        group = next((group for group in groups if not changed_keys(group[0], identity)), None)
        if group is None:
            groups.append((identity, config, [run]))
            continue
        duplicate = next((other for other in group[2] if other.result["seed"] == run.result["seed"]), None)
        if duplicate:
            difference = _other_scores(duplicate, run)
            notes.append(f"{run.url}: left out; same setting and seed as {duplicate.url}{difference}")
        else:
            group[2].append(run)
    keys = _differing_keys([identity for identity, _, _ in groups], [config.recipe for _, config, _ in groups])
    labels = _labels(keys, [config.recipe for _, config, _ in groups])
    settings = [
        RunGroup(label, of_setting, tuple(runs_of))
        for label, of_setting, (_, _, runs_of) in zip(labels, keys, groups, strict=True)
    ]
    return settings, notes


def _other_scores(one: Run, other: Run) -> str:
    """Describe how the scores of two runs of one setting and seed differ, and how their execution differed."""
    differ = []
    for split in one.result["scores"].keys() & other.result["scores"].keys():
        here, there = (flatten(run.result["scores"][split]) for run in (one, other))
        pairs = [(here[key], there[key]) for key in here.keys() & there.keys()]
        by = max((abs(a - b) for a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float)), default=0.0)
        differ += [f"{split} by up to {by:.3g} points"] if by > _TOLERANCE else []
    if not differ:
        return ""
    before, after = (run.result.get("provenance", {}) for run in (one, other))
    known = [key for key in _PROVENANCE_KEYS if key in before and key in after]
    execution = [f"{key} {before[key]} and {after[key]}" for key in known if before[key] != after[key]]
    return f", but its SCORES DIFFER: {', '.join(sorted(differ))}" + (f" ({'; '.join(execution)})" if execution else "")


def find_setting(settings: Sequence[RunGroup], wanted: str) -> RunGroup:
    """Find a setting by its label, or by the name or folder of one of its runs.

    Raises:
        ConfigError: there is no such setting.
    """
    for setting in settings:
        names = {name for run in setting.runs for name in (run.name, run.url)}
        if wanted == setting.label or wanted.rstrip("/") in names or storage.absolute(wanted.rstrip("/")) in names:
            return setting
    labels = [setting.label for setting in settings]
    hint = did_you_mean(wanted, labels)
    raise ConfigError(f"no setting {wanted!r}{hint} Settings: {', '.join(map(repr, labels))}, or the folder of a run")


def _read(url: str) -> tuple[RunConfig, Run]:
    """Read a run and its config; keys that did not exist when it was run get their defaults."""
    result_url, config_url = storage.join(url, "result.json"), storage.join(url, "config.yaml")
    missing = [f"{file}: does not exist" for file in (result_url, config_url) if not storage.exists(file)]
    if missing:
        raise DataError([f"{problem}; train the run first, or give the folder of a finished run" for problem in missing])
    result = read_result(url)
    try:
        seed, data, scores = result["seed"], result["data"], result["scores"]
        if not isinstance(seed, int) or not {"fingerprint", "dataset", "synthetic"} <= data.keys() or not scores:
            raise ValueError
        task = TaskInfo.of(result)
        if task.view not in task.views or task.default_metric not in task.metrics or not isinstance(task.name, str):
            raise ValueError
        for scored in (of_view for of_split in scores.values() for of_view in of_split.values()):
            figures = [*scored["settings"].values(), *(scored["metrics"][name] for name in task.metrics)]
            if not all(isinstance(figure, int | float) for figure in figures):
                raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{result_url}: not the result of a finished run; train it again") from None
    check_files(url, result, [CONFIG])
    try:
        config = load(config_url)
    except ConfigError as error:
        raise ConfigError([f"{config_url}: {problem}" for problem in error.problems]) from None
    return config, _with_videos(url, result)


def _with_videos(url: str, result: Mapping[str, Any]) -> Run:
    """Return a run with its statistics per video, or with the reason why they are not available."""
    section = TASKS.get(result["task"]["name"])
    if section is None:
        return Run(url, result, None, f"task {result['task']['name']} is not installed")
    file, remedy = storage.join(url, PER_VIDEO), f"`avvp evaluate {url}` writes it"
    if not storage.exists(file):
        return Run(url, result, None, f"{file}: does not exist; {remedy}")
    try:
        per_video = VideoStatistics.from_bytes(integrity.read_listed(url, PER_VIDEO, result), file)
    except DataError as error:
        return Run(url, result, None, f"{error}; {remedy} again")
    metric = result["task"]["default_metric"]
    for split, views in result["scores"].items():
        for view, scored in views.items():
            statistics = per_video.values.get((split, view))
            if statistics is None or not _agree(section, statistics, metric, scored["metrics"][metric]):
                return Run(url, result, None, f"{file}: belongs to another network than result.json; {remedy} again")
    return Run(url, result, per_video)


def _agree(section: type[TaskSection], statistics: NDArray[np.float64], metric: str, recorded: float) -> bool:
    """Return whether the statistics per video give the recorded value of a metric."""
    try:
        found = section.recompute(statistics, np.ones((1, len(statistics))), metric)
    except (ValueError, IndexError):  # statistics of another number of columns
        return False
    return bool(abs(float(found[0]) - recorded) <= _TOLERANCE)


def _setting_identity(config: RunConfig, run: Run) -> dict[str, Any]:
    """Return the part of a config that determines the results, except the seed."""
    content = result_identity(config.model_dump(mode="json", exclude=_IGNORED_KEYS))
    content["data"] = {key: value for key, value in content["data"].items() if key != "url"}
    content["data"]["fingerprint"] = str(run.result["data"]["fingerprint"])[:12]
    return content


def _differing_keys(identities: Sequence[dict[str, Any]], recipes: Sequence[str]) -> list[dict[str, Any]]:
    """Return, for each setting, the keys in which settings of one recipe differ, and the recipe if there are several."""
    wanted: set[str] = set()
    for (one, of_one), (other, of_other) in itertools.combinations(zip(identities, recipes, strict=True), 2):
        for key in changed_keys(one, other) if of_one == of_other else ():
            name = f"{key.partition('.')[0]}.name"
            # methods of different names have different keys: the name alone is enough
            if key == name or _lookup(one, name) == _lookup(other, name):
                wanted.add(key)
    order = list(dict.fromkeys(key for identity in identities for key in flatten(identity)))
    keys = sorted(wanted, key=lambda key: order.index(key) if key in order else -1)  # as a config is written
    several = len(set(recipes)) > 1
    return [
        ({"recipe": recipe} if several else {})
        | {key: value for key in keys if (value := _lookup(identity, key)) is not _ABSENT}
        for identity, recipe in zip(identities, recipes, strict=True)
    ]


def _lookup(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part, _ABSENT) if isinstance(content, Mapping) else _ABSENT
    return content


def _labels(keys: Sequence[Mapping[str, Any]], recipes: Sequence[str]) -> list[str]:
    """Make labels: the recipe if there are several, then the keys in which settings of that recipe differ."""
    labels = []
    for recipe, of_setting in zip(recipes, keys, strict=True):
        same_recipe = [other for name, other in zip(recipes, keys, strict=True) if name == recipe]
        parts = [recipe] if "recipe" in of_setting or len(same_recipe) == 1 else []
        for key, value in of_setting.items():
            values = [other.get(key, _ABSENT) for other in same_recipe]
            if key != "recipe" and any(other != value for other in values):
                parts.append(f"{key}={_short(value, values)}")
        labels.append(" ".join(parts))
    return labels


def _short(value: Any, values: Sequence[Any]) -> str:
    """Return a value for a label: shortened if the shortened values are still distinct."""
    shown = {_brief(other) for other in values}
    return _brief(value) if len(shown) == len({str(other) for other in values}) else str(value)


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value.rstrip("/").rsplit("/", 1)[-1]
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
