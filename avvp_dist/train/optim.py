"""Optimiser and learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR

from avvp_dist.config import Section


class OptimConfig(Section):
    """Adam with a learning rate that falls in steps, as HAN, MA and JoMoLD publish it."""

    lr: float = Field(3e-4, gt=0)
    """Learning rate at the start of a stage."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 penalty."""
    step_size: int = Field(10, ge=1)
    """Epochs between two falls of the learning rate."""
    gamma: float = Field(0.1, gt=0, le=1)
    """What the learning rate is multiplied by at each fall."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient; no clipping when null (published)."""

    def build(self, parameters: Iterable[nn.Parameter]) -> tuple[Adam, StepLR]:
        """Optimiser and schedule over ``parameters``; the schedule steps once an epoch."""
        optimizer = Adam(parameters, lr=self.lr, weight_decay=self.weight_decay, foreach=True)
        return optimizer, StepLR(optimizer, self.step_size, self.gamma)
