"""Hybrid attention network (HAN, ECCV 2020) as published by HAN, MA and JoMoLD, without modules that their code never uses.

The defaults are the published network. ``temporal`` and ``pooling`` replace one of its two parts, as in the paper's
ablations. ``sequential``, eight heads and a wider feed-forward block make it the network of VALOR (NeurIPS 2023; published
code); ``norm`` is an option of that code that none of its published runs uses.

Shapes: B videos, T segments, D width; the leading 2 is (audio, visual), which share weights and are processed together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from avvp_dist.models.dropout import dropout as drop
from avvp_dist.models.network import NetworkSection, ParsingNetwork, stream_width
from avvp_dist.models.pooling import AttentiveMMIL, FixedMMIL
from avvp_dist.models.temporal import BidirectionalGru, NoTemporal
from avvp_dist.types import Batch, ForwardOptions, Outputs


class HanConfig(NetworkSection):
    """Hybrid attention network."""

    streams: ClassVar[tuple[str, ...]] = ("audio", "visual", "motion")

    name: Literal["han"] = "han"
    width: int = Field(512, ge=1, le=65_536)
    """Feature width D."""
    feedforward: int = Field(512, ge=1, le=65_536)
    """Width of the feed-forward block."""
    heads: int = Field(1, ge=1)
    """Attention heads; divides width."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout inside the attention layer."""
    temporal: Literal["han", "none", "gru", "transformer"] = "han"
    """Aggregation of segments over time. han: hybrid attention; none: no aggregation; gru, transformer: each modality
    separately, by a bidirectional GRU layer or by the hybrid layer without its cross-modal half, both reconstructions of the
    paper's ablation. heads, feedforward and dropout apply to han and transformer only."""
    layers: int = Field(1, ge=1, le=1000)
    """Number of stacked layers. Each has its own weights, which are initialized as copies of the first layer's (published
    code); han and transformer only."""
    sequential: bool = False
    """Whether visual segments attend to a layer's audio segments after their update (VALOR) or before it (HAN, MA, JoMoLD);
    temporal=han only."""
    norm: Literal["last", "first"] = "last"
    """Position of a layer's normalization. last: after its attention and after its feed-forward block (published runs);
    first: on the inputs of both, but not on the other modality's segments in cross-modal attention, and on each modality
    after the last layer (an option of VALOR's code); han and transformer only."""
    pooling: Literal["attentive", "max", "mean"] = "attentive"
    """Pooling of segments into a video. attentive: learned weights over time and modalities; max, mean: the largest
    probability or uniform weights, over time and then over modalities, both reconstructions of the paper's ablation."""
    visual_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on visual features before the heads; JoMoLD's network uses 0.5, HAN and MA use none."""

    @model_validator(mode="after")
    def _check_width(self) -> HanConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if self.temporal == "gru" and self.width % 2:
            raise ValueError(f"width {self.width} is odd; temporal=gru needs an even one, half for each direction")
        if self.layers > 1 and self.temporal not in ("han", "transformer"):
            raise ValueError(f"layers={self.layers} needs temporal=han or transformer, not {self.temporal}")
        if self.norm == "first" and self.temporal not in ("han", "transformer"):
            raise ValueError(f"norm=first needs temporal=han or transformer, not {self.temporal}")
        if self.sequential and self.temporal != "han":
            raise ValueError(f"sequential=true needs temporal=han; {self.temporal} exchanges nothing between modalities")
        return self

    def build(self, shapes: Mapping[str, tuple[int, ...]], classes: int) -> HanNetwork:
        """See `NetworkSection`."""
        return HanNetwork(self, shapes, classes)


