"""Loss terms that methods share. Probabilities in, one number a video out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-7  # published code clamps probabilities to [1e-7, 1 - 1e-7]


def elementwise_bce(probability: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of clamped probabilities, same shape as its arguments.

    Not torch's own, which ends the process where a probability is NaN instead of letting the loss tell.
    """
    probability = probability.float().clamp(_EPSILON, 1 - _EPSILON)
    return -(target * probability.log() + (1 - target) * (1 - probability).log())


def bce(probability: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of each video, mean over classes: [B,C] each -> [B]."""
    return per_video(elementwise_bce(probability, target), weights)


def per_video(losses: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over classes, [B,C] -> [B]; with ``weights`` [B,C], what each label's loss counts for."""
    return (losses if weights is None else weights * losses).mean(dim=-1)


def symmetric_kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one || other) + KL(other || one) of clamped binary probabilities, same shape as its arguments (JoCoR)."""
    one, other = (probability.float().clamp(_EPSILON, 1 - _EPSILON) for probability in (one, other))
    return (one - other) * (one.logit() - other.logit())


def smooth(labels: Tensor, amount: float) -> Tensor:
    """Label smoothing: ``(1 - amount) * y + amount / 2``, so 0.1 gives 0.95 and 0.05 (HAN; published code)."""
    return (1 - amount) * labels + amount / 2


def modality_targets(labels: Tensor, weak: Tensor, smoothing: float) -> Tensor:
    """Smoothed labels of one modality; a weak label that a refiner cleared is exactly 0 (MA, JoMoLD; published code)."""
    return smooth(labels, smoothing).masked_fill((weak > 0) & (labels == 0), 0.0)


def contrastive(audio: Tensor, visual: Tensor, temperature: float, diagonal: float = 0.9) -> Tensor:
    """Noise-contrastive loss of JoMoLD between a video's audio and visual segments (published code).

    Each audio segment is matched against the video's visual segments; the target puts ``diagonal`` on the same second and
    spreads the rest. The logarithm stands outside the sum, unlike in MA's loss.

    Args:
        audio, visual: [B,T,D] segment features.
        temperature: divides the cosine similarity.
        diagonal: share of the target on the same second.

    Returns:
        [B], mean over the T audio segments.
    """
    audio, visual = F.normalize(audio.float(), dim=-1), F.normalize(visual.float(), dim=-1)
    matched = (audio @ visual.transpose(1, 2) / temperature).softmax(dim=-1)  # [B,T,T]
    return -(_diagonal_target(audio, diagonal) * matched).sum(dim=-1).log().mean(dim=-1)


def cross_entropy_contrastive(audio: Tensor, visual: Tensor, temperature: float, diagonal: float = 0.9) -> Tensor:
    """Intra-video contrastive loss of MA (CVPR 2021; published code): `contrastive` with the logarithm inside the sum.

    Takes audio features after aggregation and visual ones before it, [B,T,D] each; gives [B].
    """
    similarity = F.normalize(audio.float(), dim=-1) @ F.normalize(visual.float(), dim=-1).transpose(1, 2)  # [B,T,T]
    target = _diagonal_target(audio, diagonal)
    return -(target * (similarity / temperature).log_softmax(dim=-1)).sum(dim=-1).mean(dim=-1)


def _diagonal_target(features: Tensor, diagonal: float) -> Tensor:
    """``diagonal`` on the same second, the rest spread over the others, [T,T]."""
    segments = features.shape[1]
    target = torch.full((segments, segments), (1 - diagonal) / max(segments - 1, 1), device=features.device)
    return target.fill_diagonal_(diagonal)
