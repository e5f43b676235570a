"""Second videos for methods that mix two: a seeded choice over the whole split, the same for any rank and world size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import DataError


def disjoint(ids: Sequence[str], weak: NDArray[np.bool_], seed: int, draws: int = 1, epoch: int = 0) -> NDArray[np.int64]:
    """Partners that share no weak label, uniform over all such videos, with replacement over draws.

    A video's choice depends on (seed, epoch, its id) and the split alone, not on its place in the split's order of work.

    Args:
        ids: names of the N videos.
        weak: bool [N,C] weak labels.
        seed, epoch: roots of the choice.
        draws: K partners a video.

    Returns:
        int64 [N,K], numbers of the partners.

    Raises:
        DataError: videos that share a label with every other.
    """
    partners = np.empty((len(ids), draws), np.int64)
    labels = weak.astype(np.float32)
    lonely = []
    for row, name in enumerate(ids):
        candidates = np.flatnonzero(labels @ labels[row] == 0)
        if not len(candidates):
            lonely.append(name)
            continue
        own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        partners[row] = candidates[np.random.default_rng([seed, epoch, own]).integers(len(candidates), size=draws)]
    if lonely:
        raise DataError([f"{name}: shares a label with every other video" for name in lonely], "no partners can be drawn")
    return partners
