"""Audio-visual video parsing: classes per second and modality, on LLP (HAN, ECCV 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from avvp_dist.metrics import parsing
from avvp_dist.metrics.names import KINDS, LEVELS, METRIC_HEADS, METRIC_TITLES, METRICS, PROTOCOLS, Protocol
from avvp_dist.metrics.significance import mean_of_videos
from avvp_dist.tasks.base import Floats, Metric, Rows, Scores, Task, TaskSection, Tracks, View
from avvp_dist.types import MODALITIES, Batch, Outputs

_SPEECH = "Speech"
_WITHOUT_SPEECH = "without_speech"
_COLUMNS = ("audio", "visual", "event", "audio_visual")  # of each level, in `metrics.parsing.Scores.per_video`


class ParsingConfig(TaskSection):
    """Audio-visual video parsing: protocol and thresholds that turn probabilities into predictions."""

    name: Literal["parsing"] = "parsing"
    tracks = MODALITIES
    metrics = tuple(
        Metric(f"{level}.{metric}", METRIC_TITLES[metric], METRIC_HEADS[metric], level)
        for level in LEVELS
        for metric in METRICS
    )
    class_metrics = tuple(
        Metric(f"{level}.{kind}", METRIC_TITLES[kind], METRIC_HEADS[kind], level) for level in LEVELS for kind in KINDS
    )
    default_metric = "segment.type"

    protocol: Protocol = "joint"
    """Video-level filter: the joint video probability (HAN), the modality's own (MA, JoMoLD), or none."""
    segment_threshold: float = Field(0.5, ge=0, le=1)
    """Smallest probability of a segment that counts as a prediction."""
    video_threshold: float = Field(0.5, ge=0, le=1)
    """Smallest probability that passes the video-level filter."""

    def build(self, classes: Sequence[str]) -> Parsing:
        """See `TaskSection`."""
        return Parsing(self, classes)

    @classmethod
    def recompute(cls, statistics: Floats, weights: Floats, metric: str) -> Floats:
        """See `TaskSection`: every metric is a mean over videos."""
        return mean_of_videos(_per_video(statistics, metric)[:, None], weights)

    @classmethod
    def inconsistent(cls, figures: Mapping[str, float]) -> bool:
        """See `TaskSection`: Type is the mean of audio, visual and audio-visual."""
        for level in LEVELS:
            kinds, mean = [figures.get(f"{level}.{kind}") for kind in KINDS], figures.get(f"{level}.type")
            known = [figure for figure in kinds if figure is not None]
            if mean is not None and len(known) == len(KINDS) and abs(sum(known) / len(KINDS) - mean) >= 0.11:
                return True
        return False


class Parsing(Task):
    """Scores of parsing under the three protocols, each also without Speech.

    Speech alone determines much of the official visual score: half of the videos contain it, mostly inaudible to the eye.
    """

    section = ParsingConfig

    def __init__(self, config: ParsingConfig, classes: Sequence[str]) -> None:
        self._config = config
        self._classes = tuple(classes)
        self._others = [number for number, name in enumerate(classes) if name != _SPEECH]
        whole = [View(protocol, f"{protocol} protocol") for protocol in PROTOCOLS]
        subsets = [
            View(f"{view.name}/{_WITHOUT_SPEECH}", f"{view.title}, without {_SPEECH}", view.name, _WITHOUT_SPEECH)
            for view in whole
        ]
        has_subsets = 0 < len(self._others) < len(self._classes)
        self.views = (*whole, *(subsets if has_subsets else ()))
        self.view = config.protocol

    def rows(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the probabilities of videos [B,C], modalities [B,2,C] and segments [B,T,2,C]."""
        return {"video": outputs.video, "modalities": outputs.modalities, "segments": outputs.segments}

    def predict(self, rows: Rows, view: str) -> Tracks:
        """See `Task`; predictions do not depend on the subset of classes."""
        protocol: Any = view.partition("/")[0]
        found = parsing.apply_protocol(
            rows["video"],
            rows["modalities"][:, 0],
            rows["modalities"][:, 1],
            rows["segments"],
            protocol,
            self._config.segment_threshold,
            self._config.video_threshold,
        )
        return dict(zip(MODALITIES, found, strict=True))

    def score(self, rows: Rows, truth: Tracks, view: str) -> Scores:
        """See `Task`.

        Raises:
            ValueError: shapes that do not fit together, or another number of classes than the task has.
        """
        if {array.shape[-1] for array in truth.values()} != {len(self._classes)}:
            raise ValueError(f"truth: expected {len(self._classes)} classes, got {truth[MODALITIES[0]].shape[-1]}")
        predicted = self.predict(rows, view)
        pairs = [*(predicted[name] for name in MODALITIES), *(truth[name] for name in MODALITIES)]
        subset = view.endswith(_WITHOUT_SPEECH)
        scored = parsing.score(*(array[..., self._others] if subset else array for array in pairs))
        metrics = {f"{level}.{name}": value for level in LEVELS for name, value in getattr(scored, level).items()}
        return Scores(
            {metric.name: metrics[metric.name] for metric in ParsingConfig.metrics},
            {} if subset else self._per_class(pairs),
            scored.per_video,
        )

    def settings(self) -> dict[str, float]:
        """See `Task`."""
        return {"segment_threshold": self._config.segment_threshold, "video_threshold": self._config.video_threshold}

    def _per_class(self, pairs: Sequence[np.ndarray]) -> dict[str, dict[str, float | None]]:
        pooled = parsing.per_class(*pairs)
        return {
            name: {f"{level}.{kind}": _number(pooled[level][kind][c]) for level in LEVELS for kind in KINDS}
            for c, name in enumerate(self._classes)
        }


def _per_video(statistics: Floats, metric: str) -> Floats:
    """Return a metric of each video in percent, [N]; its mean over videos is the metric of the split."""
    level, _, name = metric.partition(".")
    start = len(_COLUMNS) * LEVELS.index(level)
    columns = dict(zip(_COLUMNS, 100 * statistics.T[start : start + len(_COLUMNS)], strict=True))
    return np.mean([columns[kind] for kind in KINDS], axis=0) if name == "type" else columns[name]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
