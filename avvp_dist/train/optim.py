"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, StepLR

from avvp_dist.config import Section

_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """Optimizer and schedule; the defaults are those of HAN, MA and JoMoLD: Adam with a step schedule."""

    name: Literal["adam", "adamw"] = "adam"
    """adam: weight decay as an L2 penalty; adamw: decoupled from the gradient."""
    lr: float = Field(3e-4, gt=0)
    """Learning rate at the start of a stage; with cosine, the largest learning rate."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    """Decay rates of the running averages of the gradient and of its square."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay."""
    schedule: Literal["step", "cosine"] = "step"
    """step: multiplied by gamma every step_size epochs; cosine: linear warm-up over warmup_epochs, then a half cosine."""
    step_size: int = Field(10, ge=1)
    """step: epochs between two reductions of the learning rate."""
    gamma: float = Field(0.1, gt=0, le=1)
    """step: factor of each reduction."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """step: numbers of epochs after which the learning rate is reduced, in place of step_size."""
    warmup_epochs: int = Field(0, ge=0)
    """cosine: epochs over which the learning rate rises linearly to lr; a shorter stage ends below lr."""
    final_fraction: float = Field(0.01, ge=0, le=1)
    """cosine: learning rate of the last epoch, as a fraction of lr."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient; null for no clipping (HAN, MA, JoMoLD)."""

    @model_validator(mode="after")
    def _check_warmup(self) -> OptimConfig:
        if self.warmup_epochs and self.schedule != "cosine":
            raise ValueError("warmup_epochs needs schedule=cosine")
        return self

    def build(self, parameters: Iterable[nn.Parameter], epochs: int = 1) -> tuple[Adam | AdamW, LRScheduler]:
        """Return an optimizer of ``parameters`` and its schedule, which steps once per epoch.

        Args:
            parameters: to train.
            epochs: length of the stage, at whose end the cosine schedule ends.
        """
        cls = {"adam": Adam, "adamw": AdamW}[self.name]
        optimizer = cls(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, foreach=True)
        if self.schedule == "step":
            if self.milestones:
                return optimizer, MultiStepLR(optimizer, self.milestones, self.gamma)
            return optimizer, StepLR(optimizer, self.step_size, self.gamma)
        return optimizer, LambdaLR(optimizer, _WarmupCosine(self.warmup_epochs, epochs, self.final_fraction))


def rebase(optimizer: Optimizer, scheduler: LRScheduler, lr: float) -> None:
    """Change the base learning rate of a restored optimizer and its schedule; the same rate changes nothing."""
    for group in optimizer.param_groups:
        group["lr"] *= lr / group["initial_lr"]
        group["initial_lr"] = lr
    scheduler.base_lrs = [lr for _ in scheduler.base_lrs]


@dataclass
class _WarmupCosine:
    """Factor of the learning rate at an epoch, as in VALOR (NeurIPS 2023; published code, which counts epochs from 1).

    An object instead of a function, so that the schedule's state contains its numbers and loads without pickle.
    """

    warmup: int
    epochs: int
    final: float

    def __call__(self, epoch: int) -> float:
        epoch += 1
        if epoch < self.warmup:
            return epoch / self.warmup
        progress = (epoch - self.warmup) / max(self.epochs - self.warmup, 1)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
