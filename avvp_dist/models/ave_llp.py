"""The network of AVE (audio-visual event localization, ECCV 2018) on LLP's features: a RECONSTRUCTION.

JoMoLD trains it in its supplement (table 2.2) and HAN's paper compares with it; neither publishes the adaptation. The
audio-guided visual attention and the bidirectional LSTM of each modality are taken from AVE. Pooling is HAN's, with separate
heads for each modality.

AVE weighs the 49 regions of a frame by a softmax. LLP's features have no regions, and shards contain one row per second, so
that a softmax would have a single element. Therefore the weights here are gates between 0 and 2, one for each frame and
channel. Without exchange all weights are 1, which results in the mean of a second's frames.

The outputs of an LSTM, a sigmoid times a tanh, are small. Heads hardly learn from them at the learning rates of HAN and
JoMoLD, which are chosen for normalized features. Therefore layer norm is applied to them, as in HAN's layer.

Shapes: B videos, T segments, k frames a segment, D width; a leading 2 is (audio, visual).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from avvp_dist.models.network import NetworkSection, ParsingNetwork, frames_by_segment, stream_width
from avvp_dist.models.pooling import AttentiveMMIL
from avvp_dist.models.regions import BidirectionalLstm
from avvp_dist.types import Batch, ForwardOptions, Outputs


class AveLlpConfig(NetworkSection):
    """AVE's network on LLP's features: audio-guided visual attention, an LSTM for each modality (reconstruction)."""

    name: Literal["ave-llp"] = "ave-llp"
    streams: ClassVar[tuple[str, ...]] = ("audio", "visual", "motion")
    width: int = Field(256, ge=2, le=65_536, multiple_of=2)
    """Feature width D; each direction of an LSTM has half of it (AVE: 128)."""
    visual_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on visual features before the heads; JoMoLD's network uses 0.5."""

    def build(self, shapes: Mapping[str, tuple[int, ...]], classes: int) -> AveLlpNetwork:
        """See `NetworkSection`."""
        return AveLlpNetwork(self, shapes, classes)


class AudioGuidedGates(nn.Module):
    """Weighs frames and their channels by the audio of the same second (reconstruction; see the module)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # these names are part of saved weights
        self.look = nn.Linear(width, width)
        self.listen = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width)

    def forward(self, frames: Tensor, audio: Tensor) -> Tensor:
        """Return the weighted mean of each second's frames.

        Args:
            frames: [B,T,k,D].
            audio: [B,T,D].

        Returns:
            [B,T,D].
        """
        joint = torch.tanh(self.look(frames) + self.listen(audio).unsqueeze(2))
        weights = 2 * self.gate(joint).sigmoid()  # 1 is neutral
        return (weights * frames).mean(dim=2)


class NormalizedLstm(BidirectionalLstm):
    """AVE's LSTM, followed by layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,T,D] to float32 [B,T,D]."""
        with torch.autocast(x.device.type, enabled=False):
            return self.norm(super().forward(x))


class _Shared(NamedTuple):
    """Segment inputs [2,B,T,D], visual frames [B,T,k,D], and audio features [B,T,D] without any exchange."""

    inputs: Tensor
    frames: Tensor
    audio: Tensor


class AveLlpNetwork(ParsingNetwork[_Shared]):
    """Stream projections, audio-guided attention, an LSTM for each modality, MMIL pooling; dropout only before the heads.

    Visual features depend on audio but not the other way round, as in AVE.
    """

    def __init__(self, config: AveLlpConfig, shapes: Mapping[str, tuple[int, ...]], classes: int) -> None:
        super().__init__()
        self.audio = nn.Linear(stream_width(shapes, "audio"), config.width)
        self.visual = nn.Linear(stream_width(shapes, "visual"), config.width)
        self.motion = nn.Linear(stream_width(shapes, "motion"), config.width)
        self.fusion = nn.Linear(2 * config.width, config.width)
        self.attention = AudioGuidedGates(config.width)
        self.audio_lstm = NormalizedLstm(config.width)
        self.visual_lstm = NormalizedLstm(config.width)
        self.pooling = AttentiveMMIL(config.width, classes, shared=False)
        self.visual_dropout = config.visual_dropout

    def prepare(self, batch: Batch) -> _Shared:
        """See `Network`."""
        visual = self.visual(frames_by_segment(batch))
        motion = self.motion(batch.motion).unsqueeze(2).expand_as(visual)
        frames = self.fusion(torch.cat([visual, motion], dim=-1))
        audio = self.audio(batch.audio)
        return _Shared(torch.stack([audio, frames.mean(dim=2)]), frames, self.audio_lstm(audio))

    def parse(self, shared: _Shared, options: ForwardOptions) -> Outputs:
        """See `Network`."""
        audio, visual = shared.inputs
        if options.cross_modal:
            visual = self.attention(shared.frames, audio)
        return self.outputs(shared.inputs, torch.stack([shared.audio, self.visual_lstm(visual)]), options)

    def exchange_parameters(self) -> Iterator[nn.Parameter]:
        """See `Network`: the audio-guided attention."""
        return self.attention.parameters()
