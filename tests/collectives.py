"""A collective whose ranks are threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from avvp_dist.dist.partition import split_sizes

T = TypeVar("T")


class FakeCollective:
    """One of W ranks that run as threads of this process; created by `FakeCollective.run`."""

    def __init__(self, rank: int, world_size: int, slots: list[Tensor | None], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.world_size = world_size
        self._slots = slots
        self._barrier = barrier

    @classmethod
    def run(cls, world_size: int, work: Callable[[FakeCollective], T]) -> list[T]:
        """Call ``work`` once per rank, concurrently, and return the results in rank order.

        Raises:
            Exception: the exception of the first rank that failed.
        """
        slots: list[Tensor | None] = [None] * world_size
        barrier = threading.Barrier(world_size)
        results: list[T | None] = [None] * world_size
        failures: list[BaseException] = []

        def run_rank(rank: int) -> None:
            try:
                results[rank] = work(cls(rank, world_size, slots, barrier))
            except threading.BrokenBarrierError:
                pass  # another rank failed; its exception is raised below
            except BaseException as failure:
                failures.append(failure)
                barrier.abort()

        threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(world_size)]
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
        self._barrier.wait()  # no rank may write its next value before all ranks have read this one
        return gathered
