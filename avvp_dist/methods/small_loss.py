"""What Co-teaching+ and JoCoR share: forgetting, the choice of labels with small losses, HAN's losses over what is chosen.

Reconstruction: both methods were published for images that have one label each; JoMoLD's paper compares with both on HAN and
does not say how. Chosen here:

- What is kept or left out is a positive weak label of one video in one modality. Absent labels are trusted, and so is the
  video's label in the video loss. Each modality has a rate of its own, over all classes.
- The published losses are means over what is kept. Absent labels always being there, a mean over all labels would teach
  "absent" wherever few positives are kept; so those kept stand for all: k of n positives weigh n / k each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from avvp_dist.config import Section
from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import local_rows
from avvp_dist.methods.losses import modality_targets
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition


class SmallLossConfig(Section):
    """Settings of both methods."""

    name: str
    audio_forget: float = Field(0.05, ge=0, lt=1)
    """Share tau of positive audio labels that is left out in the end; 0.05 of LLP's (val and test) are noise."""
    visual_forget: float = Field(0.35, ge=0, lt=1)
    """The same for visual labels; 0.35 of LLP's are noise."""
    forget_epochs: int = Field(10, ge=0)
    """Epochs T_k over which these shares grow from 0 (published: 10); with 0 they are there from the start."""
    audio_smoothing: float = Field(0.0, ge=0, le=1)
    """Smoothing of the audio target, as in HAN."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target, as in HAN."""

    def forget(self, position: TrainPosition) -> tuple[float, float]:
        """Shares of audio and visual labels to leave out now: ``min(t / T_k * tau, tau)`` after t whole epochs (papers)."""
        grown = min(position.epoch / self.forget_epochs, 1.0) if self.forget_epochs else 1.0
        return grown * self.audio_forget, grown * self.visual_forget


class GatheredBatch(NamedTuple):
    """The global batch, as every rank sees it; axis 0 of tables [2,B,C] is the modality.

    Attributes:
        targets: [2,B,C], of the guided losses.
        positives: bool [2,B,C], labels to choose among.
        probability: [K,2,B,C], of the K networks.
    """

    targets: Tensor
    positives: Tensor
    probability: Tensor

    @classmethod
    def gather(cls, targets: Targets, networks: Sequence[Outputs], batch: Batch, collective: Collective) -> GatheredBatch:
        """Puts the ranks' parts together: one exchange."""
        said = [pooled for outputs in networks for pooled in (outputs.audio, outputs.visual)]
        rows = torch.stack([targets.audio, targets.visual, batch.audio_labels, batch.visual_labels, *said], dim=1)
        table = collective.all_gather(rows.float(), batch.total).transpose(0, 1)  # [4+2K,B,C]
        return cls(table[:2], table[2:4] > 0, table[4:].unflatten(0, (-1, 2)))


def han_targets(batch: Batch, config: SmallLossConfig) -> Targets:
    """HAN's targets, where nothing is left out yet."""
    audio = modality_targets(batch.audio_labels, batch.weak, config.audio_smoothing)
    return Targets(batch.video_labels, audio, modality_targets(batch.visual_labels, batch.weak, config.visual_smoothing))


def small_loss(losses: Tensor, candidates: Tensor, forget: Sequence[float]) -> Tensor:
    """The candidates with the smallest losses.

    Of n candidates floor((1 - forget) n) are kept, all of them where that is none (Co-teaching+'s published code). Equal
    losses rank by position in the batch, then by class.

    Args:
        losses: [...,2,B,C], of the global batch, by modality.
        candidates: bool, of that shape or one that expands to it.
        forget: share to leave out, by modality.

    Returns:
        bool [...,2,B,C].
    """
    candidates = candidates.expand_as(losses)
    order = losses.masked_fill(~candidates, torch.inf).flatten(-2).argsort(dim=-1, stable=True)
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, place)
    count = candidates.sum(dim=(-2, -1))  # [...,2]
    kept = torch.stack([((1 - share) * count[..., number].double()).floor() for number, share in enumerate(forget)], dim=-1)
    kept = torch.where(kept < 1, count, kept)
    return (rank < kept[..., None]).view_as(losses) & candidates


def keep(targets: Targets, positives: Tensor, kept: Tensor, collective: Collective) -> Targets:
    """This rank's targets of a network that is trained on the positives kept alone.

    Args:
        targets: of this rank's videos.
        positives, kept: bool [2,B,C], of the global batch.
    """
    stand_for = positives.sum(dim=(1, 2)) / kept.sum(dim=(1, 2)).clamp(min=1)  # [2]
    weights = torch.where(kept, stand_for[:, None, None], (~positives).float())
    left_out = positives & ~kept
    return replace(
        targets,
        audio_weights=local_rows(weights[0], collective),
        visual_weights=local_rows(weights[1], collective),
        removed_audio=local_rows(left_out[0], collective),
        removed_visual=local_rows(left_out[1], collective),
    )
