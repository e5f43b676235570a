"""Several networks of one kind, trained side by side as one module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from avvp_dist.types import Batch, ForwardOptions, Outputs


class CoTrainedNetworks(nn.Module):
    """K networks that see the same batches; to DDP, optimiser, clipping and checkpoint they are one.

    In training all of them answer: the first one's `Outputs`, with the others' in ``co_trained``. In eval mode the first one
    answers alone.

    Args:
        networks: at least one; each takes a batch and the options of a pass, and returns `Outputs`.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, batch: Batch, *, cross_modal: bool = True, scoring_pass: ForwardOptions | None = None) -> Outputs:
        """Parses a batch, see the networks' own ``forward``."""
        asked = list(self.networks) if self.training else [self.networks[0]]
        first, *others = (network(batch, cross_modal=cross_modal, scoring_pass=scoring_pass) for network in asked)
        return replace(first, co_trained=tuple(others)) if others else first
