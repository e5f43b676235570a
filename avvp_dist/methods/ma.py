"""MA (CVPR 2021): exploring heterogeneous clues, the exchange-based label refinement.

Three stages: base training with an intra-video contrastive loss; an exchange of audio between videos without a common label,
which shows in which modality an event does not occur; a training from scratch on the labels that remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from avvp_dist.config import Section
from avvp_dist.dist.collective import Collective
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods.base import CollectStage, Method, SplitTable, Stage, TrainStage
from avvp_dist.methods.losses import bce, cross_entropy_contrastive, modality_targets
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition

_OF_EXCHANGE = frozenset({"refine", "rule", "aliasing", "partners", "partner_seed"})  # keys that come after base training


class MaConfig(Section):
    """MA's training; defaults are the published code's."""

    name: Literal["ma"] = "ma"
    contrastive_weight: float = Field(1.0, ge=0)
    """Weight of the intra-video contrastive loss; 0 is the paper's table without it."""
    temperature: float = Field(0.2, gt=0)
    """Temperature tau of the contrastive loss."""
    refine: Literal["both", "audio", "visual", "none"] = "both"
    """Modalities whose labels the exchange may clear; none is base training alone."""
    rule: Literal["published", "paper"] = "published"
    """published: both heads below half the class's relative error; paper: the modality's own head below 0.5."""
    aliasing: Literal["published", "fixed"] = "published"
    """published: clearing an audio label clears the video's label too (a slip of the authors' code); fixed: it does not."""
    partners: int = Field(1, ge=1)
    """Partners a video is exchanged with; probabilities are averaged over them (published: 1)."""
    partner_seed: int = Field(2, ge=0)
    """Root of the choice of partners (published: the second step's seed 2)."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target; a cleared label's target is exactly 0."""


class Ma(Method):
    """Base training, exchange, training on refined labels."""

    def __init__(self, config: MaConfig, classes: Sequence[str], segments: int) -> None:
        self.config = config
        self.classes = tuple(classes)

    def stages(self) -> tuple[Stage, ...]:
        """See `Method`."""
        base = _Train(self.config, "base")
        if self.config.refine == "none":
            return (base,)
        return base, _Exchange(self.config, self.classes), _Train(self.config, "retrain", labels_from="exchange")


def exchange_rule(
    weak: Tensor,
    audio: Tensor,
    visual: Tensor,
    audio_given_swapped_audio: Tensor,
    visual_given_swapped_audio: Tensor,
    audio_given_swapped_visual: Tensor,
    visual_given_swapped_visual: Tensor,
) -> tuple[Tensor, Tensor]:
    """Labels that the exchange clears (published code).

    With another video's sound, what both heads still report must be in the picture; what neither reports is not.
    Probabilities count relative to the class's error on the original videos, divided by the largest error of any class, so
    the threshold is 0.5 for the worst class only. A class without error is never cleared.

    Args:
        weak: [N,C] weak labels of the training split.
        audio, visual: [N,C] pooled probabilities of the original videos.
        audio_given_swapped_audio, visual_given_swapped_audio: the same with a partner's sound.
        audio_given_swapped_visual, visual_given_swapped_visual: the same with a partner's picture.

    Returns:
        cleared_audio, cleared_visual: bool [N,C].
    """
    labels = torch.as_tensor(weak).bool()
    audio_error = _relative_error(torch.as_tensor(audio), labels)
    visual_error = _relative_error(torch.as_tensor(visual), labels)

    def low(probability: Tensor, error: Tensor) -> Tensor:
        return torch.as_tensor(probability).double() / error < 0.5  # 0 / 0 is not below anything

    cleared_visual = labels & low(visual_given_swapped_audio, visual_error) & low(audio_given_swapped_audio, visual_error)
    cleared_audio = labels & low(audio_given_swapped_visual, audio_error) & low(visual_given_swapped_visual, audio_error)
    return cleared_audio, cleared_visual


def _relative_error(probability: Tensor, labels: Tensor) -> Tensor:
    """Each class's error rate over the split, relative to the worst class's; float64 [C]."""
    errors = ((probability > 0.5) != labels).double().mean(dim=0)
    return errors / errors.max()


class _Train(TrainStage):
    """Base training (on weak labels) and retraining (on refined ones): the same losses."""

    def __init__(self, config: MaConfig, name: str, labels_from: str | None = None) -> None:
        self.config = config
        self.name = name
        self.labels_from = labels_from
        self.irrelevant = frozenset() if labels_from else _OF_EXCHANGE

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        audio = modality_targets(batch.audio_labels, batch.weak, 0.0)
        visual = modality_targets(batch.visual_labels, batch.weak, self.config.visual_smoothing)
        return Targets(batch.video_labels, audio, visual)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        video = bce(outputs.video, targets.video)
        audio = bce(outputs.audio, targets.audio)
        visual = bce(outputs.visual, targets.visual)
        total = {"video": video, "audio": audio, "visual": visual}
        if not self.config.contrastive_weight:
            return {"total": video + audio + visual, **total}
        nce = cross_entropy_contrastive(outputs.audio_features, outputs.visual_inputs, self.config.temperature)
        return {"total": video + audio + visual + self.config.contrastive_weight * nce, **total, "contrastive": nce}


class _Exchange(CollectStage):
    """Runs the base network on original and exchanged videos and clears labels by `exchange_rule`."""

    name = "exchange"
    source = "base"

    def __init__(self, config: MaConfig, classes: Sequence[str]) -> None:
        self.config = config
        self.classes = tuple(classes)
        self.partners = config.partners
        self.partner_seed = config.partner_seed
        self._table = SplitTable()

    def inputs(self, batch: Batch) -> Sequence[Batch]:
        """Original, then for each partner the video with its sound and with its picture."""
        exchanged = [pair for other in batch.partners for pair in (batch.with_audio_of(other), other.with_audio_of(batch))]
        return (batch, *exchanged)

    def collect(self, outputs: Sequence[Outputs], batch: Batch) -> None:
        original, *exchanged = outputs
        columns = [original.audio, original.visual]
        for swapped in (exchanged[0::2], exchanged[1::2]):  # with the partners' sound, with the partners' picture
            columns += [
                torch.stack([said.audio for said in swapped]).mean(0),
                torch.stack([said.visual for said in swapped]).mean(0),
            ]
        self._table.add(batch, batch.weak, *columns)

    def finish(self, collective: Collective, ids: Sequence[str]) -> RefinedLabels:
        weak, *probabilities = self._table.gather(collective)
        labels = weak > 0
        if self.config.rule == "published":
            cleared_audio, cleared_visual = exchange_rule(weak, *probabilities)
        else:
            _, _, _, visual_left, audio_left, _ = probabilities
            cleared_audio, cleared_visual = labels & (audio_left < 0.5), labels & (visual_left < 0.5)
        if self.config.refine == "audio":
            cleared_visual = torch.zeros_like(cleared_visual)
        if self.config.refine == "visual":
            cleared_audio = torch.zeros_like(cleared_audio)
        video = labels & ~cleared_audio if self.config.aliasing == "published" else labels
        return RefinedLabels(
            ids=tuple(ids),
            classes=self.classes,
            video=video.float().cpu().numpy(),
            audio=(labels & ~cleared_audio).float().cpu().numpy(),
            visual=(labels & ~cleared_visual).float().cpu().numpy(),
            provenance={"refiner": "ma", **self.config.model_dump(include=set(_OF_EXCHANGE))},
        )
