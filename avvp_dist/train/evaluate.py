"""Outputs of a network for a split, and the selection of the best epoch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avvp_dist.config import Section, Text
from avvp_dist.dist.runtime import Runtime
from avvp_dist.loading.split import SplitReader
from avvp_dist.tasks.base import Rows, Task, TaskSection
from avvp_dist.types import Batch, Outputs

LAST = "last"
"""Value of ``evaluate.select`` that selects the last epoch."""


class EvaluateConfig(Section):
    """Evaluation during training, and selection of the best epoch."""

    select: Text | None = None
    """Metric on val that selects the best epoch; last selects the last epoch; null for the task's default metric."""
    ties: Literal["later", "first"] = "later"
    """Which of equally good epochs is selected: the later (HAN, MA, JoMoLD) or the first (VALOR); published code."""
    batch_size: int = Field(256, ge=1, le=10_000_000)
    """Number of videos that a rank evaluates at a time."""

    def monitored(self, task: type[TaskSection]) -> str:
        """Return the name of the metric that progress reports show."""
        return task.default_metric if self.select in (None, LAST) else str(self.select)

    def is_better(self, task: type[TaskSection], value: float, best: float) -> bool:
        """Return whether an epoch whose monitored metric is ``value`` replaces the previous best epoch."""
        if self.select == LAST or value == best:
            return self.select == LAST or self.ties == "later"
        return (value > best) == task.metric(self.monitored(task)).higher_is_better


def run_over(
    model: nn.Module,
    split: SplitReader,
    runtime: Runtime,
    process: Callable[[Outputs, Batch], None],
    *,
    cross_modal: bool,
    batch_size: int,
    bfloat16: bool = False,
) -> None:
    """Run a network in eval mode over this rank's part of a split, in the split's order, without gradient."""
    collective = runtime.collective
    batches = split.iter_all(batch_size, collective.rank, collective.world_size)
    model.eval()
    with closing(batches), torch.no_grad(), torch.autocast(runtime.device.type, torch.bfloat16, enabled=bfloat16):
        for batch in batches:
            process(model(batch, cross_modal=cross_modal), batch)


def predict(
    model: nn.Module,
    split: SplitReader,
    task: Task,
    runtime: Runtime,
    *,
    cross_modal: bool,
    batch_size: int,
    bfloat16: bool = False,
) -> Rows:
    """Return what the task needs of the network's outputs for all videos, in the split's order, the same on every rank."""
    collective = runtime.collective
    gathered: list[dict[str, Tensor]] = []
    indices = []

    def collect(outputs: Outputs, batch: Batch) -> None:
        gathered.append(task.rows(outputs, batch))
        indices.append(batch.index)

    run_over(model, split, runtime, collect, cross_modal=cross_modal, batch_size=batch_size, bfloat16=bfloat16)
    shapes = {name: tensor.shape[1:] for name, tensor in gathered[0].items()}
    # one collective call for all: [N,S]
    table = torch.cat([torch.cat([tensor.flatten(1) for tensor in rows.values()], dim=1) for rows in gathered])
    order = collective.all_gather(torch.cat(indices)).argsort()
    columns = collective.all_gather(table)[order].cpu().split([shape.numel() for shape in shapes.values()], dim=1)
    return {
        name: column.reshape(len(order), *shape).numpy()
        for (name, shape), column in zip(shapes.items(), columns, strict=True)
    }
