"""The network of PPL (prototype-based pseudo-labelling, CVPR 2024), built from the paper's supplement.

    audio           -> linear, LN, LeakyReLU, linear, LN --+
                                                           +-> attentive aggregation -> MMIL pooling
    frames, motion  -> linear, LN, LeakyReLU, linear, LN --+

The supplement gives the layers of the projection heads, the aggregation and the heads, but no code is published and its
table of layers is incomplete. Reconstructions: motion features enter beside those of the frames (concatenated), and
LeakyReLU, with torch's slope of 0.01, follows the first layer norm of a projection head only.

Shapes: B videos, T segments, D width; a leading 2 is (audio, visual).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avvp_dist.models.dropout import dropout as drop
from avvp_dist.models.network import NetworkSection, ParsingNetwork, frames_by_segment, stream_width
from avvp_dist.models.pooling import AttentiveMMIL
from avvp_dist.types import Batch, ForwardOptions, Outputs


class PplConfig(NetworkSection):
    """PPL's network: a projection head per modality, attention without parameters, MMIL pooling.

    Reconstruction where the supplement is silent: the visual head reads the mean of a second's frames (ResNet-152)
    concatenated with its motion features (R(2+1)D), LeakyReLU follows the first layer norm of a head only, and there is no
    dropout.
    """

    streams: ClassVar[tuple[str, ...]] = ("audio", "visual", "motion")

    name: Literal["ppl"] = "ppl"
    width: int = Field(512, ge=1, le=65_536)
    """Feature width D."""
    audio_hidden: int = Field(256, ge=1, le=65_536)
    """Hidden width of the audio projection head."""
    visual_hidden: int = Field(1024, ge=1, le=65_536)
    """Hidden width of the visual projection head."""
    scale: Literal["sqrt", "width"] = "sqrt"
    """Divisor of the attention scores. sqrt: sqrt(D), as in other attention layers; width: D, as printed. Features have a
    squared length of about D, so that with sqrt a segment attends almost only to segments like itself, and with width
    nearly uniformly."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on what the attention adds to a segment; the supplement names none."""
    visual_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on visual features before the heads; JoMoLD's network uses 0.5."""

    def build(self, shapes: Mapping[str, tuple[int, ...]], classes: int) -> PplNetwork:
        """See `NetworkSection`."""
        return PplNetwork(self, shapes, classes)


class PplNetwork(ParsingNetwork[Tensor]):
    """Projection heads, attentive aggregation within and across modalities, MMIL pooling with heads shared by both."""

    composes = True  # the projection heads, which take most of the time, depend on single segments

    def __init__(self, config: PplConfig, shapes: Mapping[str, tuple[int, ...]], classes: int) -> None:
        super().__init__()
        visual = stream_width(shapes, "visual") + stream_width(shapes, "motion")
        self.audio = _projection_head(stream_width(shapes, "audio"), config.audio_hidden, config.width)
        self.visual = _projection_head(visual, config.visual_hidden, config.width)
        self.divisor = config.width if config.scale == "width" else config.width**0.5
        self.dropout = config.dropout
        self.pooling = AttentiveMMIL(config.width, classes)
        self.visual_dropout = config.visual_dropout

    def prepare(self, batch: Batch) -> Tensor:
        """Return the projected segments of both modalities, [B,2,T,D]."""
        frames = frames_by_segment(batch)
        frames = frames.squeeze(2) if frames.shape[2] == 1 else frames.mean(dim=2)
        visual = self.visual(torch.cat([frames, batch.motion], dim=-1))
        # videos first, so that the aggregation can view a video's segments of both modalities as one sequence
        return torch.stack([batch.composed(self.audio(batch.audio)), batch.composed(visual)], dim=1)

    def parse(self, shared: Tensor, options: ForwardOptions) -> Outputs:
        """See `Network`."""
        added = attention(shared, self.divisor, cross_modal=options.cross_modal)
        if self.training and options.dropout:
            added = drop(added, self.dropout)
        return self.outputs(shared.transpose(0, 1), (shared + added).transpose(0, 1), options)

    def exchange_parameters(self) -> Iterator[nn.Parameter]:
        """See `Network`: none, the attention has no parameters."""
        return iter(())


def attention(segments: Tensor, divisor: float, *, cross_modal: bool) -> Tensor:
    """Return what segments receive from those of their own modality and of the other one (supplement of PPL).

    The result is Att(x, own) + Att(x, other) with Att(x, F) = softmax(x F^T / divisor) F: each modality has its own softmax.

    Args:
        segments: [B,2,T,D].
        divisor: of the scores.
        cross_modal: False omits the other modality.

    Returns:
        [B,2,T,D].
    """
    # one product for both modalities: [B,2T,D] with exchange, [2B,T,D] without
    sequences = segments.flatten(1, 2) if cross_modal else segments.flatten(0, 1)
    scores = sequences @ sequences.transpose(1, 2) / divisor
    weights = scores.unflatten(-1, (-1, segments.shape[2])).softmax(dim=-1).flatten(-2)
    return (weights.to(sequences.dtype) @ sequences).view_as(segments)


def _projection_head(inputs: int, hidden: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(), nn.Linear(hidden, width), nn.LayerNorm(width)
    )
