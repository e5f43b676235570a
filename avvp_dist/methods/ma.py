"""MA (CVPR 2021): exploring heterogeneous clues; label refinement by exchanging modalities between videos.

Three stages: base training with an intra-video contrastive loss; an exchange of audio between videos without a common label,
which shows in which modality an event does not occur; training from scratch on the remaining labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods.base import CollectStage, Method, MethodSection, SplitTable, TrainStage
from avvp_dist.methods.heads import han_targets, heads_loss
from avvp_dist.methods.losses import cross_entropy_contrastive
from avvp_dist.types import MODALITIES, Batch, Outputs, Targets, TrainPosition

_OF_EXCHANGE = frozenset({"refine", "rule", "aliasing", "partners", "partner_seed"})  # keys that base training does not use


class MaConfig(MethodSection):
    """MA's training; defaults are the published code's."""

    name: Literal["ma"] = "ma"
    contrastive_weight: float = Field(1.0, ge=0)
    """Weight of the intra-video contrastive loss; 0 is the paper's table without it."""
    temperature: float = Field(0.2, gt=0)
    """Temperature tau of the contrastive loss."""
    refine: Literal["both", "audio", "visual", "none"] = "both"
    """Modalities from which the exchange can remove labels; none runs base training only."""
    rule: Literal["published", "paper"] = "published"
    """published: both heads below half the class's relative error; paper: the modality's own head below 0.5."""
    aliasing: Literal["published", "fixed"] = "published"
    """published: removing an audio label also removes the video's label (a bug of the authors' code); fixed: it does not."""
    partners: int = Field(1, ge=1)
    """Number of partner videos to exchange with; probabilities are averaged over them (published: 1)."""
    partner_seed: int = Field(2, ge=0)
    """Seed of the draw of partners (published: 2, the seed of the second step)."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target; the target of a removed label is exactly 0."""

    def build(self, classes: Sequence[str], segments: int, tracks: Sequence[str] = MODALITIES) -> Method:
        """Base training, exchange, training on refined labels; base training only with ``refine`` none."""
        base = _Train(self, "base")
        if self.refine == "none":
            return Method((base,))
        return Method((base, _Exchange(self, classes), _Train(self, "retrain", labels_from="exchange")))


def exchange_rule(
    weak: Tensor,
    audio: Tensor,
    visual: Tensor,
    audio_given_swapped_audio: Tensor,
    visual_given_swapped_audio: Tensor,
    audio_given_swapped_visual: Tensor,
    visual_given_swapped_visual: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the labels that the exchange removes (published code).

    After a video's audio is replaced by another video's, an event that both heads still report must be visual, and one that
    neither reports is not. Probabilities are divided by the class's error on the original videos, relative to the largest
    error of any class, so that the threshold is 0.5 for the worst class only. Labels of a class without error are never
    removed.

    Args:
        weak: [N,C] weak labels of the training split.
        audio, visual: [N,C] pooled probabilities of the original videos.
        audio_given_swapped_audio, visual_given_swapped_audio: the same with a partner's audio.
        audio_given_swapped_visual, visual_given_swapped_visual: the same with a partner's visual streams.

    Returns:
        cleared_audio, cleared_visual: bool [N,C].
    """
    labels = torch.as_tensor(weak).bool()
    audio_error = _relative_error(torch.as_tensor(audio), labels)
    visual_error = _relative_error(torch.as_tensor(visual), labels)

    def low(probability: Tensor, error: Tensor) -> Tensor:
        return torch.as_tensor(probability).double() / error < 0.5  # 0 / 0 is NaN, which is not below 0.5

    cleared_visual = labels & low(visual_given_swapped_audio, visual_error) & low(audio_given_swapped_audio, visual_error)
    cleared_audio = labels & low(audio_given_swapped_visual, audio_error) & low(visual_given_swapped_visual, audio_error)
    return cleared_audio, cleared_visual


def _relative_error(probability: Tensor, labels: Tensor) -> Tensor:
    """Return the error rate of each class over the split, relative to that of the worst class; float64 [C]."""
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
        return han_targets(batch, visual_smoothing=self.config.visual_smoothing)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        losses = heads_loss(outputs, targets)
        if not self.config.contrastive_weight:
            return losses
        nce = cross_entropy_contrastive(outputs.audio_features, outputs.visual_inputs, self.config.temperature)
        return {**losses, "total": losses["total"] + self.config.contrastive_weight * nce, "contrastive": nce}


class _Exchange(CollectStage):
    """Runs the base network on original and exchanged videos and removes labels by `exchange_rule`."""

    name = "exchange"
    source = "base"

    def __init__(self, config: MaConfig, classes: Sequence[str]) -> None:
        self.config = config
        self.classes = tuple(classes)
        self.partners = config.partners
        self.partner_seed = config.partner_seed
        self._table = SplitTable()

    def inputs(self, batch: Batch) -> Sequence[Batch]:
        """The original batch, then for each partner the video with the partner's audio and with its visual streams."""
        exchanged = [pair for other in batch.partners for pair in (batch.with_audio_of(other), other.with_audio_of(batch))]
        return (batch, *exchanged)

    def collect(self, outputs: Sequence[Outputs], batch: Batch) -> None:
        original, *exchanged = outputs
        columns = [original.audio, original.visual]
        for swapped in (exchanged[0::2], exchanged[1::2]):  # with the partners' audio, with their visual streams
            columns += [
                torch.stack([output.audio for output in swapped]).mean(0),
                torch.stack([output.visual for output in swapped]).mean(0),
            ]
        self._table.add(batch, batch.weak, *columns)

    def finish(self, collective: Collective, ids: Sequence[str]) -> RefinedLabels:
        weak, *probabilities = self._table.gather(collective)
        labels = weak > 0
        if self.config.rule == "published":
            cleared_audio, cleared_visual = exchange_rule(weak, *probabilities)
        else:
            _, _, _, visual_kept, audio_kept, _ = probabilities
            cleared_audio, cleared_visual = labels & (audio_kept < 0.5), labels & (visual_kept < 0.5)
        if self.config.refine == "audio":
            cleared_visual = torch.zeros_like(cleared_visual)
        if self.config.refine == "visual":
            cleared_audio = torch.zeros_like(cleared_audio)
        video = labels & ~cleared_audio if self.config.aliasing == "published" else labels
        return RefinedLabels(
            ids=tuple(ids),
            classes=self.classes,
            video=video.float().cpu().numpy(),
            tracks={
                "audio": (labels & ~cleared_audio).float().cpu().numpy(),
                "visual": (labels & ~cleared_visual).float().cpu().numpy(),
            },
            provenance={"refiner": "ma", **self.config.model_dump(include=set(_OF_EXCHANGE))},
        )
