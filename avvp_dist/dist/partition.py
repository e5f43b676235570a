"""Division of a global batch among ranks."""

from __future__ import annotations


def split_sizes(total: int, world: int) -> list[int]:
    """Return the number of contiguous rows, out of ``total``, of each of ``world`` ranks; they differ by at most one."""
    return [(total + world - 1 - rank) // world for rank in range(world)]
