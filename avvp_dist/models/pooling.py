"""Heads (what scores mean), and multimodal MIL pooling, which turns segment features into probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from avvp_dist.types import Outputs


@dataclass(frozen=True)
class SigmoidHead:
    """One probability per class, independent of the other classes."""

    background: ClassVar[bool] = False

    def pool(self, outputs: Outputs, start: int, stop: int) -> Tensor:
        """Return the probabilities [B,M,C] of segments [start, stop): their maximum, or their mean by temporal weights.

        The weights, if there are any, are renormalized within the segments.
        """
        segments = outputs.segments[:, start:stop]
        if outputs.temporal_weights is None:
            return segments.amax(dim=1)
        weights = outputs.temporal_weights[:, start:stop]
        return (weights * segments).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-12)

    def predict(self, segments: Tensor) -> Tensor:
        """Return the classes with a probability of at least 0.5, bool [B,T,M,C]."""
        return segments >= 0.5


@dataclass(frozen=True)
class SoftmaxHead:
    """One distribution over the classes and the background, K = C + 1; the background is last.

    A segment's class is the largest of its scores.

    Attributes:
        kind: how scores are pooled over segments, before the softmax.
    """

    kind: Literal["max", "mean"]
    background: ClassVar[bool] = True

    def pool(self, outputs: Outputs, start: int, stop: int) -> Tensor:
        """Return the probabilities [B,M,K] of segments [start, stop)."""
        return self._pooled(outputs.segments[:, start:stop])

    def predict(self, segments: Tensor) -> Tensor:
        """Return the class with the largest score, bool [B,T,M,K] with one True per segment."""
        return torch.zeros_like(segments, dtype=torch.bool).scatter_(-1, segments.argmax(dim=-1, keepdim=True), True)

    def outputs(self, scores: Tensor) -> Outputs:
        """Return the outputs of a network with one head for both modalities (M = 1), from scores [B,T,K] of segments."""
        segments = scores.float().unsqueeze(2)
        modalities = self._pooled(segments)
        return Outputs(video=modalities[:, 0], modalities=modalities, segments=segments, head=self)

    def _pooled(self, segments: Tensor) -> Tensor:
        """Pool scores [B,T,M,K] of all T segments into probabilities [B,M,K]."""
        # amax divides the gradient among equal maxima, max would choose one
        scores = segments.amax(dim=1) if self.kind == "max" else segments.mean(dim=1)
        return scores.softmax(dim=-1)


class Pooled(NamedTuple):
    """Video probabilities [B,C], those of modalities [B,2,C] and segments [B,T,2,C], and weights over time [B,T,2,C].

    The weights are None for max pooling.
    """

    video: Tensor
    modalities: Tensor
    segments: Tensor
    weights: Tensor | None


class AttentiveMMIL(nn.Module):
    """Attentive MMIL pooling of HAN (ECCV 2020, section 4.2; published code).

    One linear layer contains three heads: class scores, attention over time, attention over modalities.

    Args:
        width: feature width D.
        classes: number of event classes C.
        shared: whether both modalities use the same heads (HAN); False for a separate layer per modality.
    """

    def __init__(self, width: int, classes: int, *, shared: bool = True) -> None:
        super().__init__()
        self.heads = nn.Linear(width, 3 * classes) if shared else LinearPerModality(width, 3 * classes)

    def forward(self, features: Tensor) -> Pooled:
        """Pool segment features.

        Args:
            features: [2,B,T,D], audio first.

        Returns:
            float32 tensors. Attention weights sum to 1 only up to rounding, so that a modality's probability can exceed 1 by
            about 1e-7. That of a video can come close to 2, because the products of its weights over time and modalities
            need not sum to 1. Losses clamp both.
        """
        scores, over_time, over_modality = self.heads(features).float().chunk(3, dim=-1)  # [2,B,T,C] each
        segments = scores.sigmoid()
        weights = over_time.softmax(dim=2)
        weighted = segments * weights
        modalities = torch.stack(weighted.sum(dim=2).unbind(), dim=1)  # [B,2,C]
        video = (weighted * over_modality.softmax(dim=0)).sum(dim=(0, 2))  # [B,C]
        return Pooled(video, modalities, segments.permute(1, 2, 0, 3), weights.permute(1, 2, 0, 3))


class LinearPerModality(nn.Module):
    """A separate linear layer for each modality, from [2,...,D] to [2,...,O]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.audio = nn.Linear(width, out)
        self.visual = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """Apply one layer to audio features and the other to visual features."""
        return torch.stack([self.audio(x[0]), self.visual(x[1])])


class FixedMMIL(nn.Module):
    """Max or mean pooling, over time and then over modalities (HAN's table 2; reconstruction: not in the published code).

    ``max`` takes the largest probability over segments, then over modalities; ``mean`` weighs all segments and modalities
    equally. Only the head of the class scores has parameters.
    """

    def __init__(self, width: int, classes: int, kind: Literal["max", "mean"]) -> None:
        super().__init__()
        self.heads = nn.Linear(width, classes)
        self.kind = kind

    def forward(self, features: Tensor) -> Pooled:
        """Pool segment features; arguments and result are those of `AttentiveMMIL`."""
        segments = self.heads(features).float().sigmoid()  # [2,B,T,C]
        # amax divides the gradient among equal maxima, max would choose one
        modalities = segments.amax(dim=2) if self.kind == "max" else segments.mean(dim=2)  # [2,B,C]
        video = modalities.amax(dim=0) if self.kind == "max" else modalities.mean(dim=0)
        segments = segments.permute(1, 2, 0, 3)
        weights = None if self.kind == "max" else torch.full_like(segments, 1 / segments.shape[1])
        return Pooled(video, torch.stack(modalities.unbind(), dim=1), segments, weights)
