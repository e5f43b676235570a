"""Interface of all tasks: what labels and predictions mean, how they are scored, and how scores are named.

A task is everything that depends on the meaning of labels. Training, evaluation, tracking and reports use this interface and
never ask which task they serve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.config import Section
from avvp_dist.text.plural import plural
from avvp_dist.types import Batch, Outputs

Floats = NDArray[np.float64]
Rows = Mapping[str, NDArray[Any]]
"""What evaluation keeps of the N videos of a split: name -> array [N,...], see `Task.rows`."""
Tracks = Mapping[str, NDArray[np.bool_]]
"""Ground truth or predictions by track, [N,T,C] each."""


@dataclass(frozen=True)
class Metric:
    """A figure that a task computes.

    Attributes:
        name: unique dotted name, used in result.json, MLflow, sweeps and options.
        title: name in figures.
        head: column head in tables.
        group: metrics of one group share a table and a panel; empty if there is only one group.
        unit: unit of the values.
        higher_is_better: direction.
    """

    name: str
    title: str
    head: str
    group: str = ""
    unit: str = "%"
    higher_is_better: bool = True


@dataclass(frozen=True)
class View:
    """One way to score the same outputs: an evaluation protocol, or a protocol restricted to a subset of the classes.

    Attributes:
        name: unique name.
        title: description in tables and figures.
        of: name of the view that this one restricts; empty if it is not a subset.
        subset: name of the subset of classes.
    """

    name: str
    title: str
    of: str = ""
    subset: str = ""


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one split under one view.

    Attributes:
        metrics: name of each of the task's metrics -> value.
        per_class: class -> name of each class metric -> value; None for a class that is never true or predicted. Empty for a
            subset of the classes.
        statistics: float64 [N,S] per video, from which `TaskSection.recompute` computes the same metrics for any multiset of
            the videos.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float | None]]
    statistics: Floats


class Task(ABC):
    """A task for the classes of one data set.

    Attributes:
        section: config class of the task.
        views: everything that a result contains; views that are not a subset come before their subsets.
        view: name of the view under which epochs are selected and runs are tracked.
    """

    section: type[TaskSection]
    views: tuple[View, ...]
    view: str

    @abstractmethod
    def rows(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return what evaluation needs of each video of a batch, as tensors [B,...] of one floating-point type."""

    @abstractmethod
    def predict(self, rows: Rows, view: str) -> Tracks:
        """Return the predicted events of the N videos by track, bool [N,T,C]."""

    @abstractmethod
    def score(self, rows: Rows, truth: Tracks, view: str) -> Scores:
        """Score the outputs of a split.

        Args:
            rows: of the N videos.
            truth: ground truth by track, bool [N,T,C].
            view: name of one of `views`.
        """

    def references(self, rows: Rows, truth: Tracks, train: Tracks | None) -> dict[str, dict[str, float]]:
        """Return the metrics of naive predictors on the same videos, by the predictor's name; a task may have none.

        Args:
            rows, truth: as in `score`.
            train: ground truth of the training split; None if it is not known.
        """
        return {}

    def settings(self) -> dict[str, float]:
        """Return the numbers that turn outputs into predictions, such as thresholds; they are stored with the scores."""
        return {}


class TaskSection(Section, ABC):
    """Base of the tasks' config sections (``task:`` of a recipe).

    Attributes:
        name: selects the task in a recipe; the key of `tasks.TASKS`, and the ``task`` of a data set's index.
        tracks: what ground truth and predictions are indexed by.
        background: whether every segment without an event has a class of its own, so that networks need C + 1 scores.
        metrics: all metrics of a split, in the order of tables.
        class_metrics: metrics of a single class.
        default_metric: metric by which epochs, trials and settings are selected if no other is given.
    """

    name: str
    tracks: ClassVar[tuple[str, ...]]
    background: ClassVar[bool] = False
    metrics: ClassVar[tuple[Metric, ...]]
    class_metrics: ClassVar[tuple[Metric, ...]]
    default_metric: ClassVar[str]

    @abstractmethod
    def build(self, classes: Sequence[str]) -> Task:
        """Return the task for a data set with these classes.

        The views that are not a subset do not depend on ``classes``, which can be empty where only these are needed.
        """

    @classmethod
    @abstractmethod
    def recompute(cls, statistics: Floats, weights: Floats, metric: str) -> Floats:
        """Compute a metric for multisets of videos.

        Args:
            statistics: `Scores.statistics`, [N,S].
            weights: number of times that each video occurs in each of R multisets, [R,N]; not necessarily whole numbers.
            metric: name of a metric.

        Returns:
            [R].
        """

    @classmethod
    def inconsistent(cls, figures: Mapping[str, float]) -> bool:
        """Return whether published figures contradict each other by the definitions of the metrics, apart from rounding."""
        return False

    @classmethod
    def unsuitable(cls, tracks: Sequence[str] | None, background: bool | None) -> str:
        """Return why a network or method does not serve this task; empty if it does.

        Args:
            tracks: that it predicts or refines; None for any.
            background: whether its classes include the background; None for either.
        """
        if tracks is not None and tuple(tracks) != cls.tracks:
            return f"it predicts the {_listed(tracks)}; the task has the {_listed(cls.tracks)}"
        if background is not None and background != cls.background:
            own, needed = ("a" if background else "no"), ("one" if cls.background else "none")
            return f"it has {own} class for the background; the task needs {needed}"
        return ""

    @classmethod
    def metric(cls, name: str) -> Metric:
        """Return a metric by its name.

        Raises:
            KeyError: there is no such metric.
        """
        return {metric.name: metric for metric in cls.metrics}[name]


def _listed(tracks: Sequence[str]) -> str:
    """Return the names of tracks for a message."""
    return f"{plural(len(tracks), 'track')} {' and '.join(tracks)}"


def evaluate(task: Task, rows: Rows, truth: Tracks) -> dict[str, Scores]:
    """Return the scores of a split under every view."""
    return {view.name: task.score(rows, truth, view.name) for view in task.views}


def describe(task: Task) -> dict[str, Any]:
    """Return the task's name, views and metrics as result.json records them, from which reports are made."""
    section = task.section
    return {
        "name": section.model_fields["name"].default,
        "view": task.view,
        "views": [asdict(view) for view in task.views],
        "metrics": [asdict(metric) for metric in section.metrics],
        "class_metrics": [asdict(metric) for metric in section.class_metrics],
        "default_metric": section.default_metric,
    }


def as_content(task: Task, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Return the result of `evaluate` as result.json records it: by view, ``settings``, ``metrics`` and ``per_class``."""
    return {
        view: {"settings": task.settings(), "metrics": of_view.metrics, "per_class": of_view.per_class}
        for view, of_view in scores.items()
    }
