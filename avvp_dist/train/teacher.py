"""A teacher: an exponential moving average of the network in training, whose outputs become its targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from avvp_dist.types import Batch, Outputs


class Teacher:
    """Exponential moving average of a network's weights.

    The average starts as a copy of the network. Its momentum after t steps is min(momentum, (1 + t) / (10 + t)), so that the
    initial, random weights do not dominate it for the first 1 / (1 - momentum) steps.

    Args:
        network: the network, on its device.
        momentum: weight of the average in an update; the network has the rest.
    """

    def __init__(self, network: nn.Module, momentum: float) -> None:
        self._momentum = momentum
        self._share = 1.0  # of the network in the next update
        self._averaged = AveragedModel(network, multi_avg_fn=self._average)
        self._averaged.eval().requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        """The averaged network, in eval mode."""
        return self._averaged.module

    def __call__(self, batch: Batch, *, cross_modal: bool) -> Outputs:
        """Return the outputs for a batch, without gradient."""
        with torch.no_grad():
            return self._averaged(batch, cross_modal=cross_modal)

    def update(self, network: nn.Module, step: int) -> None:
        """Average the network's weights after ``step`` updates of the network, counted from 0."""
        self._share = 1 - min(self._momentum, (1 + step) / (10 + step))
        self._averaged.update_parameters(network)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights and the number of updates."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._averaged.load_state_dict(state)

    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
        torch._foreach_lerp_(list(averaged), list(current), self._share)
