"""Reads finished runs and makes settings of them: what was run, with which seeds, and in what the settings differ."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avvp_dist import storage
from avvp_dist.errors import ConfigError, DataError, UserError
from avvp_dist.experiments.recipe import RunConfig, changed, load, result_identity
from avvp_dist.experiments.result import CONFIG, check_files, read_result
from avvp_dist.metrics.names import PROTOCOLS, SCORES
from avvp_dist.metrics.per_video import FILE as PER_VIDEO
from avvp_dist.metrics.per_video import PerVideo
from avvp_dist.report.runs import Run, RunGroup
from avvp_dist.storage import integrity
from avvp_dist.text.suggest import did_you_mean
from avvp_dist.tracking.base import flatten

_SWEEPS = "outputs/sweeps"
_ABSENT = object()  # no such key: not the same as a key whose value is null
_EQUAL = 1e-6  # points by which scores of the same networks may differ
_HOW = ("world_size", "launcher", "device", "torch", "avvp_dist", "git_commit")  # of provenance: what may change scores
# besides what decides nothing about what comes out; data are told apart by their fingerprint
_ASIDE = {"seed", "recipe"}


@dataclass(frozen=True)
class Sweep:
    """What lies in a sweep's folder.

    Attributes:
        runs: folders of its finished runs.
        metric: the score it was run for, such as ``segment.type``; None where sweep.json does not say.
        trials: how many runs it planned; None where sweep.json does not say.
    """

    runs: list[str]
    metric: str | None
    trials: int | None


def read_sweep(sweep: str) -> Sweep:
    """Finds the finished runs of a sweep: those that its sweep.json names and no others.

    Args:
        sweep: folder or URL of a sweep, or the name of one in ``outputs/sweeps``; or a folder without a sweep.json, whose
            runs are the folders below it that hold a result.json and a config.yaml, but none inside a run.

    Raises:
        DataError: no such folder, nothing finished in it, or a sweep.json that is none.
    """
    places = [sweep, *([] if "/" in sweep else [storage.join(_SWEEPS, sweep)])]
    folder = next((place for place in places if storage.exists(place)), None)
    if folder is None:
        raise DataError(f"no sweep {sweep!r}: looked for {' and '.join(places)}")
    url = storage.join(folder, "sweep.json")
    if "sweep.json" not in storage.names(folder):
        found = Sweep(_runs_below(folder), None, None)
    else:
        try:
            about = json.loads(storage.read_text(url))
            metric = str(about["metric"]).removeprefix("val ")
            names = [str(row["name"]) for row in about["trials"]]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{url}: expected an object with metric and trials; not the record of a sweep") from None
        places = [storage.join(folder, "runs", name) for name in names]
        finished = [place for place in places if storage.exists(storage.join(place, "result.json"))]
        found = Sweep(finished, metric if metric in SCORES else None, len(names))
    if not found.runs:
        raise DataError(f"{folder}: no finished run of it (no result.json)")
    return found


def _runs_below(folder: str) -> list[str]:
    """Folders of runs in ``folder``. What lies inside a run, such as the copies in its tracking journal, is no other run."""
    configs = set(storage.find(folder, "config.yaml"))
    runs: list[str] = []
    for url in sorted(storage.find(folder, "result.json"), key=len):
        place = url.removesuffix("/result.json")
        if f"{place}/config.yaml" in configs and not any(place.startswith(f"{run}/") for run in runs):
            runs.append(place)
    return sorted(runs)


def read_settings(runs: Sequence[str]) -> tuple[list[RunGroup], list[str]]:
    """Groups finished runs into settings, in the order of their first runs.

    Runs are of one setting when their configs differ in nothing but the seed and in where and how they were run, and their
    data are the same.

    Args:
        runs: folders or URLs of finished runs.

    Returns:
        the settings, and notes on what was left out.

    Raises:
        DataError: runs that are not finished or cannot be read; all of them at once.
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
        what = _what(config, run)
        group = next((group for group in groups if not changed(group[0], what)), None)
        if group is None:
            groups.append((what, config, [run]))
            continue
        twin = next((other for other in group[2] if other.result["seed"] == run.result["seed"]), None)
        if twin:
            notes.append(f"{run.url}: left out; the same setting with the same seed as {twin.url}{_other_scores(twin, run)}")
        else:
            group[2].append(run)
    keys = _keys([what for what, _, _ in groups], [config.recipe for _, config, _ in groups])
    labels = _labels(keys, [config.recipe for _, config, _ in groups])
    settings = [
        RunGroup(label, of_setting, config.evaluate.protocol, tuple(runs_of))
        for label, of_setting, (_, config, runs_of) in zip(labels, keys, groups, strict=True)
    ]
    return settings, notes


def _other_scores(one: Run, other: Run) -> str:
    """By how much the scores of two runs of one setting and seed differ, and in what they were run otherwise."""
    differ = []
    for split in one.result["scores"].keys() & other.result["scores"].keys():
        here, there = (flatten(run.result["scores"][split]) for run in (one, other))
        pairs = [(here[key], there[key]) for key in here.keys() & there.keys()]
        by = max((abs(a - b) for a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float)), default=0.0)
        differ += [f"{split} by up to {by:.3g} points"] if by > _EQUAL else []
    if not differ:
        return ""
    before, after = (run.result.get("provenance", {}) for run in (one, other))
    known = [key for key in _HOW if key in before and key in after]
    how = [f"{key} {before[key]} and {after[key]}" for key in known if before[key] != after[key]]
    return f", but its SCORES DIFFER: {', '.join(sorted(differ))}" + (f" ({'; '.join(how)})" if how else "")


