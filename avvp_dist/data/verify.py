"""Reads a packed data set from end to end, past every cache, and says what is not as the index has it."""

from __future__ import annotations

import io
from typing import BinaryIO, NamedTuple

from avvp_dist import storage
from avvp_dist.data import quarantine, workers
from avvp_dist.data.cache import ShardCache, WrongBytes, check_content
from avvp_dist.data.index import Index, LeftOut, ShardInfo, read_labels
from avvp_dist.data.quarantine import ShardVideos
from avvp_dist.data.reading import ShardRef, ShardStore
from avvp_dist.errors import DataError


class Verified(NamedTuple):
    """What was read, and the videos that are bad, each with the reason."""

    shards: int
    videos: int
    bytes: int
    bad: tuple[LeftOut, ...]


class _NoCache(ShardCache):
    """Every shard comes from where it lies: what a node holds already says nothing about the store."""

    def open(self, url: str, shard: ShardInfo | ShardRef) -> BinaryIO:
        """See `ShardCache.open`."""
        if storage.local_path(url) is not None:
            return super().open(url, shard)
        try:
            return io.BytesIO(check_content(storage.join(url, shard.name), shard))
        except FileNotFoundError:
            raise DataError(f"{shard.name}: missing; pack again") from None
        except WrongBytes as error:
            raise DataError(f"{shard.name}: {error}; delete it there and pack again") from None


def verify(url: str, processes: int | None = None) -> Verified:
    """Every shard's hash and every video of it, several shards at a time.

    Args:
        url: packed data set.
        processes: that read; by default one a core.

    Raises:
        DataError: index or labels cannot be used, or contradict each other.
    """
    index = Index.load(url)
    store = ShardStore(url, _NoCache())
    shards = [shard for of_split in read_labels(url, index).values() for shard in quarantine.shards_of(index, of_split)]
    sizes = [len(shard.ids) for shard in shards]
    with workers.pool(processes) as pool:
        found = workers.run(_verify, [(store, shard) for shard in shards], sizes, pool, "verified", "shards")
    return Verified(
        len(shards),
        sum(sizes),
        sum(shard.info.bytes for shard in shards),
        tuple(bad for of_shard in found for bad in of_shard),
    )


def _verify(job: tuple[ShardStore, ShardVideos]) -> list[LeftOut]:
    return quarantine.inspect_shard(*job)
