"""What every network offers: one or two passes over a batch in one call, and outputs that any method can train on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from avvp_dist.models.dropout import dropout as drop
from avvp_dist.models.pooling import AttentiveMMIL, FixedMMIL
from avvp_dist.types import Batch, ForwardOptions, Outputs

Shared = TypeVar("Shared")


class Network(nn.Module, ABC, Generic[Shared]):
    """A network over a batch's feature streams.

    A subclass says what all passes share (`prepare`), what one pass makes of it (`parse`, which ends in `outputs`), and
    which of its weights serve the exchange alone.

    Attributes:
        pooling: from segment features to probabilities.
        visual_dropout: dropout rate of visual features before the heads.
    """

    pooling: AttentiveMMIL | FixedMMIL
    visual_dropout: float

    def forward(self, batch: Batch, *, cross_modal: bool = True, scoring_pass: ForwardOptions | None = None) -> Outputs:
        """Parses a batch.

        Args:
            batch: audio [B,T,Da], visual [B,T,Dv] or [B,kT,Dv] (k frames a segment), motion [B,T,Dm].
            cross_modal: False switches the exchange between modalities off (JoMoLD's noise estimator), where there is one.
            scoring_pass: a second pass over the same batch without gradient, returned in ``Outputs.scoring``; it shares
                what comes before the first dropout and the exchange, which is exact.
        """
        shared = self.prepare(batch)
        outputs = self.parse(shared, ForwardOptions(cross_modal=cross_modal))
        if scoring_pass is None:
            return outputs
        with torch.no_grad():  # after the main pass: autocast must not cache weights cast without a graph
            return _with_scoring_pass(outputs, self.parse(shared, scoring_pass))

    @abstractmethod
    def prepare(self, batch: Batch) -> Shared:
        """What all passes over a batch share: everything that depends neither on dropout nor on the exchange."""

    @abstractmethod
    def parse(self, shared: Shared, how: ForwardOptions) -> Outputs:
        """One pass over what `prepare` gave; without ``how.cross_modal`` no modality's segments depend on the other's."""

    @abstractmethod
    def exchange_parameters(self) -> Iterator[nn.Parameter]:
        """The weights that take no part in a pass without exchange."""

    def outputs(self, inputs: Tensor, features: Tensor, how: ForwardOptions) -> Outputs:
        """Probabilities of segment features, after dropout where the pass has it.

        Args:
            inputs: [2,B,T,D] segment features before aggregation, audio first.
            features: [2,B,T,D] after it.
            how: the pass.
        """
        heard_and_seen = features
        if self.training and how.dropout and self.visual_dropout:  # the heads see it, contrastive losses do not (published)
            heard_and_seen = torch.stack([features[0], drop(features[1], self.visual_dropout)])
        video, audio, visual, segments, weights = self.pooling(heard_and_seen)
        return Outputs(video, audio, visual, segments, features[0], features[1], inputs[0], inputs[1], weights)


def without_exchange(model: nn.Module) -> None:
    """Freezes the weights that only the exchange uses, of every `Network` in ``model``.

    For training without exchange. DDP would otherwise wait for gradients that never come, or search the graph of every
    step for weights that got none, send zeros for them, and wait for the device to tell who used what.
    """
    for module in model.modules():
        if isinstance(module, Network):
            for parameter in module.exchange_parameters():
                parameter.requires_grad_(False)


def frames_by_segment(batch: Batch) -> Tensor:
    """The visual stream as [B,T,k,Dv], whether it has k frames a segment or one row."""
    return batch.visual.unflatten(1, (batch.audio.shape[1], -1))


def _with_scoring_pass(outputs: Outputs, scoring_pass: Outputs) -> Outputs:
    # a view taken under no_grad of what both passes share still asks for a gradient
    apart: dict[str, Any] = {name: value.detach() for name, value in vars(scoring_pass).items() if isinstance(value, Tensor)}
    return Outputs(**{**vars(outputs), "scoring": Outputs(**apart)})
