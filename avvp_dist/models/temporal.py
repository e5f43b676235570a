"""Temporal networks that HAN's paper compares with its hybrid attention (ECCV 2020, table 2).

Both are reconstructions: the paper names GRU and Transformer without details, and its code has neither. They process each
modality separately and, like the hybrid layer, use the same weights for both. The Transformer is `models.han.HanLayer`
without its cross-modal half.

Shapes: B videos, T segments, D width; the leading 2 is (audio, visual).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NoTemporal(nn.Module):
    """No aggregation over time: the features of a segment are its projected inputs."""

    def prepare(self, x: Tensor) -> Tensor:
        """Return what all passes over a batch share: the features, [2,B,T,D]."""
        return x

    def forward(self, x: Tensor, prepared: Tensor, *, cross_modal: bool, dropout: bool) -> Tensor:
        """Return the prepared features; there is no exchange and no dropout."""
        return prepared


class BidirectionalGru(nn.Module):
    """One bidirectional GRU layer, with half the width in each direction (reconstruction).

    It is bidirectional because a video is parsed as a whole and the Transformer that it is compared with attends in both
    directions too. It has no dropout and no residual path.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def prepare(self, x: Tensor) -> Tensor:
        """Return what all passes over a batch share: the features, float32 [2,B,T,D]."""
        # under autocast, cuDNN runs a GRU in float16 whatever type is requested; gradients are not scaled for float16
        with torch.autocast(x.device.type, enabled=False):
            features, _ = self.gru(x.float().flatten(0, 1))
        return features.unflatten(0, x.shape[:2])

    def forward(self, x: Tensor, prepared: Tensor, *, cross_modal: bool, dropout: bool) -> Tensor:
        """Return the prepared features; there is no exchange and no dropout."""
        return prepared
