"""The plan of an epoch: which video is seen at which step by which rank. Integers in, integers out.

The order of videos is a property of (seed, epoch) alone, never of the number of ranks. Every video comes exactly once an
epoch; the last batch may be short and is neither padded nor dropped; every rank takes every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import ConfigError


def split_sizes(total: int, world: int) -> list[int]:
    """How many of ``total`` rows each of ``world`` ranks takes: contiguous, sizes differing by at most one."""
    return [(total + world - 1 - rank) // world for rank in range(world)]


def check(videos: int, batch_size: int, world: int) -> None:
    """Refuses numbers that cannot be planned.

    Raises:
        ConfigError: no videos, or a batch size that does not divide evenly over the ranks.
    """
    problems = []
    if videos < 1:
        problems.append("the split has no videos")
    if batch_size % world:
        near = max(world, round(batch_size / world) * world)
        problems.append(
            f"batch_size {batch_size} is the global batch and does not divide over {world} workers; use {near} or another "
            f"multiple of {world}"
        )
    if problems:
        raise ConfigError(problems, "the training plan does not work out")


class Plan(Protocol):
    """One epoch in global batches: which videos, in which order, and who of the ranks sees which."""

    @property
    def batch_size(self) -> int:
        """Videos of every global batch but the last."""
        ...

    @property
    def seed(self) -> int:
        """Root of the order."""
        ...

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""
        ...

    @property
    def steps(self) -> int:
        """Steps every rank takes in this epoch."""
        ...

    def order(self) -> NDArray[np.int64]:
        """Numbers of all videos in the order of this epoch, int64 [N]: global batch after global batch."""
        ...

    def total(self, step: int) -> int:
        """Videos in the global batch of ``step``."""
        ...

    def rank_slice(self, step: int, rank: int, world: int) -> slice:
        """The part of `order` that ``rank`` of ``world`` sees at ``step``; may be empty in a short last batch."""
        ...


@dataclass(frozen=True)
class EpochPlan:
    """One epoch over ``videos`` videos in global batches of ``batch_size``, in any order (all are in memory)."""

    videos: int
    batch_size: int
    seed: int
    epoch: int

    @property
    def steps(self) -> int:
        """Steps every rank takes in this epoch."""
        return -(-self.videos // self.batch_size)

    def order(self) -> NDArray[np.int64]:
        """Numbers of all videos in the order of this epoch, int64 [N]."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.videos)

    def total(self, step: int) -> int:
        """Videos in the global batch of ``step``."""
        return min(self.batch_size, self.videos - step * self.batch_size)

    def rank_slice(self, step: int, rank: int, world: int) -> slice:
        """The part of `order` that ``rank`` of ``world`` sees at ``step``; may be empty in a short last batch."""
        sizes = split_sizes(self.total(step), world)
        start = step * self.batch_size + sum(sizes[:rank])
        return slice(start, start + sizes[rank])
