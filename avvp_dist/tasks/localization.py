"""Audio-visual event localization: one event class or background per second, on AVE (ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.metrics import localization
from avvp_dist.tasks.base import Floats, Metric, Rows, Scores, Task, TaskSection, Tracks, View
from avvp_dist.types import Batch, Outputs

TRACK = "event"
BACKGROUND = "background"
_VIEW = "segments"
_TITLES = {
    "accuracy": ("accuracy", "Acc"),
    "weighted_f1": ("weighted F1", "wF1"),
    "background_recall": ("background recall", "bg R"),
    "background_precision": ("background precision", "bg P"),
    "background_f1": ("background F1", "bg F1"),
    "event_recall": ("event recall", "ev R"),
    "event_precision": ("event precision", "ev P"),
    "event_f1": ("event F1", "ev F1"),
}
_CLASS_TITLES = {"precision": ("precision", "P"), "recall": ("recall", "R"), "f1": ("F1", "F1")}


class LocalizationConfig(TaskSection):
    """Audio-visual event localization: the class with the largest score in each segment."""

    name: Literal["localization"] = "localization"
    tracks: ClassVar[tuple[str, ...]] = (TRACK,)
    background: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = tuple(Metric(name, *titles) for name, titles in _TITLES.items())
    class_metrics: ClassVar[tuple[Metric, ...]] = tuple(Metric(name, *titles) for name, titles in _CLASS_TITLES.items())
    default_metric: ClassVar[str] = "accuracy"

    def build(self, classes: Sequence[str]) -> Localization:
        """See `TaskSection`."""
        return Localization(classes)

    @classmethod
    def recompute(cls, statistics: Floats, weights: Floats, metric: str) -> Floats:
        """See `TaskSection`: every metric is a ratio of sums of counts."""
        return localization.figures(weights @ statistics)[metric]


class Localization(Task):
    """Scores over all segments of a split; the classes are those of the data set and the background."""

    section = LocalizationConfig

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        self.views = (View(_VIEW, "all segments"),)
        self.view = _VIEW

    def rows(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the scores of the video, [B,C+1], and of its segments, [B,T,C+1]."""
        return {"video": outputs.video, "segments": outputs.segments[:, :, 0]}

    def predict(self, rows: Rows, view: str) -> Tracks:
        """See `Task`; a segment of the background has no event."""
        numbers = rows["segments"].argmax(axis=-1)
        return {TRACK: numbers[..., None] == np.arange(len(self._classes))}

    def score(self, rows: Rows, truth: Tracks, view: str) -> Scores:
        """See `Task`."""
        predicted = rows["segments"].argmax(axis=-1)
        statistics = localization.counts(predicted, class_numbers(truth[TRACK]), len(self._classes))
        sums = statistics.sum(axis=0)
        metrics = {name: float(value) for name, value in localization.figures(sums).items()}
        return Scores(metrics, self._per_class(sums), statistics.astype(np.float64))

    def references(self, rows: Rows, truth: Tracks, train: Tracks | None) -> dict[str, dict[str, float]]:
        """Return the metrics of predictors that repeat one class over all segments of a video.

        ``video-repeat``: the event that the network predicts for the video ("AVE-repeat" in the paper); ``GT-repeat``: the
        true event of the video; ``majority``: the most frequent class of the training split, if its truth is known.
        """
        numbers, classes = class_numbers(truth[TRACK]), len(self._classes)
        of_video = rows["video"][:, :classes].argmax(axis=-1)
        predicted = {
            "video-repeat": localization.repeat(of_video, numbers.shape[1]),
            "GT-repeat": localization.gt_repeat(numbers, classes),
        }
        if train is not None:
            predicted["majority"] = localization.majority(class_numbers(train[TRACK]), numbers.shape)
        return {name: localization.score(found, numbers, classes) for name, found in predicted.items()}

    def _per_class(self, sums: NDArray[np.int64]) -> dict[str, dict[str, float | None]]:
        found = localization.per_class(sums)
        return {
            name: {metric: _number(values[number]) for metric, values in found.items()}
            for number, name in enumerate((*self._classes, BACKGROUND))
        }


def class_numbers(events: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the class of each segment, [N,T], of events [N,T,C]: the first class of several; C for the background."""
    return np.where(events.any(axis=-1), events.argmax(axis=-1), events.shape[-1])


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
