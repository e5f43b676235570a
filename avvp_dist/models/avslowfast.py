"""AVSlowFast (audiovisual SlowFast networks, Xiao et al. 2020) on LLP's features: a RECONSTRUCTION.

JoMoLD trains it in its supplement (table 2.2) without publishing the adaptation. The three pathways are taken from
AVSlowFast: an audio pathway, a slow one that here reads frame features (ResNet-152) and a fast one that reads motion
features (R(2+1)D). Lateral connections at every stage lead from the fast and the audio pathway to the slow one. The feature
extractors replace its spatial convolutions: pathways here are residual convolutions over time, all with one row per second.
Layer norm replaces batch norm, whose statistics depend on how a batch is divided among ranks. Pooling is HAN's, with
separate heads for each modality.

Without exchange the audio laterals are dropped (AVSlowFast's DropPathway); the motion laterals stay, since motion is visual.

Shapes: B videos, T segments, D width; a leading 2 is (audio, visual).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from avvp_dist.models.network import NetworkSection, ParsingNetwork, frames_by_segment, stream_width
from avvp_dist.models.pooling import AttentiveMMIL
from avvp_dist.types import Batch, ForwardOptions, Outputs


class AvSlowFastConfig(NetworkSection):
    """AVSlowFast: audio, slow and fast pathways with lateral connections (reconstruction)."""

    name: Literal["avslowfast"] = "avslowfast"
    streams: ClassVar[tuple[str, ...]] = ("audio", "visual", "motion")
    width: int = Field(256, ge=1, le=65_536)
    """Feature width D of every pathway."""
    stages: int = Field(2, ge=1, le=1000)
    """Number of convolutions over time in a pathway; laterals precede each."""
    visual_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on visual features before the heads; JoMoLD's network uses 0.5."""

    def build(self, shapes: Mapping[str, tuple[int, ...]], classes: int) -> AvSlowFastNetwork:
        """See `NetworkSection`."""
        return AvSlowFastNetwork(self, shapes, classes)


class TemporalBlock(nn.Module):
    """A residual convolution over three segments."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,T,D] to [B,T,D]."""
        return x + F.relu(self.norm(self.convolution(x.transpose(1, 2)).transpose(1, 2)))


class _Shared(NamedTuple):
    """Segment inputs [2,B,T,D]; input of the slow pathway; states of the other two before each stage and after the last."""

    inputs: Tensor
    slow: Tensor
    audio: list[Tensor]
    fast: list[Tensor]


class AvSlowFastNetwork(ParsingNetwork[_Shared]):
    """Three pathways over time with laterals into the slow one, MMIL pooling; dropout only before the heads.

    Visual features depend on audio but not the other way round, as in AVSlowFast.
    """

    def __init__(self, config: AvSlowFastConfig, shapes: Mapping[str, tuple[int, ...]], classes: int) -> None:
        super().__init__()
        width = config.width
        self.audio = nn.Linear(stream_width(shapes, "audio"), width)
        self.visual = nn.Linear(stream_width(shapes, "visual"), width)
        self.motion = nn.Linear(stream_width(shapes, "motion"), width)
        self.fusion = nn.Linear(2 * width, width)
        stages = range(config.stages)
        self.audio_blocks = nn.ModuleList(TemporalBlock(width) for _ in stages)
        self.slow_blocks = nn.ModuleList(TemporalBlock(width) for _ in stages)
        self.fast_blocks = nn.ModuleList(TemporalBlock(width) for _ in stages)
        self.audio_laterals = nn.ModuleList(nn.Linear(width, width) for _ in stages)
        self.fast_laterals = nn.ModuleList(nn.Linear(width, width) for _ in stages)
        self.pooling = AttentiveMMIL(width, classes, shared=False)
        self.visual_dropout = config.visual_dropout

    def prepare(self, batch: Batch) -> _Shared:
        """See `Network`."""
        slow = self.visual(frames_by_segment(batch).mean(dim=2))
        audio = _states(self.audio(batch.audio), self.audio_blocks)
        fast = _states(self.motion(batch.motion), self.fast_blocks)
        return _Shared(torch.stack([audio[0], self._merge(slow, fast[0])]), slow, audio, fast)

    def parse(self, shared: _Shared, options: ForwardOptions) -> Outputs:
        """See `Network`."""
        slow = shared.slow
        for stage, block in enumerate(self.slow_blocks):
            slow = slow + self.fast_laterals[stage](shared.fast[stage])
            if options.cross_modal:
                slow = slow + self.audio_laterals[stage](shared.audio[stage])
            slow = block(slow)
        features = torch.stack([shared.audio[-1], self._merge(slow, shared.fast[-1])])
        return self.outputs(shared.inputs, features, options)

    def exchange_parameters(self) -> Iterator[nn.Parameter]:
        """See `Network`: the audio laterals."""
        return self.audio_laterals.parameters()

    def _merge(self, slow: Tensor, fast: Tensor) -> Tensor:
        """Project both visual pathways to the common width, before or after their stages."""
        return self.fusion(torch.cat([slow, fast], dim=-1))


def _states(x: Tensor, blocks: nn.ModuleList) -> list[Tensor]:
    """Return the input of a pathway and the output of each block."""
    states = [x]
    for block in blocks:
        states.append(block(states[-1]))
    return states
