"""What a network says about a split, and the scores of it under each protocol."""

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
    """How predictions are made of probabilities, and what the best epoch is."""

    protocol: Protocol = "joint"
    """Video-level filter: the joint video probability (HAN), the modality's own (MA, JoMoLD), or none."""
    segment_threshold: float = Field(0.5, ge=0, le=1)
    """A second is predicted when its probability reaches this."""
    video_threshold: float = Field(0.5, ge=0, le=1)
    """The video-level filter lets through what reaches this."""
    select: Literal[(*SCORES, "last")] = DEFAULT_SCORE  # type: ignore[valid-type]
    """Score on val that names the best epoch; last takes the last epoch."""
    ties: Literal["later", "first"] = "later"
    """Which of equally good epochs is the best: the later (HAN, MA, JoMoLD) or the first (VALOR); published code."""
    batch_size: int = Field(256, ge=1, le=10_000_000)
    """Videos a rank evaluates at a time."""

    @property
    def watched(self) -> str:
        """The score a person watches while training goes on."""
        return DEFAULT_SCORE if self.select == "last" else self.select

    def replaces(self, value: float, best: float) -> bool:
        """Whether an epoch with this score takes the place of the best one before it."""
        return self.select == "last" or value > best or (self.ties == "later" and value == best)


def predict(
    model: nn.Module, split: SplitReader, runtime: Runtime, *, cross_modal: bool, batch_size: int, bfloat16: bool = False
) -> Probabilities:
    """Probabilities of all videos, each once, in the split's order; the same on every rank."""
    collective = runtime.collective
    rows, numbers = [], []
    batches = split.iter_all(batch_size, collective.rank, collective.world_size)
    model.eval()
    with closing(batches), torch.inference_mode(), torch.autocast(runtime.device.type, torch.bfloat16, enabled=bfloat16):
        for batch in batches:
            outputs = model(batch, cross_modal=cross_modal)
            pooled = torch.stack([outputs.video, outputs.audio, outputs.visual], dim=1)  # [B,3,C]
            rows.append(torch.cat([pooled, outputs.segments.flatten(1, 2)], dim=1))  # [B,3+2T,C]
            numbers.append(batch.index)
        place = collective.all_gather(torch.cat(numbers)).argsort()
        table = collective.all_gather(torch.cat(rows))[place].cpu().numpy()
    segments = table[:, 3:].reshape(len(table), -1, 2, table.shape[-1])
    return Probabilities(video=table[:, 0], audio=table[:, 1], visual=table[:, 2], segments=segments)


def decide(probabilities: Probabilities, config: EvaluateConfig) -> tuple[np.ndarray, np.ndarray]:
    """Audio and visual predictions under the config's own protocol, bool [N,T,C] each."""
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
    """The ten figures under the config's own protocol, as ``{"segment.type": ...}``."""
    scores = score(*decide(probabilities, config), *_truth(labels))
    return {f"{level}.{name}": value for level in LEVELS for name, value in getattr(scores, level).items()}


def all_scores(
    probabilities: Probabilities, labels: Labels, config: EvaluateConfig, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Scores under every protocol, per class and without Speech, as result.json holds them."""
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
    """What the figures of `all_scores` are means of, for every split there are probabilities of."""
    values: dict[tuple[str, str, bool], np.ndarray] = {}
    for split, found in probabilities.items():
        truth = _truth(labels[split])
        for protocol in PROTOCOLS:
            everything, without = per_video(
                found, *truth, classes, protocol, config.segment_threshold, config.video_threshold
            )
            values[split, protocol, False] = everything
            if without is not None:
                values[split, protocol, True] = without
    return PerVideo({split: tuple(labels[split].ids) for split in probabilities}, values)


def _truth(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    assert labels.audio is not None  # app.open_data refuses data without it
    assert labels.visual is not None
    return labels.audio, labels.visual
