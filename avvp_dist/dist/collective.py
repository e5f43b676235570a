"""What ranks say to each other: two operations, three forms.

    LocalCollective   one process
    TorchCollective   torch.distributed, under torchrun or Ray Train
    FakeCollective    W ranks as threads of one process, for tests
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from avvp_dist.dist.partition import split_sizes

T = TypeVar("T")

# torch 2.13 renames it and warns about the old name
_gather_rows = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Collective(Protocol):
    """Exchange among the ranks of one run. Every rank must make the same calls in the same order."""

    rank: int
    world_size: int

    def all_gather(self, rows: Tensor, total: int | None = None) -> Tensor:
        """Rows of all ranks in rank order, [sum of first dimensions, ...]; first dimensions may differ.

        Args:
            rows: this rank's rows.
            total: rows over all ranks, where they are spread as `plan.split_sizes` spreads a batch; spares the exchange of
                sizes (and the wait for it).
        """
        ...

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum over ranks; the same shape on all."""
        ...


def gather_lines(collective: Collective, lines: Sequence[str], device: torch.device) -> list[str]:
    """Every rank's lines of text, in rank order; every rank calls it."""
    mine = "".join(f"{line}\n" for line in ["", *lines])  # never nothing, which not every backend can send
    gathered = collective.all_gather(torch.tensor(list(mine.encode()), dtype=torch.uint8, device=device))
    return [line for line in bytes(gathered.tolist()).decode().split("\n") if line]


class LocalCollective:
    """One process: nothing to exchange."""

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
        if rows.shape[0] < longest:  # all_gather wants equal shapes: the tail is cut off again below
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


class FakeCollective:
    """One of W ranks that live as threads in this process; made by `FakeCollective.run`."""

    def __init__(self, rank: int, world_size: int, slots: list[Tensor | None], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.world_size = world_size
        self._slots = slots
        self._barrier = barrier

    @classmethod
    def run(cls, world_size: int, work: Callable[[FakeCollective], T]) -> list[T]:
        """Calls ``work`` once a rank, all at the same time; returns the results in rank order.

        Raises:
            Exception: what the first failing rank raised.
        """
        slots: list[Tensor | None] = [None] * world_size
        barrier = threading.Barrier(world_size)
        results: list[T | None] = [None] * world_size
        failures: list[BaseException] = []

        def play(rank: int) -> None:
            try:
                results[rank] = work(cls(rank, world_size, slots, barrier))
            except threading.BrokenBarrierError:
                pass  # another rank failed and is reported below
            except BaseException as failure:
                failures.append(failure)
                barrier.abort()

        threads = [threading.Thread(target=play, args=(rank,)) for rank in range(world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return results  # type: ignore[return-value]

    def all_gather(self, rows: Tensor, total: int | None = None) -> Tensor:
        """See `Collective`."""
        gathered = self._exchange(rows)
        if total is not None:
            assert [len(part) for part in gathered] == split_sizes(total, self.world_size)
        return torch.cat(gathered)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """See `Collective`."""
        return torch.stack(self._exchange(values)).sum(0)

    def _exchange(self, value: Tensor) -> list[Tensor]:
        self._slots[self.rank] = value
        self._barrier.wait()
        gathered = [slot for slot in self._slots if slot is not None]
        self._barrier.wait()  # nobody may write the next value before all have read this one
        return gathered
