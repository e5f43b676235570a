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
from avvp_dist.models.co_trained import networks_of
from avvp_dist.models.network import freeze_exchange
from avvp_dist.train.teacher import Teacher
from avvp_dist.train.timing import PhaseTimes, TimedCollective
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition


class TrainStep:
    """Training step of a stage, in one process or on one of several DDP ranks.

    It never synchronizes the host with the device.

    Args:
        model: the network, on the runtime's device.
        optimizer: over the network's parameters.
        stage: computes targets and losses.
        runtime: provides device and collective.
        seed: seed of the randomness inside the network (dropout).
        bfloat16: run the forward pass in bfloat16 autocast; losses stay in float32.
        clip_norm: largest gradient norm, or None.
        times: records the time of ``ranking``, ``exchange`` and ``all_reduce``; None measures nothing. The results of
            training do not depend on it.
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
        distributed = runtime.collective.world_size > 1
        self.collective = TimedCollective(runtime.collective, times) if times and distributed else runtime.collective
        self.device = runtime.device
        self.model = model
        self.networks = networks_of(model)
        if not stage.cross_modal:
            freeze_exchange(model)
        self.teacher = None if stage.teacher_momentum is None else Teacher(model, stage.teacher_momentum)
        if distributed:
            devices = [self.device] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(model, device_ids=devices)
            if times:
                # a lambda, since DDP refuses hooks whose annotations are strings
                self.model.register_comm_hook(times, lambda times, bucket: _all_reduce_mean(times, bucket))
        self.optimizer = optimizer
        self.stage = stage
        self.seed = seed
        self.bfloat16 = bfloat16
        self.clip_norm = clip_norm

    def __call__(self, batch: Batch, position: TrainPosition) -> tuple[dict[str, Tensor], Targets]:
        """Train on this rank's part of a global batch.

        Returns:
            the losses of this rank's videos, [B] each, detached, and their targets.
        """
        self.model.train()
        # randomness depends on the position only, so that resuming needs no generator state
        torch.manual_seed(step_seed(self.seed, position, self.collective.rank))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = forward(self.model, self.stage, batch)
            if self.teacher:
                outputs = replace(outputs, teacher=self.teacher(batch, cross_modal=self.stage.cross_modal))
        with self._measure("ranking"), torch.no_grad():
            targets = self.stage.targets(outputs, batch, position, self.collective)
        losses = self.stage.losses(outputs, targets, batch)
        # DDP averages gradients over the W ranks; the factor W turns this into the global sum over the global count
        total = losses["total"].sum() * (self.collective.world_size / batch.total)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self._freeze_idle(position)
        if self.clip_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        if self.teacher:
            self.teacher.update(self.networks[0], position.global_step)
        return {name: loss.detach() for name, loss in losses.items()}, targets

    def _freeze_idle(self, position: TrainPosition) -> None:
        """Drop the gradients of networks that the stage does not update in this step; the optimizer then skips them.

        They exist because DDP waits for every gradient. Zeros would not do: Adam's averages would still move the weights.
        """
        active = self.stage.active_networks(position)
        for number, network in enumerate(self.networks):
            if number not in active:
                network.zero_grad(set_to_none=True)

    def _measure(self, phase: str) -> AbstractContextManager[None]:
        return self.times.measure(phase) if self.times else nullcontext()


def forward(model: nn.Module, stage: TrainStage, batch: Batch) -> Outputs:
    """Run the network over the batch and the stage's mixtures, in a single call, as DDP requires."""
    whole = batch.with_mixtures(stage.mixed_windows) if stage.mixed_windows else batch
    outputs = model(whole, cross_modal=stage.cross_modal, scoring_pass=stage.scoring_pass)
    if not stage.mixed_windows:
        return outputs
    assert outputs.scoring is None, "a stage has either a scoring pass or mixtures"
    assert not outputs.co_trained, "a stage has either several networks or mixtures"
    own, *others = outputs.split(1 + len(batch.partners) * len(stage.mixed_windows))
    return replace(own, extra=tuple(others))


def _all_reduce_mean(times: PhaseTimes, bucket: dist.GradBucket) -> Future[Tensor]:
    """Average a bucket of gradients over the ranks, bitwise equal to DDP's own averaging, and measure ``all_reduce``.

    The end is recorded when the sum is complete: on the thread that completed it (gloo), or in a CUDA stream that waits for
    it (NCCL). The call itself does not block.
    """
    end_span = times.begin("all_reduce")
    # like DDP: multiply by the reciprocal, before the sum
    share = bucket.buffer().mul_(1.0 / dist.get_world_size())

    def finish(summed: Future[list[Tensor]]) -> Tensor:
        end_span()
        return summed.value()[0]

    return dist.all_reduce(share, async_op=True).get_future().then(finish)


def step_seed(seed: int, position: TrainPosition, rank: int) -> int:
    """Return the seed of the network's randomness at one step on one rank."""
    entropy = [seed, *position.stage.encode(), position.epoch, position.step, rank]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
