"""How readers name a shard and the features in it."""

from __future__ import annotations

from typing import NamedTuple

FEATURES = "features.npy"


class ShardRef(NamedTuple):
    """What a reader must know of a shard; see `index.ShardInfo`."""

    name: str
    bytes: int
    sha256: str
