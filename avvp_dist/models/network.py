"""Interface of all networks: one or two forward passes over a batch in one call, with outputs that any method can use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from avvp_dist.config import Section
from avvp_dist.errors import ConfigError
from avvp_dist.models.dropout import dropout as drop
from avvp_dist.models.pooling import AttentiveMMIL, FixedMMIL, SigmoidHead
from avvp_dist.types import MODALITIES, Batch, ForwardOptions, Outputs

Shared = TypeVar("Shared")


class NetworkSection(Section, ABC):
    """Base of the networks' config sections.

    Attributes:
        name: selects the network in a recipe; the key of `models.MODELS`.
        streams: names of the feature streams that the network reads.
        tracks: what it predicts classes for, see `tasks.base.TaskSection`.
        background: whether its last class stands for the background.
    """

    name: str
    streams: ClassVar[tuple[str, ...]]
    tracks: ClassVar[tuple[str, ...]] = MODALITIES
    background: ClassVar[bool] = False

    @abstractmethod
    def build(self, shapes: Mapping[str, tuple[int, ...]], classes: int) -> nn.Module:
        """Return the network with fresh weights.

        Args:
            shapes: shape of one segment of each feature stream, such as (128,) or (7, 7, 512); those of ``streams`` are
                used.
            classes: number of event classes C, without the background.

        Raises:
            ConfigError: the network cannot read a stream of this shape.
        """


class Network(nn.Module, ABC, Generic[Shared]):
    """A network over a batch's feature streams.

    A subclass computes what all passes share (`prepare`), runs one pass from there (`parse`), and lists the parameters that
    only the exchange between modalities uses.

    Attributes:
        composes: whether the network accepts batches with a composition. It then computes what depends on single segments
            for the rows of the streams, before `Batch.composed`; other networks receive streams of every video.
    """

    composes: ClassVar[bool] = False

    def forward(self, batch: Batch, *, cross_modal: bool = True, scoring_pass: ForwardOptions | None = None) -> Outputs:
        """Run the network on a batch.

        Args:
            batch: streams [B,T,...] by name, as the config's ``shapes`` state; a network can accept k frames per segment,
                [B,kT,...].
            cross_modal: False disables the exchange between modalities (JoMoLD's noise estimator), if the network has one.
            scoring_pass: options of a second pass over the same batch without gradient, returned in ``Outputs.scoring``. It
                reuses what precedes the first dropout and the exchange; the result equals that of a separate pass.
        """
        shared = self.prepare(batch if self.composes else batch.materialized())
        outputs = self.parse(shared, ForwardOptions(cross_modal=cross_modal))
        if scoring_pass is None:
            return outputs
        with torch.no_grad():  # after the main pass: autocast must not cache weights cast without a graph
            # a view of a shared tensor requires a gradient even if it was made under no_grad
            return replace(outputs, scoring=self.parse(shared, scoring_pass).map(Tensor.detach))

    @abstractmethod
    def prepare(self, batch: Batch) -> Shared:
        """Compute what all passes over a batch share: everything that depends neither on dropout nor on the exchange."""

    @abstractmethod
    def parse(self, shared: Shared, options: ForwardOptions) -> Outputs:
        """Run one pass on the result of `prepare`.

        Without ``options.cross_modal``, the segments of one modality must not depend on the other modality. In a network
        with one head for both, the modalities then meet in that head only.
        """

    @abstractmethod
    def exchange_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that a pass without exchange does not use; none if the network has no exchange."""


class ParsingNetwork(Network[Shared]):
    """A network with sigmoid heads for audio and visual segments; `parse` ends with `outputs`.

    Attributes:
        pooling: turns segment features into probabilities.
        visual_dropout: dropout rate of visual features before the heads.
    """

    pooling: AttentiveMMIL | FixedMMIL
    visual_dropout: float

    def outputs(self, inputs: Tensor, features: Tensor, options: ForwardOptions) -> Outputs:
        """Compute the outputs of segment features, after dropout if the pass has it.

        Args:
            inputs: [2,B,T,D] segment features before aggregation, audio first.
            features: [2,B,T,D] segment features after it.
            options: of the pass.
        """
        head_inputs = features
        if (
            self.training and options.dropout and self.visual_dropout
        ):  # for the heads, not for contrastive losses (published)
            head_inputs = torch.stack([features[0], drop(features[1], self.visual_dropout)])
        pooled = self.pooling(head_inputs)
        return Outputs(
            video=pooled.video,
            modalities=pooled.modalities,
            segments=pooled.segments,
            head=SigmoidHead(),
            features=features,
            inputs=inputs,
            temporal_weights=pooled.weights,
        )


def freeze_exchange(model: nn.Module) -> None:
    """Freeze the parameters that only the exchange uses, of every `Network` in ``model``, for training without exchange.

    DDP would otherwise wait for gradients that are never computed, or (``find_unused_parameters``) search the graph of every
    step for unused parameters, send zeros for them, and synchronize with the device to exchange which were used.
    """
    for module in model.modules():
        if isinstance(module, Network):
            for parameter in module.exchange_parameters():
                parameter.requires_grad_(False)


def frames_by_segment(batch: Batch) -> Tensor:
    """Return the visual stream as [B,T,k,Dv]; k is 1 if it has one row per segment."""
    return batch.visual.unflatten(1, (batch.audio.shape[1], -1))


def stream_width(shapes: Mapping[str, tuple[int, ...]], stream: str) -> int:
    """Return the number of values per segment of a stream without regions.

    Raises:
        ConfigError: the stream has regions, such as (7, 7, 512).
    """
    (*regions, width) = shapes[stream]
    if regions:
        raise ConfigError(
            f"model.name: this network reads one vector per segment; a segment of stream {stream} has shape {shapes[stream]}"
        )
    return width
