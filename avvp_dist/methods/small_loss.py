"""Parts shared by Co-teaching+ and JoCoR: forgetting rates, selection of small losses, targets of the selected labels.

Reconstruction: both methods were published for images with one label each. JoMoLD's paper compares with both on HAN without
describing the adaptation. Chosen here:

- A positive weak label of one video in one modality is either selected or left out. Absent labels are always trusted, and
  so is the video's label in the video loss. Each modality has its own forgetting rate, over all classes.
- The published losses are means over the selected examples. Since absent labels are always trained on, a mean over all
  labels would bias the network towards "absent" if few positives are selected. So the k selected of n positives are
  weighted by n / k and represent all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import MethodSection, local_rows
from avvp_dist.methods.heads import han_targets
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition


class SmallLossConfig(MethodSection):
    """Settings of both methods."""

    audio_forget: float = Field(0.05, ge=0, lt=1)
    """Final share tau of positive audio labels to leave out; 0.05 of LLP's (val and test) are noise."""
    visual_forget: float = Field(0.35, ge=0, lt=1)
    """The same for visual labels; 0.35 of LLP's are noise."""
    forget_epochs: int = Field(10, ge=0)
    """Epochs T_k over which these shares grow from 0 (published: 10); 0 applies them from the start."""
    audio_smoothing: float = Field(0.0, ge=0, le=1)
    """Smoothing of the audio target, as in HAN."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target, as in HAN."""

    def forget(self, position: TrainPosition) -> tuple[float, float]:
        """Return the shares of audio and visual labels to leave out: ``min(t / T_k * tau, tau)`` after t epochs (papers)."""
        fraction = min(position.epoch / self.forget_epochs, 1.0) if self.forget_epochs else 1.0
        return fraction * self.audio_forget, fraction * self.visual_forget

    def targets(self, batch: Batch) -> Targets:
        """Return HAN's targets of a batch, before any label is left out."""
        return han_targets(batch, audio_smoothing=self.audio_smoothing, visual_smoothing=self.visual_smoothing)


class GatheredBatch(NamedTuple):
    """Tensors of the global batch, the same on every rank; the axis before B is the modality (audio, visual).

    Attributes:
        targets: [2,B,C], of the guided losses.
        positives: bool [2,B,C], labels to select from.
        probability: [K,2,B,C], of the K networks.
    """

    targets: Tensor
    positives: Tensor
    probability: Tensor

    @classmethod
    def gather(cls, targets: Targets, networks: Sequence[Outputs], batch: Batch, collective: Collective) -> GatheredBatch:
        """Gather the global batch from all ranks, in one collective call."""
        probabilities = [pooled for outputs in networks for pooled in (outputs.audio, outputs.visual)]
        rows = torch.stack([targets.audio, targets.visual, batch.audio_labels, batch.visual_labels, *probabilities], dim=1)
        table = collective.all_gather(rows.float(), batch.total).transpose(0, 1)  # [4+2K,B,C]
        return cls(table[:2], table[2:4] > 0, table[4:].unflatten(0, (-1, 2)))


def smallest_losses(losses: Tensor, candidates: Tensor, forget: Sequence[float]) -> Tensor:
    """Select the candidates with the smallest losses.

    Of n candidates, floor((1 - forget) n) are selected, or all of them if that is 0 (Co-teaching+'s published code). Ties
    are ranked by position in the batch, then by class.

    Args:
        losses: [...,2,B,C], of the global batch, by modality.
        candidates: bool, of that shape or one that expands to it.
        forget: share to leave out, by modality.

    Returns:
        bool [...,2,B,C].
    """
    candidates = candidates.expand_as(losses)
    order = losses.masked_fill(~candidates, torch.inf).flatten(-2).argsort(dim=-1, stable=True)
    position = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, position)
    count = candidates.sum(dim=(-2, -1))  # [...,2]
    selected = torch.stack(
        [((1 - share) * count[..., number].double()).floor() for number, share in enumerate(forget)], dim=-1
    )
    selected = torch.where(selected < 1, count, selected)
    return (rank < selected[..., None]).view_as(losses) & candidates


def keep_selected(targets: Targets, positives: Tensor, selected: Tensor, collective: Collective) -> Targets:
    """Return this rank's targets of a network that is trained on the selected positives only.

    Args:
        targets: of this rank's videos.
        positives, selected: bool [2,B,C], of the global batch.
    """
    positive_weight = positives.sum(dim=(1, 2)) / selected.sum(dim=(1, 2)).clamp(min=1)  # [2]
    weights = torch.where(selected, positive_weight[:, None, None], (~positives).float())
    left_out = positives & ~selected
    return replace(
        targets,
        audio_weights=local_rows(weights[0], collective),
        visual_weights=local_rows(weights[1], collective),
        removed_audio=local_rows(left_out[0], collective),
        removed_visual=local_rows(left_out[1], collective),
    )
