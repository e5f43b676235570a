"""Several networks of the same kind, trained side by side as one module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from avvp_dist.types import Batch, ForwardOptions, Outputs


class CoTrainedNetworks(nn.Module):
    """K networks that are trained on the same batches; DDP, optimizer, clipping and checkpoint treat them as one module.

    In training mode, all networks are run: the result is the `Outputs` of the first one, with those of the others in
    ``co_trained``. In eval mode, only the first network is run.

    Args:
        networks: at least one; each takes a batch and the options of a pass, and returns `Outputs`.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, batch: Batch, *, cross_modal: bool = True, scoring_pass: ForwardOptions | None = None) -> Outputs:
        """Run the networks on a batch; the arguments are those of `Network.forward`."""
        active = list(self.networks) if self.training else [self.networks[0]]
        first, *others = (network(batch, cross_modal=cross_modal, scoring_pass=scoring_pass) for network in active)
        return replace(first, co_trained=tuple(others)) if others else first


def build_networks(build: Callable[[], nn.Module], count: int) -> tuple[nn.Module, nn.Module]:
    """Build ``count`` networks, each with its own initial weights.

    Returns:
        the module to train, and the first network, which is validated and kept.
    """
    networks = [build() for _ in range(count)]
    return CoTrainedNetworks(networks) if count > 1 else networks[0], networks[0]


def networks_of(module: nn.Module) -> list[nn.Module]:
    """Return the networks in the module to train that `build_networks` returned."""
    return list(module.networks) if isinstance(module, CoTrainedNetworks) else [module]
