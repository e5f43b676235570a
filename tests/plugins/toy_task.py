"""A task of another package: two classes, one track, a metric of its own for which less is better."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from avvp_dist.tasks.base import Metric, Rows, Scores, Task, TaskSection, Tracks, View
from avvp_dist.types import Batch, Outputs


class ToyConfig(TaskSection):
    """Counts wrong seconds."""

    name: Literal["toy"] = "toy"
    tracks: ClassVar[tuple[str, ...]] = ("audio", "visual")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("errors", "wrong seconds", "Err", unit="seconds", higher_is_better=False),
        Metric("accuracy", "right seconds", "Acc"),
    )
    class_metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", "right seconds", "Acc"),)
    default_metric: ClassVar[str] = "errors"
    threshold: float = 0.5

    def build(self, classes: Sequence[str]) -> "Toy":
        return Toy(self, classes)

    @classmethod
    def recompute(cls, statistics, weights, metric):
        wrong, seconds = (weights @ statistics).T
        return wrong / weights.sum(axis=1) if metric == "errors" else 100 * (1 - wrong / seconds)


class Toy(Task):
    """See `ToyConfig`."""

    section = ToyConfig

    def __init__(self, config: ToyConfig, classes: Sequence[str]) -> None:
        self.config, self.classes = config, classes
        self.views = (View("whole", "all classes"), View("whole/first", "first class", "whole", "first"))
        self.view = "whole"

    def rows(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        return {"probability": outputs.segments}

    def predict(self, rows: Rows, view: str) -> Tracks:
        found = rows["probability"] >= self.config.threshold
        return {track: found[:, :, number] for number, track in enumerate(ToyConfig.tracks)}

    def score(self, rows: Rows, truth: Tracks, view: str) -> Scores:
        predicted = self.predict(rows, view)
        shown = slice(1) if view == "whole/first" else slice(None)
        wrong = np.stack([predicted[track] != truth[track] for track in truth], axis=2)[..., shown]  # [N,T,2,C]
        statistics = np.stack([wrong.sum(axis=(1, 2, 3)), np.full(len(wrong), wrong[0].size)], axis=1).astype(float)
        metrics = {
            m.name: float(ToyConfig.recompute(statistics, np.ones((1, len(wrong))), m.name)[0]) for m in ToyConfig.metrics
        }
        right = 100 * (1 - wrong.mean(axis=(0, 1, 2)))
        per_class = (
            {}
            if view == "whole/first"
            else {name: {"accuracy": float(value)} for name, value in zip(self.classes, right, strict=True)}
        )
        return Scores(metrics, per_class, statistics)
