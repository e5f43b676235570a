"""Predictions of a network for a split, and their scores under each protocol."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from avvp_dist.config import Section
from avvp_dist.dist.runtime import Runtime
from avvp_dist.loading.split import SplitReader
from avvp_dist.metrics.names import DEFAULT_SCORE, LEVELS, PROTOCOLS, SCORES, Protocol
from avvp_dist.metrics.parsing import Probabilities, apply_protocol, evaluate, per_video, score
from avvp_dist.metrics.per_video import PerVideo
from avvp_dist.shards.index import Labels


class EvaluateConfig(Section):
    """Thresholds and protocol that turn probabilities into predictions, and selection of the best epoch."""

    protocol: Protocol = "joint"
    """Video-level filter: the joint video probability (HAN), the modality's own (MA, JoMoLD), or none."""
    segment_threshold: float = Field(0.5, ge=0, le=1)
    """Smallest probability of a segment that counts as a prediction."""
    video_threshold: float = Field(0.5, ge=0, le=1)
    """Smallest probability that passes the video-level filter."""
    select: Literal[(*SCORES, "last")] = DEFAULT_SCORE  # type: ignore[valid-type]
    """Score on val that selects the best epoch; last selects the last epoch."""
    ties: Literal["later", "first"] = "later"
    """Which of equally good epochs is selected: the later (HAN, MA, JoMoLD) or the first (VALOR); published code."""
    batch_size: int = Field(256, ge=1, le=10_000_000)
    """Number of videos that a rank evaluates at a time."""

    @property
    def monitored(self) -> str:
        """Name of the score that progress reports show."""
        return DEFAULT_SCORE if self.select == "last" else self.select

    def is_better(self, value: float, best: float) -> bool:
        """Return whether an epoch with score ``value`` replaces the previous best epoch."""
        return self.select == "last" or value > best or (self.ties == "later" and value == best)


def predict(
    model: nn.Module, split: SplitReader, runtime: Runtime, *, cross_modal: bool, batch_size: int, bfloat16: bool = False
) -> Probabilities:
    """Return the probabilities of all videos in the split's order, the same on every rank."""
    collective = runtime.collective
    rows, indices = [], []
    batches = split.iter_all(batch_size, collective.rank, collective.world_size)
    model.eval()
    with closing(batches), torch.inference_mode(), torch.autocast(runtime.device.type, torch.bfloat16, enabled=bfloat16):
        for batch in batches:
            outputs = model(batch, cross_modal=cross_modal)
            pooled = torch.stack([outputs.video, outputs.audio, outputs.visual], dim=1)  # [B,3,C]
            rows.append(torch.cat([pooled, outputs.segments.flatten(1, 2)], dim=1))  # [B,3+2T,C]
            indices.append(batch.index)
        order = collective.all_gather(torch.cat(indices)).argsort()
        table = collective.all_gather(torch.cat(rows))[order].cpu().numpy()
    segments = table[:, 3:].reshape(len(table), -1, 2, table.shape[-1])
    return Probabilities(video=table[:, 0], audio=table[:, 1], visual=table[:, 2], segments=segments)


def decide(probabilities: Probabilities, config: EvaluateConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return audio and visual predictions under the config's protocol, bool [N,T,C] each."""
    return apply_protocol(
        probabilities.video,
        probabilities.audio,
        probabilities.visual,
        probabilities.segments,
        config.protocol,
        config.segment_threshold,
        config.video_threshold,
    )


def quick_scores(probabilities: Probabilities, labels: Labels, config: EvaluateConfig) -> dict[str, float]:
    """Return the ten scores under the config's protocol, as ``{"segment.type": ...}``."""
    scores = score(*decide(probabilities, config), *_truth(labels))
    return {f"{level}.{name}": value for level in LEVELS for name, value in getattr(scores, level).items()}


def all_scores(
    probabilities: Probabilities, labels: Labels, config: EvaluateConfig, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Return the scores under every protocol, per class and without Speech, as stored in result.json."""
    truth = _truth(labels)
    return {
        protocol: evaluate(probabilities, *truth, classes, protocol, config.segment_threshold, config.video_threshold)
        for protocol in PROTOCOLS
    }


def scores_of_videos(
    probabilities: Mapping[str, Probabilities],
    labels: Mapping[str, Labels],
    config: EvaluateConfig,
    classes: tuple[str, ...],
) -> PerVideo:
    """Return the scores of each video, whose means `all_scores` reports, for every split in ``probabilities``."""
    values: dict[tuple[str, str, bool], np.ndarray] = {}
    for split, of_split in probabilities.items():
        truth = _truth(labels[split])
        for protocol in PROTOCOLS:
            with_all_classes, without_speech = per_video(
                of_split, *truth, classes, protocol, config.segment_threshold, config.video_threshold
            )
            values[split, protocol, False] = with_all_classes
            if without_speech is not None:
                values[split, protocol, True] = without_speech
    return PerVideo({split: tuple(labels[split].ids) for split in probabilities}, values)


def _truth(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    assert labels.truth is not None  # experiments.run.open_data refuses data without it
    return labels.truth["audio"], labels.truth["visual"]