class Heads(NamedTuple):
    """Query, key and value of segments, [...,heads,T,D/heads] each.

    ``folded`` states whether the value already includes the output projection.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    folded: bool

    def across(self) -> Heads:
        """Return each modality's queries with the other modality's keys and values; axis 0 is the modality."""
        return Heads(self.query, self.key.flip(0), self.value.flip(0), self.folded)


class Attention(nn.Module):
    """`torch.nn.MultiheadAttention` in two steps, so that two passes can share the projections.

    Parameters (names, shapes, initialization) and results are the same. For a single head and many rows, the weights are
    multiplied first, ``(x Wq)(x Wk)' = (x Wq Wk') x'`` and ``A (x Wv) Wo = A (x Wv Wo)``, which halves the work. The bias
    of the key adds the same value to all scores of a query, so that the softmax does not depend on it.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, x: Tensor) -> Heads:
        """Return query, key and value of ``x`` [...,T,D]."""
        width = x.shape[-1]
        if self.heads == 1 and x.numel() > 2 * width * width:  # enough rows to make up for the products of weights
            return self._fold(x)
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1))
        query, key, value = (part.transpose(-2, -3) for part in projected.unbind(-3))
        return Heads(query, key, value, folded=False)

    def project_pair(self, x: Tensor, memory: Tensor) -> Heads:
        """Return the query of ``x`` and the key and value of ``memory``, both [...,T,D]."""
        split = (x.shape[-1], 2 * x.shape[-1])
        (query_weight, memory_weight), (query_bias, memory_bias) = (
            parameter.split(split) for parameter in (self.in_proj_weight, self.in_proj_bias)
        )
        query = F.linear(x, query_weight, query_bias).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
        projected = F.linear(memory, memory_weight, memory_bias).unflatten(-1, (2, self.heads, -1))
        key, value = (part.transpose(-2, -3) for part in projected.unbind(-3))
        return Heads(query, key, value, folded=False)

    def attend(self, heads: Heads, dropout: bool) -> Tensor:
        """Return the attention output [...,T,D]."""
        # written out: for ten segments, scaling the scores is cheaper than scaling queries and keys as fused attention does
        scores = (heads.query @ heads.key.transpose(-1, -2)) * heads.query.shape[-1] ** -0.5  # [...,heads,T,T]
        weights = scores.softmax(dim=-1)
        if dropout:
            weights = drop(weights, self.dropout)
        mixed = weights.to(heads.value.dtype) @ heads.value
        mixed = mixed.transpose(-2, -3).flatten(-2)
        return mixed + self.out_proj.bias.to(mixed.dtype) if heads.folded else self.out_proj(mixed)

    def _fold(self, x: Tensor) -> Heads:
        query_weight, key_weight, value_weight = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        query = F.linear(x, key_weight.T @ query_weight, key_weight.T @ query_bias)
        value = F.linear(x, self.out_proj.weight @ value_weight, self.out_proj.weight @ value_bias)
        return Heads(query.unsqueeze(-3), x.unsqueeze(-3).to(query.dtype), value.unsqueeze(-3), folded=True)


