"""Reads a packed data set from end to end, past every cache, and says what is not as the index has it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from avvp_dist import storage
from avvp_dist.data import quarantine, workers
from avvp_dist.data.cache import ShardCache, WrongBytes, check_content
from avvp_dist.data.index import Index, Labels, LeftOut, ShardInfo, read_labels
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


@dataclass(frozen=True)
class _Job:
    store: ShardStore
    index: Index
    labels: Labels
    shard: int


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
    jobs = [
        _Job(store, index, of_split, number)
        for of_split in read_labels(url, index).values()
        for number in np.unique(of_split.shard).tolist()
    ]
    sizes = [index.shards[job.shard].samples for job in jobs]
    with workers.pool(processes) as executor:
        found = workers.run(_verify, jobs, sizes, executor, "verified")
    return Verified(
        len(jobs),
        sum(sizes),
        sum(index.shards[job.shard].bytes for job in jobs),
        tuple(bad for of_shard in found for bad in of_shard),
    )


def _verify(job: _Job) -> list[LeftOut]:
    return quarantine.inspect_shard(job.store, job.index, job.labels, job.shard)
