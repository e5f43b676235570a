"""The weakly supervised network of PSP (positive sample propagation, CVPR 2021) as its authors published it.

    audio    --------------------+--------------------> BiLSTM --+
                                 | guides                        +-> propagation -> linear, ReLU, linear, weight -> s[t]
    regions  --> attention over regions -> linear ----> BiLSTM --+

Every segment receives features of those segments of the other modality that are most similar to it. A video's probabilities
are a softmax of the mean over segments of s[t], a segment's class is the largest of its scores.

Shapes: B videos, T segments, R regions of an image, D width, K = C + 1 scores, the background last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from avvp_dist.models.dropout import dropout as drop
from avvp_dist.models.network import NetworkSection, stream_width
from avvp_dist.models.pooling import SoftmaxHead
from avvp_dist.models.regions import AudioGuidedAttention, BidirectionalLstm, RegionInputs, RegionNetwork, grid_of, xavier
from avvp_dist.types import ForwardOptions, Outputs


class PspConfig(NetworkSection):
    """PSP's network for event localization: AVE's attention and LSTMs, then propagation between similar segments."""

    streams: ClassVar[tuple[str, ...]] = ("audio", "visual")
    tracks: ClassVar[tuple[str, ...]] = ("event",)
    background: ClassVar[bool] = True

    name: Literal["psp"] = "psp"
    width: int = Field(256, ge=2, le=65_536, multiple_of=2)
    """Feature width D of each modality; each direction of an LSTM has half of it."""
    attention_width: int = Field(512, ge=1, le=65_536)
    """Width of the space in which audio and regions are compared."""
    feedforward: int = Field(64, ge=1, le=65_536)
    """Width of the layer before the scores."""
    threshold: float = Field(0.095, ge=0, lt=1)
    """A segment propagates to those of the other modality in whose similarities it has a larger share than this; 0.095 is
    the published value with weak labels."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the projections of the propagation."""

    def build(self, shapes: Mapping[str, tuple[int, ...]], classes: int) -> PspNetwork:
        """See `NetworkSection`."""
        return PspNetwork(self, shapes, classes)


class Propagation(nn.Module):
    """Positive sample propagation: adds to each segment what the most similar segments of the other modality contain.

    With projections a1, a2, v1, v2 (linear without bias, ReLU, dropout), similarities b = v2 a1^T / sqrt(D) [T,T], and g the
    rows of b divided by their sums, where shares up to the threshold are 0 (published code):

        visual' = LN(visual + g(b) a2),  audio' = LN(audio + g(b^T) v1)
    """

    def __init__(self, width: int, threshold: float, dropout: float) -> None:
        super().__init__()
        self.visual1, self.visual2, self.audio1, self.audio2 = (nn.Linear(width, width, bias=False) for _ in range(4))
        xavier(*self._projections())
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.threshold = threshold
        self.dropout = dropout

    def forward(self, audio: Tensor, visual: Tensor, *, exchange: bool, dropout: bool) -> Tensor:
        """Return the mean of both modalities after propagation.

        Args:
            audio, visual: float32 [B,T,D].
            exchange: False propagates nothing, which leaves the layer norm.
            dropout: whether dropout is active.

        Returns:
            float32 [B,T,D].
        """
        # without autocast: segments whose share is close to the threshold must not depend on the precision
        with torch.autocast(audio.device.type, enabled=False):
            if exchange:
                audio, visual = self._propagate(audio, visual, self.dropout if dropout else 0.0)
            return (self.norm(visual) + self.norm(audio)) / 2

    def _propagate(self, audio: Tensor, visual: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        visual1, visual2, audio1, audio2 = (
            drop(F.relu(layer(x)), rate)
            for layer, x in zip(self._projections(), (visual, visual, audio, audio), strict=True)
        )
        similarity = F.relu(visual2 @ audio1.transpose(1, 2)) / visual2.shape[-1] ** 0.5  # [B,T visual,T audio]
        return (
            audio + self._shares(similarity.transpose(1, 2)) @ visual1,
            visual + self._shares(similarity) @ audio2,
        )

    def projection_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that only the exchange uses."""
        for layer in self._projections():
            yield from layer.parameters()

    def _projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        return self.visual1, self.visual2, self.audio1, self.audio2

    def _shares(self, similarity: Tensor) -> Tensor:
        shares = similarity / (similarity.sum(dim=-1, keepdim=True) + 1e-8)
        return shares * (shares > self.threshold)


class PspNetwork(RegionNetwork):
    """Audio-guided attention over regions, an LSTM for each modality, propagation, one softmax head for both modalities.

    Without exchange, all regions have the same weight and nothing is propagated; the modalities then meet in the head only.
    """

    head = SoftmaxHead("mean")

    def __init__(self, config: PspConfig, shapes: Mapping[str, tuple[int, ...]], classes: int) -> None:
        super().__init__()
        audio, (regions, visual) = stream_width(shapes, "audio"), grid_of(shapes, "visual")
        self.attention = AudioGuidedAttention(audio, visual, regions, config.attention_width)
        self.visual = nn.Linear(visual, config.width // 2)
        self.audio_lstm = BidirectionalLstm(audio, config.width)
        self.visual_lstm = BidirectionalLstm(config.width // 2, config.width)
        self.propagation = Propagation(config.width, config.threshold, config.dropout)
        self.hidden = nn.Linear(config.width, config.feedforward, bias=False)
        self.scores = nn.Linear(config.feedforward, classes + 1, bias=False)
        self.segment_weight = nn.Linear(classes + 1, 1, bias=False)
        xavier(self.hidden, self.scores)

    def parse(self, shared: RegionInputs, options: ForwardOptions) -> Outputs:
        """See `Network`."""
        visual = self.visual_of(shared, options)
        visual_features = self.visual_lstm(self.visual(visual))
        dropout = self.training and options.dropout
        features = self.propagation(shared.audio_features, visual_features, exchange=options.cross_modal, dropout=dropout)
        scores = self.scores(F.relu(self.hidden(features)))
        return self.head.outputs(scores * F.relu(self.segment_weight(scores)).sigmoid())

    def exchange_parameters(self) -> Iterator[nn.Parameter]:
        """See `Network`: the audio-guided attention and the projections of the propagation."""
        yield from self.attention.parameters()
        yield from self.propagation.projection_parameters()