class HanLayer(nn.Module):
    """One hybrid-attention layer: every segment attends to the segments of its own and of the other modality.

    Args:
        config: of the network.
        exchange: False omits the cross-modal half, which leaves an ordinary Transformer layer.
    """

    def __init__(self, config: HanConfig, *, exchange: bool = True) -> None:
        super().__init__()
        self.self_attention = Attention(config.width, config.heads, config.dropout)
        self.cross_attention = Attention(config.width, config.heads, config.dropout) if exchange else None
        self.linear1 = nn.Linear(config.width, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.width)
        self.norm1 = nn.LayerNorm(config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.dropout = config.dropout
        self.sequential = config.sequential
        self.norm_first = config.norm == "first"

    def prepare(self, x: Tensor) -> Heads:
        """Return what all passes over a batch share: the projections for self-attention."""
        return self.self_attention.project(self._before_attention(x))

    def forward(self, x: Tensor, own: Heads, *, cross_modal: bool, dropout: bool) -> Tensor:
        """Aggregate over time and modality.

        Args:
            x: [2,B,T,D] inputs of both modalities.
            own: ``self.prepare(x)``.
            cross_modal: False omits the cross-modal term.
            dropout: whether dropout is active.
        """
        mixed = self._drop(self.self_attention.attend(own, dropout), dropout)
        if cross_modal and self.cross_attention is not None:
            if self.sequential:
                return self._sequentially(self.cross_attention, x, mixed, dropout)
            other = self.cross_attention.attend(self._across(self.cross_attention, x), dropout)
            mixed = mixed + self._drop(other, dropout)
        return self._feed_forward(x + mixed, dropout)

    def _across(self, cross_attention: Attention, x: Tensor) -> Heads:
        """Return each modality's queries with the other one's keys and values, [2,B,...]."""
        if self.norm_first:
            return cross_attention.project_pair(self.norm1(x), x.flip(0))
        return cross_attention.project(x).across()

    def _sequentially(self, cross_attention: Attention, x: Tensor, mixed: Tensor, dropout: bool) -> Tensor:
        """Update audio, then visual segments, which attend to the updated audio; ``mixed`` [2,B,T,D]: self-attention."""
        updated: list[Tensor] = []
        memory = x[1]
        for inputs, own in zip(x, mixed, strict=True):
            other = cross_attention.attend(cross_attention.project_pair(self._before_attention(inputs), memory), dropout)
            memory = self._feed_forward(inputs + own + self._drop(other, dropout), dropout)
            updated.append(memory)
        return torch.stack(updated)

    def _before_attention(self, x: Tensor) -> Tensor:
        return self.norm1(x) if self.norm_first else x

    def _feed_forward(self, x: Tensor, dropout: bool) -> Tensor:
        """Apply the second half of the layer to ``x``, the sum of inputs and attention."""
        if not self.norm_first:
            x = self.norm1(x)
        hidden = self._drop(F.relu(self.linear1(self.norm2(x) if self.norm_first else x)), dropout)
        x = x + self._drop(self.linear2(hidden), dropout)
        return x if self.norm_first else self.norm2(x)

    def _drop(self, x: Tensor, dropout: bool) -> Tensor:
        return drop(x, self.dropout) if dropout else x


class HanLayers(nn.Module):
    """Several stacked layers with the interface of a single one; with norm=first, also a final norm of each modality."""

    def __init__(self, first: HanLayer, config: HanConfig) -> None:
        super().__init__()
        self.stack = nn.ModuleList([first, *(copy.deepcopy(first) for _ in range(config.layers - 1))])
        norms = [nn.LayerNorm(config.width) for _ in range(2)]  # of audio and of visual segments
        self.norms = nn.ModuleList(norms) if config.norm == "first" else None

    def prepare(self, x: Tensor) -> Heads:
        """See `HanLayer.prepare`; passes can only share what precedes the first dropout."""
        return self._layers()[0].prepare(x)

    def forward(self, x: Tensor, own: Heads, *, cross_modal: bool, dropout: bool) -> Tensor:
        """See `HanLayer.forward`."""
        for number, layer in enumerate(self._layers()):
            x = layer(x, layer.prepare(x) if number else own, cross_modal=cross_modal, dropout=dropout)
        return x if self.norms is None else torch.stack([norm(part) for norm, part in zip(self.norms, x, strict=True)])

    def _layers(self) -> list[HanLayer]:
        return list(self.stack)  # type: ignore[arg-type]  # ModuleList is not generic


class HanNetwork(ParsingNetwork[tuple[Tensor, Heads | Tensor]]):
    """HAN: stream projections, layers over time shared by both modalities, MMIL pooling."""

    def __init__(self, config: HanConfig, shapes: Mapping[str, tuple[int, ...]], classes: int) -> None:
        super().__init__()
        self.audio = nn.Linear(stream_width(shapes, "audio"), config.width)
        self.visual = nn.Linear(stream_width(shapes, "visual"), config.width)
        self.motion = nn.Linear(stream_width(shapes, "motion"), config.width)
        self.fusion = nn.Linear(2 * config.width, config.width)
        self.layer = _temporal(config)
        self.pooling = _pooling(config, classes)
        self.visual_dropout = config.visual_dropout

    def prepare(self, batch: Batch) -> tuple[Tensor, Heads | Tensor]:
        """Return the projected streams [2,B,T,D] and the layer's projections of them."""
        inputs = self._project(batch)
        return inputs, self.layer.prepare(inputs)

    def parse(self, shared: tuple[Tensor, Heads | Tensor], options: ForwardOptions) -> Outputs:
        """See `Network`."""
        inputs, prepared = shared
        dropout = self.training and options.dropout
        return self.outputs(inputs, self.layer(inputs, prepared, cross_modal=options.cross_modal, dropout=dropout), options)

    def exchange_parameters(self) -> Iterator[nn.Parameter]:
        """See `Network`: cross-modal attention."""
        for module in self.modules():
            if isinstance(module, HanLayer) and module.cross_attention is not None:
                yield from module.cross_attention.parameters()

    def _project(self, batch: Batch) -> Tensor:
        """Project both modalities to the common width, [2,B,T,D]."""
        frames = batch.visual
        if frames.shape[1] != batch.audio.shape[1]:
            # the mean over a segment's frames commutes with the linear layer and is cheaper before it
            frames = frames.unflatten(1, (batch.audio.shape[1], -1)).mean(dim=2)
        visual = self.fusion(torch.cat([self.visual(frames), self.motion(batch.motion)], dim=-1))
        return torch.stack([self.audio(batch.audio), visual])


def _temporal(config: HanConfig) -> HanLayer | HanLayers | BidirectionalGru | NoTemporal:
    if config.temporal == "none":
        return NoTemporal()
    if config.temporal == "gru":
        return BidirectionalGru(config.width)
    layer = HanLayer(config, exchange=config.temporal == "han")
    return layer if config.layers == 1 and config.norm == "last" else HanLayers(layer, config)


def _pooling(config: HanConfig, classes: int) -> AttentiveMMIL | FixedMMIL:
    if config.pooling == "attentive":
        return AttentiveMMIL(config.width, classes)
    return FixedMMIL(config.width, classes, config.pooling)
