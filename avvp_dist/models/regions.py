"""Audio-guided attention over image regions, and LSTMs over time: what the networks of AVE and PSP have in common.

Shapes: B videos, T segments, R regions of an image, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avvp_dist.errors import ConfigError
from avvp_dist.models.network import Network
from avvp_dist.types import Batch, ForwardOptions


class AudioGuidedAttention(nn.Module):
    """Weighs the regions of each segment by its audio (AVE, ECCV 2018; published code).

    With z = Wv ReLU(V) + Wg ReLU(a), the weight of a region is a softmax over regions of Wh tanh(z). As in the published
    code, Wv maps a region to R numbers, and Wg the audio to one number per region, which is added to all R numbers of that
    region. The network is therefore bound to the size of the grid.

    Args:
        audio: width of the audio stream.
        visual: width of a region.
        regions: number of regions R.
        width: width of the space in which audio and regions are compared.
    """

    def __init__(self, audio: int, visual: int, regions: int, width: int) -> None:
        super().__init__()
        self.audio = nn.Linear(audio, width)
        self.visual = nn.Linear(visual, width)
        self.audio_to_regions = nn.Linear(width, regions, bias=False)
        self.visual_to_regions = nn.Linear(width, regions, bias=False)
        self.score = nn.Linear(regions, 1, bias=False)
        xavier(self.audio, self.visual, self.audio_to_regions, self.visual_to_regions, self.score)

    def forward(self, regions: Tensor, audio: Tensor) -> Tensor:
        """Return the weighted mean of each segment's regions.

        Args:
            regions: [B,T,R,Dv].
            audio: [B,T,Da].

        Returns:
            [B,T,Dv].
        """
        visual = self.visual_to_regions(F.relu(self.visual(regions)))  # [B,T,R,R]
        joint = torch.tanh(visual + self.audio_to_regions(F.relu(self.audio(audio))).unsqueeze(-1))
        weights = self.score(joint).softmax(dim=-2)  # [B,T,R,1]
        return (weights.transpose(-1, -2) @ regions).squeeze(-2)


class BidirectionalLstm(nn.Module):
    """One LSTM layer over time, with half the width in each direction."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,T,inputs] to float32 [B,T,width]."""
        # without autocast, see models/temporal.py
        with torch.autocast(x.device.type, enabled=False):
            features, _ = self.lstm(x.float())
        return features


class RegionInputs(NamedTuple):
    """A batch, whose visual segments have regions, and the features of the audio LSTM, [B,T,D]."""

    batch: Batch
    audio_features: Tensor


class RegionNetwork(Network[RegionInputs]):
    """Base of networks that weigh image regions by the audio; without exchange, all regions have the same weight."""

    composes = True  # the attention depends on single segments, and takes nearly all of the time

    attention: AudioGuidedAttention
    audio_lstm: BidirectionalLstm

    def prepare(self, batch: Batch) -> RegionInputs:
        """See `Network`."""
        return RegionInputs(batch, self.audio_lstm(batch.composed(batch.audio)))

    def visual_of(self, shared: RegionInputs, options: ForwardOptions) -> Tensor:
        """Return one visual vector per segment, [B,T,Dv]."""
        batch = shared.batch
        regions = batch.visual.flatten(2, -2)  # [B,T,R,Dv]
        return batch.composed(self.attention(regions, batch.audio) if options.cross_modal else regions.mean(dim=2))


def grid_of(shapes: Mapping[str, tuple[int, ...]], stream: str) -> tuple[int, int]:
    """Return the number of regions R and their width, of a stream with regions such as (7, 7, 512).

    Raises:
        ConfigError: the stream has one vector per segment.
    """
    *grid, width = shapes[stream]
    if not grid:
        raise ConfigError(
            f"model.name: this network reads regions of images; a segment of stream {stream} has shape {shapes[stream]}, "
            "expected one such as (7, 7, 512)"
        )
    return math.prod(grid), width


def xavier(*layers: nn.Linear) -> None:
    """Initialize the weights of layers by Xavier's uniform rule; biases keep torch's default."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
