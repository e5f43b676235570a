"""Names by which readers refer to a shard and the features in it."""

from __future__ import annotations

from typing import NamedTuple

FEATURES = "features.npy"


class ShardRef(NamedTuple):
    """What a reader needs to know about a shard; see `index.ShardInfo`."""

    name: str
    bytes: int
    sha256: str
