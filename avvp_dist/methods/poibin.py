"""PoiBin (ICCV 2023) on HAN: the number of positive segments of each label is a target of its own.

Multiple-instance learning only states that at least one segment of a label is positive. Here, the number of positive
segments follows a Poisson-binomial distribution given the segments' probabilities, and the likelihood of an estimated number
is maximized. "At least one" is the special case P(count >= 1) = 1 - f(0), which is noisy-or pooling.

Reconstruction: the paper's method text and code were not available. Known from the papers that compare with it: the latent
count, and pseudo-labels that are proportions of positive segments. Chosen here: three stages (train by MIL, count, retrain
from scratch), one estimate of the count from the first network, and the settings of `PoiBinConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.errors import ConfigError
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods.base import CollectStage, Method, MethodSection, SplitTable, TrainStage
from avvp_dist.methods.heads import han_targets, heads_loss
from avvp_dist.methods.losses import modality_targets
from avvp_dist.methods.poisson_binomial import log_count_probability
from avvp_dist.types import MODALITIES, Batch, Outputs, Targets, TrainPosition

_OF_COUNTS = frozenset({"minimum_count"})  # keys that the first training does not depend on
_OF_RETRAINING = frozenset({"count_weight", "count_scale", "absent_counts"})  # nor does the count


class PoiBinConfig(MethodSection):
    """Training with counts of positive segments; every setting is a choice of the reconstruction."""

    stage_epochs: ClassVar[tuple[str, ...]] = ("mil_epochs",)

    name: Literal["poibin"] = "poibin"
    count_weight: float = Field(1.0, ge=0)
    """Weight of the count loss -log f(n) of each modality, beside HAN's losses."""
    count_scale: Literal["label", "segment"] = "label"
    """Unit of the count loss, which is averaged over classes as the other losses are. label: -log f(n) as it is, one
    log-likelihood for each label like the cross-entropy of a pooled probability; segment: divided by the number of segments,
    so that the loss of an absent label is the mean cross-entropy of its segments."""
    absent_counts: bool = True
    """Whether labels that the video does not have contribute, with a count of 0."""
    minimum_count: int = Field(1, ge=0)
    """Smallest count of a label that the video has. 0 removes a label from a modality in which no segment is found."""
    audio_smoothing: float = Field(0.0, ge=0, le=1)
    """Smoothing of the audio target of HAN's losses."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target of HAN's losses."""
    mil_epochs: int | None = Field(None, ge=1)
    """Epochs of the first training; null for train.epochs, which the last stage has."""

    def build(self, classes: Sequence[str], segments: int, tracks: Sequence[str] = MODALITIES) -> Method:
        """HAN's training, counting with its network, training from scratch with the counts."""
        if self.minimum_count > segments:
            raise ConfigError(f"method.minimum_count: {self.minimum_count} is more than the {segments} segments of a video")
        return Method((_Mil(self), _Count(self, classes, segments), _Retrain(self)))


class _Train(TrainStage):
    """HAN's losses on labels of the whole video."""

    def __init__(self, config: PoiBinConfig) -> None:
        self.config = config

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        return heads_loss(outputs, targets)


class _Mil(_Train):
    """Trains the network that counts, as HAN."""

    name = "mil"
    irrelevant = _OF_COUNTS | _OF_RETRAINING

    def __init__(self, config: PoiBinConfig) -> None:
        super().__init__(config)
        self.epochs = config.mil_epochs

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        return han_targets(batch, audio_smoothing=self.config.audio_smoothing, visual_smoothing=self.config.visual_smoothing)


class _Count(CollectStage):
    """Estimates the number of positive segments of each label; stored as its share of all segments, a soft label."""

    name = "counts"
    source = "mil"
    irrelevant = _OF_RETRAINING

    def __init__(self, config: PoiBinConfig, classes: Sequence[str], segments: int) -> None:
        self.classes = tuple(classes)
        self.minimum = config.minimum_count
        self.segments = segments
        self._table = SplitTable()

    def collect(self, outputs: Sequence[Outputs], batch: Batch) -> None:
        (output,) = outputs
        audio, visual = expected_counts(output.segments, self.minimum).unbind(dim=1)
        self._table.add(batch, audio * (batch.audio_labels > 0), visual * (batch.visual_labels > 0))

    def finish(self, collective: Collective, ids: Sequence[str]) -> RefinedLabels:
        counts = zip(MODALITIES, self._table.gather(collective), strict=True)
        return RefinedLabels(
            ids=tuple(ids),
            classes=self.classes,
            video=None,
            tracks={track: (of_track / self.segments).float().cpu().numpy() for track, of_track in counts},
            provenance={"refiner": "poibin", "minimum_count": self.minimum},
        )


class _Retrain(_Train):
    """Trains from scratch with HAN's losses and the likelihood of the counts."""

    name = "count"
    labels_from = "counts"

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        # the labels are shares of segments; HAN's losses are about presence
        audio, visual = ((labels > 0).float() for labels in (batch.audio_labels, batch.visual_labels))
        return Targets(
            video=batch.video_labels,
            audio=modality_targets(audio, batch.weak, self.config.audio_smoothing),
            visual=modality_targets(visual, batch.weak, self.config.visual_smoothing),
        )

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        losses = super().losses(outputs, targets, batch)
        shares = torch.stack([batch.audio_labels, batch.visual_labels], dim=1)  # [B,2,C]
        count = self._count_loss(outputs.segments, shares)
        return {**losses, "total": losses["total"] + self.config.count_weight * count, "count": count}

    def _count_loss(self, segments: Tensor, shares: Tensor) -> Tensor:
        """Return -log f(n), averaged over classes and added over modalities, [B], from [B,T,2,C] and [B,2,C]."""
        length = segments.shape[1]
        counts = (shares * length).round().long()
        loss = -log_count_probability(segments.movedim(1, -1), counts)  # [B,2,C]
        if not self.config.absent_counts:
            loss = loss * (counts > 0)
        if self.config.count_scale == "segment":
            loss = loss / length
        return loss.mean(dim=-1).sum(dim=-1)


def expected_counts(segments: Tensor, minimum: int) -> Tensor:
    """Return the expected number of positive segments, rounded, and at least ``minimum``: [B,T,M,C] -> [B,M,C].

    It is rounded half to even, and cannot exceed T.
    """
    return segments.sum(dim=1).round().clamp(min=min(minimum, segments.shape[1]))
