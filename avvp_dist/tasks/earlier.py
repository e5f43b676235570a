"""Converts result.json of earlier versions, whose scores were those of parsing, nested by level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from avvp_dist.metrics.names import KINDS, LEVELS, METRICS
from avvp_dist.tasks.base import describe
from avvp_dist.tasks.parsing import ParsingConfig

_SETTINGS = ("segment_threshold", "video_threshold")
_SUBSET = "without_speech"


def present_result(result: dict[str, Any], settings: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of a result.json in the present form; one that cannot be converted is returned unchanged.

    Args:
        result: content of the file.
        settings: returns the ``task`` section of the run's config, in its present form.
    """
    if "task" in result or not isinstance(result.get("scores"), Mapping):
        return result
    try:
        scores = {split: _views(protocols) for split, protocols in result["scores"].items()}
        views = next(iter(scores.values()))
        classes = list(next(iter(views.values()))["per_class"])
        task = ParsingConfig.model_validate(dict(settings())).build(classes)
    except (KeyError, TypeError, AttributeError, StopIteration, ValueError):
        return result
    return {**result, "task": describe(task), "scores": scores}


def _views(protocols: Mapping[str, Any]) -> dict[str, Any]:
    found = {protocol: _view(scored, scored) for protocol, scored in protocols.items()}
    subsets = {
        f"{protocol}/{_SUBSET}": _view(scored[_SUBSET], scored)
        for protocol, scored in protocols.items()
        if _SUBSET in scored
    }
    return found | subsets


def _view(levels: Mapping[str, Any], scored: Mapping[str, Any]) -> dict[str, Any]:
    per_class = levels.get("per_class", {})
    return {
        "settings": {name: scored[name] for name in _SETTINGS},
        "metrics": {f"{level}.{metric}": levels[level][metric] for level in LEVELS for metric in METRICS},
        "per_class": {
            name: {f"{level}.{kind}": of_class[level][kind] for level in LEVELS for kind in KINDS}
            for name, of_class in per_class.items()
        },
    }
