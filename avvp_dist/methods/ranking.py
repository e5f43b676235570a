"""JoMoLD's batch-level noise ranking (ECCV 2022, section 3.3; published code)."""

from __future__ import annotations

import torch
from torch import Tensor


def budgets(positives: Tensor, ratio: Tensor, carry: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return how many labels of each class can be removed as noise in this batch.

    Args:
        positives: bool [B,C], weak labels of the global batch.
        ratio: float64 [C], noise ratio of each class.
        carry: float64 [C], fractions carried over from earlier batches; None rounds down and drops them (published).

    Returns:
        budget int64 [C], and the fraction to carry over, float64 [C] (zeros without ``carry``).
    """
    exact = ratio * positives.sum(dim=0)
    if carry is not None:
        exact = exact + carry
    budget = exact.floor()
    remainder = exact - budget if carry is not None else torch.zeros_like(exact)
    return budget.long(), remainder


def noisy_masks(
    loss_audio: Tensor, loss_visual: Tensor, positives: Tensor, budget_audio: Tensor, budget_visual: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the labels to remove, given each class's budget.

    A visual label is noise if its audio loss is among the k smallest and its visual loss among the k largest of the class's
    positives; for an audio label it is the other way round. Ties are ranked by position in the batch.

    Args:
        loss_audio, loss_visual: [B,C] element-wise losses of the global batch.
        positives: bool [B,C].
        budget_audio, budget_visual: int64 [C], k of each class.

    Returns:
        noisy_audio, noisy_visual: bool [B,C].
    """
    keys = torch.stack([loss_audio, -loss_audio, loss_visual, -loss_visual]).float()  # [4,B,C]
    keys = keys.masked_fill(~positives, torch.inf)
    order = keys.argsort(dim=1, stable=True)
    position = torch.arange(keys.shape[1], device=keys.device)[None, :, None].expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, position)
    small_audio, large_audio, small_visual, large_visual = rank
    noisy_visual = (small_audio < budget_visual) & (large_visual < budget_visual) & positives
    noisy_audio = (large_audio < budget_audio) & (small_visual < budget_audio) & positives
    return noisy_audio, noisy_visual


def select_noisy(
    loss_audio: Tensor, loss_visual: Tensor, positives: Tensor, ratio_audio: Tensor, ratio_visual: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply the published rule in one call: budgets rounded down, then `noisy_masks`.

    Args:
        loss_audio, loss_visual: [B,C] element-wise losses of the global batch.
        positives: [B,C], weak labels.
        ratio_audio, ratio_visual: [C], share of each class's labels that is noise in that modality.

    Returns:
        noisy_audio, noisy_visual: bool [B,C].
    """
    positives = torch.as_tensor(positives).bool()
    audio, _ = budgets(positives, torch.as_tensor(ratio_audio).double())
    visual, _ = budgets(positives, torch.as_tensor(ratio_visual).double())
    return noisy_masks(torch.as_tensor(loss_audio), torch.as_tensor(loss_visual), positives, audio, visual)


def resolve_overlap(
    noisy_audio: Tensor, noisy_visual: Tensor, loss_audio: Tensor, loss_visual: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the masks without overlap: a label in both masks is kept in the modality with the smaller loss.

    All tensors are [B,C]. The published rule allows the overlap, although a weak label is true in at least one modality.
    """
    both = noisy_audio & noisy_visual
    audio_fits = loss_audio < loss_visual
    return noisy_audio & ~(both & audio_fits), noisy_visual & ~(both & ~audio_fits)
