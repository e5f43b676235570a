"""How the rows of a global batch are divided over ranks."""

from __future__ import annotations


def split_sizes(total: int, world: int) -> list[int]:
    """How many of ``total`` rows each of ``world`` ranks takes: contiguous, sizes differing by at most one."""
    return [(total + world - 1 - rank) // world for rank in range(world)]
