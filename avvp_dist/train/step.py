"""One training step: forward, targets, loss over the global batch, backward, update."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from avvp_dist.dist.runtime import Runtime
from avvp_dist.methods.base import TrainStage
from avvp_dist.models.network import without_exchange
from avvp_dist.train.timing import PhaseTimes, TimedCollective
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition


class TrainStep:
    """A stage's step over one network, in one process or as one of several DDP ranks.

    Nothing in here waits for the device.

    Args:
        model: the network, on the runtime's device.
        optimizer: over the network's parameters.
        stage: gives targets and losses.
        runtime: gives device and collective.
        seed: root of the randomness inside the network (dropout).
        bfloat16: forward pass in bfloat16 autocast; losses stay in float32.
        clip_norm: largest gradient norm, or None.
        times: told how long ``ranking``, ``exchange`` and ``all_reduce`` take; None measures nothing. Results are the same.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        stage: TrainStage,
        runtime: Runtime,
        *,
        seed: int,
        bfloat16: bool = False,
        clip_norm: float | None = None,
        times: PhaseTimes | None = None,
    ) -> None:
        self.times = times
        several = runtime.collective.world_size > 1
        self.collective = TimedCollective(runtime.collective, times) if times and several else runtime.collective
        self.device = runtime.device
        self.model = model
        if not stage.cross_modal:
            without_exchange(model)
        if several:
            devices = [self.device] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(model, device_ids=devices)
            if times:
                # bare, since DDP refuses annotations that are strings
                self.model.register_comm_hook(times, lambda times, bucket: _averaged(times, bucket))
        self.optimizer = optimizer
        self.stage = stage
        self.seed = seed
        self.bfloat16 = bfloat16
        self.clip_norm = clip_norm

    def __call__(self, batch: Batch, position: TrainPosition) -> tuple[dict[str, Tensor], Targets]:
        """Trains on this rank's part of a global batch.

        Returns:
            the losses of this rank's videos, [B] each, detached, and the targets they aimed at.
        """
        self.model.train()
        # The randomness of a step is a function of where it is, so resuming needs no generator state.
        torch.manual_seed(step_seed(self.seed, position, self.collective.rank))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = self._forward(batch)
        with self._measured("ranking"), torch.no_grad():
            targets = self.stage.targets(outputs, batch, position, self.collective)
        losses = self.stage.losses(outputs, targets, batch)
        # DDP averages gradients over ranks; times W, the sum of local sums over the global count remains
        total = losses["total"].sum() * (self.collective.world_size / batch.total)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if self.clip_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}, targets

    def _forward(self, batch: Batch) -> Outputs:
        """The network over the batch and what the stage makes of it, in one call, as DDP wants it."""
        others = self.stage.also(batch)
        whole = batch.followed_by(others) if others else batch
        outputs = self.model(whole, cross_modal=self.stage.cross_modal, scoring_pass=self.stage.scoring_pass)
        if not others:
            return outputs
        assert outputs.scoring is None, "a stage either judges or adds batches"
        assert not outputs.co_trained, "a stage either has co_trained or adds batches"
        own, *rest = outputs.parts(1 + len(others))
        return replace(own, others=tuple(rest))

    def _measured(self, phase: str) -> AbstractContextManager[None]:
        return self.times.measure(phase) if self.times else nullcontext()


def _averaged(times: PhaseTimes, bucket: dist.GradBucket) -> Future[Tensor]:
    """Averages a bucket of gradients over the ranks as DDP does by itself, to the bit, and measures ``all_reduce``.

    The end is marked where the sum is there: on the thread that finished it (gloo), or in a stream of its own, which waits
    for it (NCCL); nobody waits here.
    """
    over = times.begin("all_reduce")
    # DDP multiplies by the reciprocal too, and before it sums
    share = bucket.buffer().mul_(1.0 / dist.get_world_size())

    def finish(summed: Future[list[Tensor]]) -> Tensor:
        over()
        return summed.value()[0]

    return dist.all_reduce(share, async_op=True).get_future().then(finish)


def step_seed(seed: int, position: TrainPosition, rank: int) -> int:
    """Seed of the network's randomness at one step of one rank."""
    place = [seed, *position.stage.encode(), position.epoch, position.step, rank]
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)
