"""From segment features to segment, modality and video probabilities: multimodal MIL pooling, attentive or fixed."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn


class Pooled(NamedTuple):
    """Video, audio and visual probabilities [B,C], segment probabilities [B,T,2,C], and the weights [B,T,2,C] over time.

    The weights are None where the largest probability was taken instead.
    """

    video: Tensor
    audio: Tensor
    visual: Tensor
    segments: Tensor
    weights: Tensor | None


class AttentiveMMIL(nn.Module):
    """Attentive MMIL pooling of HAN (ECCV 2020, section 4.2; published code).

    One linear layer holds three heads: class scores, attention over time, attention over modalities.

    Args:
        width: feature width D.
        classes: number of event classes C.
        shared: whether both modalities have the same heads (HAN); False gives each modality a layer of its own.
    """

    def __init__(self, width: int, classes: int, *, shared: bool = True) -> None:
        super().__init__()
        self.heads = nn.Linear(width, 3 * classes) if shared else EachModality(width, 3 * classes)

    def forward(self, features: Tensor) -> Pooled:
        """Pools segment features.

        Args:
            features: [2,B,T,D], audio first.

        Returns:
            all float32. Attention weights sum to 1 only up to rounding, so a pooled probability may pass 1 by some 1e-7;
            losses clamp.
        """
        scores, over_time, over_modality = self.heads(features).float().chunk(3, dim=-1)  # [2,B,T,C] each
        segments = scores.sigmoid()
        weights = over_time.softmax(dim=2)
        witnessed = segments * weights
        audio, visual = witnessed.sum(dim=2)  # [B,C] each
        video = (witnessed * over_modality.softmax(dim=0)).sum(dim=(0, 2))  # [B,C]
        return Pooled(video, audio, visual, segments.permute(1, 2, 0, 3), weights.permute(1, 2, 0, 3))


class EachModality(nn.Module):
    """A linear layer for each modality: [2,...,D] to [2,...,O]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.audio = nn.Linear(width, out)
        self.visual = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """Audio through one layer, visual through the other."""
        return torch.stack([self.audio(x[0]), self.visual(x[1])])


class FixedMMIL(nn.Module):
    """Max or mean pooling, over time and then over modalities (HAN's table 2; reconstruction: not in the published code).

    ``max`` takes the surest segment and then the surer modality, ``mean`` gives every segment and modality the same weight.
    The only weights are those of the class scores.
    """

    def __init__(self, width: int, classes: int, kind: Literal["max", "mean"]) -> None:
        super().__init__()
        self.heads = nn.Linear(width, classes)
        self.kind = kind

    def forward(self, features: Tensor) -> Pooled:
        """Pools segment features; arguments and result as `AttentiveMMIL`'s."""
        segments = self.heads(features).float().sigmoid()  # [2,B,T,C]
        # amax shares the gradient among equals, where max would choose one
        modalities = segments.amax(dim=2) if self.kind == "max" else segments.mean(dim=2)  # [2,B,C]
        video = modalities.amax(dim=0) if self.kind == "max" else modalities.mean(dim=0)
        audio, visual = modalities
        segments = segments.permute(1, 2, 0, 3)
        weights = None if self.kind == "max" else torch.full_like(segments, 1 / segments.shape[1])
        return Pooled(video, audio, visual, segments, weights)
