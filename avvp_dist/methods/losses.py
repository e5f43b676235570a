"""Loss terms that several methods use. They take probabilities or features and return one value per video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.types import Outputs

_EPSILON = 1e-7  # the published code clamps probabilities to [1e-7, 1 - 1e-7]


def elementwise_bce(probability: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross-entropy of clamped probabilities, elementwise.

    torch's own function aborts the process if a probability is NaN; here the loss becomes NaN and training reports it.
    """
    probability = probability.float().clamp(_EPSILON, 1 - _EPSILON)
    return -(target * probability.log() + (1 - target) * (1 - probability).log())


def bce(probability: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy of each video, averaged over classes: [B,C] each -> [B]."""
    return per_video(elementwise_bce(probability, target), weights)


def soft_margin(probability: Tensor, target: Tensor) -> Tensor:
    """Return the multi-label soft margin loss of each video, [B,...,K] each -> [B,...], as AVE's published code computes it.

    That code applies torch's ``MultiLabelSoftMarginLoss``, which expects logits, to probabilities.
    """
    probability = probability.float()
    return -(target * F.logsigmoid(probability) + (1 - target) * F.logsigmoid(-probability)).mean(dim=-1)


LOSSES = {"bce": bce, "soft_margin": soft_margin}
"""Losses of probabilities and targets [B,...,K] -> [B,...] by name."""


def with_background(labels: Tensor, outputs: Outputs) -> Tensor:
    """Return labels [...,C], with a last column for the background if the network's head has it: what is left of 1.

    It is 1 where no label is, 0 next to a label of 1, and the rest of the video next to a label that is a duration.
    """
    if not outputs.head.background:
        return labels
    return torch.cat([labels, (1 - labels.sum(dim=-1, keepdim=True)).clamp(min=0)], dim=-1)


def per_video(losses: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average losses over classes, [B,C] -> [B]; ``weights`` [B,C], if given, multiply the losses first."""
    return (losses if weights is None else weights * losses).mean(dim=-1)


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first || second) + KL(second || first) of clamped binary probabilities, elementwise (JoCoR)."""
    first, second = (probability.float().clamp(_EPSILON, 1 - _EPSILON) for probability in (first, second))
    return (first - second) * (first.logit() - second.logit())


def smooth(labels: Tensor, amount: float) -> Tensor:
    """Smooth labels: ``(1 - amount) * y + amount / 2``; an amount of 0.1 gives 0.95 and 0.05 (HAN; published code)."""
    return (1 - amount) * labels + amount / 2


def modality_targets(labels: Tensor, weak: Tensor, smoothing: float) -> Tensor:
    """Smooth the labels of a modality; a weak label that a refiner removed becomes 0 (MA, JoMoLD; published code)."""
    return smooth(labels, smoothing).masked_fill((weak > 0) & (labels == 0), 0.0)


def contrastive(audio: Tensor, visual: Tensor, temperature: float, diagonal: float = 0.9) -> Tensor:
    """Return JoMoLD's noise-contrastive loss between a video's audio and visual segments (published code).

    Each audio segment is compared with all visual segments of its video. The target assigns ``diagonal`` to the same second
    and spreads the rest evenly. The logarithm is taken outside the sum, unlike in MA's loss.

    Args:
        audio, visual: [B,T,D] segment features.
        temperature: divides the cosine similarity.
        diagonal: share of the target assigned to the same second.

    Returns:
        [B], mean over the T audio segments.
    """
    audio, visual = F.normalize(audio.float(), dim=-1), F.normalize(visual.float(), dim=-1)
    matched = (audio @ visual.transpose(1, 2) / temperature).softmax(dim=-1)  # [B,T,T]
    return -(_diagonal_target(audio, diagonal) * matched).sum(dim=-1).log().mean(dim=-1)


def cross_entropy_contrastive(audio: Tensor, visual: Tensor, temperature: float, diagonal: float = 0.9) -> Tensor:
    """Return MA's intra-video contrastive loss: `contrastive` with the logarithm inside the sum (CVPR 2021; published code).

    MA passes audio features after aggregation and visual features before it, [B,T,D] each; the result is [B].
    """
    similarity = F.normalize(audio.float(), dim=-1) @ F.normalize(visual.float(), dim=-1).transpose(1, 2)  # [B,T,T]
    target = _diagonal_target(audio, diagonal)
    return -(target * (similarity / temperature).log_softmax(dim=-1)).sum(dim=-1).mean(dim=-1)


def _diagonal_target(features: Tensor, diagonal: float) -> Tensor:
    """Return the [T,T] target: ``diagonal`` for the same second, the rest spread evenly over the others."""
    segments = features.shape[1]
    target = torch.full((segments, segments), (1 - diagonal) / max(segments - 1, 1), device=features.device)
    return target.fill_diagonal_(diagonal)
