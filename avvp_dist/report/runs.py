"""Finished runs, grouped: runs that differ only in their seed are one setting, trained several times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from avvp_dist.metrics.per_video import VideoStatistics
from avvp_dist.tasks.base import Metric, View

S = TypeVar("S")


@dataclass(frozen=True, eq=False)
class TaskInfo:
    """A run's task as its result.json describes it, see `tasks.base.describe`.

    Attributes:
        name: name of the task.
        view: view under which its runs are selected and tracked.
        views: all views, by name.
        metrics: all metrics of a split, by name, in the order of tables.
        class_metrics: metrics of a single class, by name.
        default_metric: metric to compare by if no other is given.
    """

    name: str
    view: str
    views: Mapping[str, View]
    metrics: Mapping[str, Metric]
    class_metrics: Mapping[str, Metric]
    default_metric: str

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> TaskInfo:
        """Parse the ``task`` of a result.json."""
        task = result["task"]
        return cls(
            task["name"],
            task["view"],
            {view["name"]: View(**view) for view in task["views"]},
            {metric["name"]: Metric(**metric) for metric in task["metrics"]},
            {metric["name"]: Metric(**metric) for metric in task["class_metrics"]},
            task["default_metric"],
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of metrics, in order."""
        return tuple(dict.fromkeys(metric.group for metric in self.metrics.values()))

    @property
    def main_views(self) -> tuple[str, ...]:
        """Names of the views that are not a subset of another."""
        return tuple(name for name, view in self.views.items() if not view.of)

    def subsets(self, view: str) -> tuple[str, ...]:
        """Return the names of the views that restrict ``view``."""
        return tuple(name for name, found in self.views.items() if found.of == view)

    def in_group(self, group: str) -> tuple[Metric, ...]:
        """Return the metrics of a group."""
        return tuple(metric for metric in self.metrics.values() if metric.group == group)

    def of_classes(self, group: str) -> tuple[Metric, ...]:
        """Return the class metrics of a group."""
        return tuple(metric for metric in self.class_metrics.values() if metric.group == group)


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Attributes:
        url: its folder.
        result: content of its result.json.
        per_video: statistics of its videos; None if they are not available.
        per_video_problem: why they are not available; empty if they are.
    """

    url: str
    result: Mapping[str, Any]
    per_video: VideoStatistics | None = None
    per_video_problem: str = ""

    @property
    def name(self) -> str:
        """Last part of its folder."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, eq=False)
class RunGroup:
    """The runs of one setting, with one or several seeds.

    Attributes:
        label: short label of the setting, unique in a comparison.
        keys: config keys in which any two settings of the comparison differ -> value of this one.
        runs: one for each seed.
    """

    label: str
    keys: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def task(self) -> TaskInfo:
        """Task of the runs."""
        return TaskInfo.of(self.runs[0].result)

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [run.result["seed"] for run in self.runs]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data on which the runs were trained and scored."""
        return str(self.runs[0].result["data"]["fingerprint"])

    @property
    def synthetic(self) -> bool:
        """Whether those data are synthetic."""
        return bool(self.runs[0].result["data"]["synthetic"])

    def scored(self, split: str, view: str) -> list[Mapping[str, Any]]:
        """Return ``settings``, ``metrics`` and ``per_class`` of each run that was scored under a view."""
        found = [run.result["scores"].get(split, {}).get(view, {}) for run in self.runs]
        return [scores for scores in found if scores]

    def values(self, split: str, view: str, metric: str) -> list[float]:
        """Return one metric of each seed."""
        return [scores["metrics"][metric] for scores in self.scored(split, view)]

    def references(self, split: str, metrics: Sequence[Metric]) -> dict[str, list[list[float]]]:
        """Return the metrics of each naive predictor, of each seed; a predictor that not all runs recorded is left out."""
        found = [run.result.get("references", {}).get(split, {}) for run in self.runs]
        names = [name for name in found[0] if all(name in of_run for of_run in found)]
        return {name: [[of_run[name][metric.name] for of_run in found] for metric in metrics] for name in names}

    def class_values(self, split: str, view: str, name: str, metric: str) -> list[float]:
        """Return one metric of a class of each seed; empty if the class has no value for a seed."""
        values = [scores["per_class"].get(name, {}).get(metric) for scores in self.scored(split, view)]
        return [] if None in values else values

    def statistics(self, split: str, view: str) -> NDArray[np.float64] | None:
        """Return the statistics of every video, [seeds, videos, S]; None if any run lacks them."""
        found = [run.per_video.values.get((split, view)) for run in self.runs if run.per_video]
        rows = [row for row in found if row is not None]
        return np.stack(rows) if len(rows) == len(self.runs) else None


def reference_rows(references: Mapping[str, Mapping[str, S]]) -> list[tuple[str, S]]:
    """Return label and scores of the naive predictors of several runs or settings.

    Args:
        references: name of a run or setting -> name of a naive predictor -> its scores.

    Returns:
        one row for a predictor that has the same scores everywhere, such as one that depends on the data only; otherwise one
        for each run or setting.
    """
    rows = []
    for name in dict.fromkeys(name for found in references.values() for name in found):
        scores = {run: found[name] for run, found in references.items() if name in found}
        first, *others = scores.values()
        if all(other == first for other in others):
            rows.append((name, first))
        else:
            rows += [(f"{name}, {run}", of_run) for run, of_run in scores.items()]
    return rows


def metric_title(metric: Metric) -> str:
    """Return a metric's title with its group."""
    return f"{metric.title}, {metric.group} level" if metric.group else metric.title


def describe_view(view: str, scored: Mapping[str, Any]) -> str:
    """Return the name of a view with the settings of its scores, such as thresholds."""
    settings = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in scored["settings"].items())
    return f"{view} ({settings})" if settings else view
