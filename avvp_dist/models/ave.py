"""The weakly supervised network of AVE (audio-visual event localization, ECCV 2018) as its authors published it.

    audio    --------------------+----------> BiLSTM --+
                                 | guides              +-> ReLU, linear, ReLU, linear -> x[t] (28 events and background)
    regions  --> attention over regions ----> BiLSTM --+

A video's probabilities are a softmax of the maximum over segments of x[t], a segment's class is the largest of its scores.
The reconstruction for LLP, which has no regions, is `models.ave_llp`.

Shapes: B videos, T segments, R regions of an image, K = C + 1 scores, the background last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from avvp_dist.models.network import NetworkSection, stream_width
from avvp_dist.models.pooling import SoftmaxHead
from avvp_dist.models.regions import AudioGuidedAttention, BidirectionalLstm, RegionInputs, RegionNetwork, grid_of, xavier
from avvp_dist.types import ForwardOptions, Outputs


class AveConfig(NetworkSection):
    """AVE's network for event localization: audio-guided attention over regions, an LSTM for each modality."""

    streams: ClassVar[tuple[str, ...]] = ("audio", "visual")
    tracks: ClassVar[tuple[str, ...]] = ("event",)
    background: ClassVar[bool] = True

    name: Literal["ave"] = "ave"
    width: int = Field(256, ge=2, le=65_536, multiple_of=2)
    """Width of each modality's LSTM; each direction has half of it."""
    attention_width: int = Field(512, ge=1, le=65_536)
    """Width of the space in which audio and regions are compared."""
    feedforward: int = Field(64, ge=1, le=65_536)
    """Width of the layer before the scores."""

    def build(self, shapes: Mapping[str, tuple[int, ...]], classes: int) -> AveNetwork:
        """See `NetworkSection`."""
        return AveNetwork(self, shapes, classes)


class AveNetwork(RegionNetwork):
    """Audio-guided attention over regions, an LSTM for each modality, one softmax head for both; no dropout.

    Without exchange, all regions have the same weight; the modalities then meet in the head only.
    """

    head = SoftmaxHead("max")

    def __init__(self, config: AveConfig, shapes: Mapping[str, tuple[int, ...]], classes: int) -> None:
        super().__init__()
        audio, (regions, visual) = stream_width(shapes, "audio"), grid_of(shapes, "visual")
        self.attention = AudioGuidedAttention(audio, visual, regions, config.attention_width)
        self.audio_lstm = BidirectionalLstm(audio, config.width)
        self.visual_lstm = BidirectionalLstm(visual, config.width)
        self.hidden = nn.Linear(2 * config.width, config.feedforward)
        self.scores = nn.Linear(config.feedforward, classes + 1)
        xavier(self.hidden, self.scores)

    def parse(self, shared: RegionInputs, options: ForwardOptions) -> Outputs:
        """See `Network`."""
        visual = self.visual_of(shared, options)
        features = torch.cat([shared.audio_features, self.visual_lstm(visual)], dim=-1)
        scores = self.scores(F.relu(self.hidden(F.relu(features))))
        return self.head.outputs(scores)

    def exchange_parameters(self) -> Iterator[nn.Parameter]:
        """See `Network`: the audio-guided attention."""
        return self.attention.parameters()
