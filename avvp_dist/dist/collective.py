"""Collective operations among the ranks of a run.

    LocalCollective   one process
    TorchCollective   torch.distributed, under torchrun or Ray Train

Tests have a third implementation, which runs W ranks as threads of one process (tests/collectives.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from avvp_dist.dist.partition import split_sizes

# torch 2.13 renamed the function and warns about the old name
_gather_rows = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Collective(Protocol):
    """Operations among the ranks of one run. Every rank must make the same calls in the same order."""

    rank: int
    world_size: int

    def all_gather(self, rows: Tensor, total: int | None = None) -> Tensor:
        """Return the rows of all ranks in rank order, [sum of first dimensions, ...]; first dimensions can differ.

        Args:
            rows: this rank's rows.
            total: number of rows over all ranks, if they are divided as by `partition.split_sizes`. This avoids a
                preceding exchange of sizes and the wait for it.
        """
        ...

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks; the shape must be the same on all of them."""
        ...


def gather_lines(collective: Collective, lines: Sequence[str], device: torch.device) -> list[str]:
    """Return the lines of text of all ranks, in rank order; every rank must call it."""
    text = "".join(f"{line}\n" for line in ["", *lines])  # never empty: not every backend can send an empty tensor
    gathered = collective.all_gather(torch.tensor(list(text.encode()), dtype=torch.uint8, device=device))
    return [line for line in bytes(gathered.tolist()).decode().split("\n") if line]


class LocalCollective:
    """`Collective` of a single process, without any communication."""

    rank = 0
    world_size = 1

    def all_gather(self, rows: Tensor, total: int | None = None) -> Tensor:
        """See `Collective`."""
        return rows

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """See `Collective`."""
        return values


class TorchCollective:
    """`Collective` over the default process group of torch.distributed."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def all_gather(self, rows: Tensor, total: int | None = None) -> Tensor:
        """See `Collective`."""
        sizes = self._sizes(rows) if total is None else split_sizes(total, self.world_size)
        longest = max(sizes)
        if rows.shape[0] < longest:  # all_gather needs equal shapes; the padding is removed below
            rows = torch.cat([rows, rows.new_zeros(longest - rows.shape[0], *rows.shape[1:])])
        gathered = rows.new_empty(self.world_size * longest, *rows.shape[1:])
        _gather_rows(gathered, rows.contiguous())
        if min(sizes) == longest:
            return gathered
        return torch.cat([gathered[rank * longest : rank * longest + size] for rank, size in enumerate(sizes)])

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """See `Collective`."""
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    def _sizes(self, rows: Tensor) -> list[int]:
        size = torch.tensor([rows.shape[0]], device=rows.device)
        sizes = size.new_empty(self.world_size)
        _gather_rows(sizes, size)
        return sizes.tolist()
