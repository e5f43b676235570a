"""Temporal networks that HAN's paper sets beside its hybrid attention (ECCV 2020, table 2).

Both are reconstructions: the paper names GRU and Transformer without details, and its code has neither. They work on each
modality alone and, like the hybrid layer, share one set of weights between the two. The Transformer is `models.han.HanLayer`
without its cross-modal half.

Shapes: B videos, T segments, D width; the leading 2 is (audio, visual).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NoTemporal(nn.Module):
    """No aggregation: every segment's features are its projected inputs."""

    def prepare(self, x: Tensor) -> Tensor:
        """What all passes over a batch share: the features themselves, [2,B,T,D]."""
        return x

    def forward(self, x: Tensor, prepared: Tensor, *, cross_modal: bool, dropout: bool) -> Tensor:
        """The prepared features; nothing is exchanged and nothing dropped."""
        return prepared


class BidirectionalGru(nn.Module):
    """One bidirectional GRU layer, half the width in each direction (reconstruction).

    Bidirectional, since a whole video is parsed at once and its rival, the Transformer, sees both directions too. No
    dropout, no residual path.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def prepare(self, x: Tensor) -> Tensor:
        """What all passes over a batch share: the features themselves, float32 [2,B,T,D]."""
        # autocast would run cuDNN's GRU in float16, whatever type was asked for, and nothing here scales gradients for that
        with torch.autocast(x.device.type, enabled=False):
            features, _ = self.gru(x.float().flatten(0, 1))
        return features.unflatten(0, x.shape[:2])

    def forward(self, x: Tensor, prepared: Tensor, *, cross_modal: bool, dropout: bool) -> Tensor:
        """The prepared features; nothing is exchanged and nothing dropped."""
        return prepared