def named(settings: Sequence[RunGroup], wanted: str) -> RunGroup:
    """The setting that a user names by its label, or by the folder of one of its runs.

    Raises:
        ConfigError: there is none.
    """
    for setting in settings:
        places = {name for run in setting.runs for name in (run.name, run.url)}
        if wanted == setting.label or wanted.rstrip("/") in places or storage.absolute(wanted.rstrip("/")) in places:
            return setting
    labels = [setting.label for setting in settings]
    hint = did_you_mean(wanted, labels)
    raise ConfigError(f"no setting {wanted!r}{hint} Settings: {', '.join(map(repr, labels))}, or the folder of a run")


def _read(url: str) -> tuple[RunConfig, Run]:
    """A run and its config, with the defaults of settings that were not there yet when it was run."""
    result_url, config_url = storage.join(url, "result.json"), storage.join(url, "config.yaml")
    missing = [f"{each}: not there" for each in (result_url, config_url) if not storage.exists(each)]
    if missing:
        raise DataError([f"{each}; train the run first, or name its folder" for each in missing])
    result = read_result(url)
    try:
        seed, data, scores = result["seed"], result["data"], result["scores"]
        if not isinstance(seed, int) or not {"fingerprint", "dataset", "synthetic"} <= data.keys() or not scores:
            raise ValueError
        for scored in (of_protocol for of_split in scores.values() for of_protocol in of_split.values()):
            figures = [scored["segment_threshold"], scored["video_threshold"]]
            for where in (scored, scored.get("without_speech")):
                figures += (
                    [where[level][metric] for level, metric in (score.split(".") for score in SCORES)] if where else []
                )
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
    """A run with the scores of its videos, or with the reason why they cannot be had."""
    where, how = storage.join(url, PER_VIDEO), f"`avvp evaluate {url}` makes it"
    if not storage.exists(where):
        return Run(url, result, None, f"{where}: not there; {how}")
    try:
        per_video = PerVideo.from_bytes(integrity.read_listed(url, PER_VIDEO, result), where)
    except DataError as error:
        return Run(url, result, None, f"{error}; {how} anew")
    for split, protocols in result["scores"].items():
        for protocol in PROTOCOLS:
            scores = per_video.scores(split, protocol, "segment", "type")
            recorded = protocols.get(protocol, {}).get("segment", {}).get("type")
            if recorded is not None and (scores is None or not abs(float(np.mean(scores)) - recorded) <= 1e-6):
                return Run(url, result, None, f"{where}: not of the same networks as result.json; {how} anew")
    return Run(url, result, per_video)


def _what(config: RunConfig, run: Run) -> dict[str, Any]:
    """All of a config that decides what comes out, the seed aside."""
    content = result_identity(config.model_dump(mode="json", exclude=_ASIDE))
    content["data"] = {key: value for key, value in content["data"].items() if key != "url"}
    content["data"]["fingerprint"] = str(run.result["data"]["fingerprint"])[:12]
    return content


def _keys(whats: Sequence[dict[str, Any]], recipes: Sequence[str]) -> list[dict[str, Any]]:
    """For each setting its values of all keys in which settings of one recipe differ, and the recipe where several are."""
    wanted: set[str] = set()
    for (one, of_one), (other, of_other) in itertools.combinations(zip(whats, recipes, strict=True), 2):
        for key in changed(one, other) if of_one == of_other else ():
            name = f"{key.partition('.')[0]}.name"
            if key == name or _at(one, name) == _at(other, name):  # another method has other keys: its name says it all
                wanted.add(key)
    order = list(dict.fromkeys(key for what in whats for key in flatten(what)))
    keys = sorted(wanted, key=lambda key: order.index(key) if key in order else -1)  # as a config is written
    several = len(set(recipes)) > 1
    return [
        ({"recipe": recipe} if several else {}) | {key: value for key in keys if (value := _at(what, key)) is not _ABSENT}
        for what, recipe in zip(whats, recipes, strict=True)
    ]


def _at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part, _ABSENT) if isinstance(content, Mapping) else _ABSENT
    return content


def _labels(keys: Sequence[Mapping[str, Any]], recipes: Sequence[str]) -> list[str]:
    """The recipe where there are several, then what differs among the settings of that recipe."""
    labels = []
    for recipe, of_setting in zip(recipes, keys, strict=True):
        alike = [other for name, other in zip(recipes, keys, strict=True) if name == recipe]
        parts = [recipe] if "recipe" in of_setting or len(alike) == 1 else []
        for key, value in of_setting.items():
            values = [other.get(key, _ABSENT) for other in alike]
            if key != "recipe" and any(other != value for other in values):
                parts.append(f"{key}={_short(value, values)}")
        labels.append(" ".join(parts))
    return labels


def _short(value: Any, values: Sequence[Any]) -> str:
    """A value as a label shows it: short, where that still tells it from the others."""
    shown = {_brief(other) for other in values}
    return _brief(value) if len(shown) == len({str(other) for other in values}) else str(value)


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value.rstrip("/").rsplit("/", 1)[-1]
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
