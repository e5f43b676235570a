"""Finds bad shards and videos before training, so that every rank leaves out the same ones.

A shard whose hash differs from the recorded one is bad as a whole, since the location of the change is unknown. In a shard
with the correct hash, single videos can be bad: not at the offset in labels.parquet, of another shape, or not finite.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avvp_dist import storage
from avvp_dist.errors import DataError
from avvp_dist.shards.index import INDEX_FILE, Index, Labels, LeftOut, ShardInfo
from avvp_dist.shards.reading import REMEDY, ShardFile, ShardStore


def check_files(url: str, index: Index, labels: Labels) -> None:
    """Refuse a split with missing shards or shards of the wrong size, without opening any.

    Raises:
        DataError: names all of them.
    """
    found = storage.sizes(url)
    if INDEX_FILE not in found:  # the location cannot be listed
        return
    problems = []
    for number in np.unique(labels.shard):
        shard = index.shards[number]
        if shard.name not in found:
            problems.append(f"{shard.name}: missing")
        elif found[shard.name] != shard.bytes:
            problems.append(f"{shard.name}: {found[shard.name]} bytes, but the index records {shard.bytes}; delete it")
    if problems:
        title = f"{url}: bad shards of {labels.split}; pack again (complete shards are kept); {REMEDY}"
        raise DataError(problems, title)


def inspect(store: ShardStore, index: Index, labels: Mapping[str, Labels], rank: int, world: int) -> list[LeftOut]:
    """Read every video of this rank's share of the shards; return the bad ones with the reasons."""
    shards = [shard for of_split in labels.values() for shard in shards_in_split(index, of_split)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = pool.map(lambda shard: inspect_shard(store, shard), shards[rank::world])
        return [bad for of_shard in found for bad in of_shard]


def exclude(labels: Labels, left_out: Collection[LeftOut]) -> Labels:
    """Return the labels of the videos that are not left out.

    Raises:
        DataError: none remain.
    """
    ids = {bad.id for bad in left_out if bad.split == labels.split}
    if not ids:
        return labels
    kept = np.array([name not in ids for name in labels.ids])
    if not kept.any():
        raise DataError(f"split {labels.split}: every video is bad; pack the data set again")
    arrays: dict[str, Any] = {
        name: values[kept] for name, values in vars(labels).items() if name not in ("split", "ids", "truth")
    }
    arrays["truth"] = labels.truth and {track: active[kept] for track, active in labels.truth.items()}
    return replace(labels, ids=tuple(name for name in labels.ids if name not in ids), **arrays)


@dataclass(frozen=True)
class ShardVideos:
    """What index.json and labels.parquet record about one shard; small, since it is sent to another process per shard.

    Attributes:
        info: index entry of the shard.
        shape: T and width of its videos.
        split: of its videos.
        ids: of its videos.
        offsets: at which their data start in the tar.
    """

    info: ShardInfo
    shape: tuple[int, int]
    split: str
    ids: tuple[str, ...]
    offsets: tuple[int, ...]


def shards_in_split(index: Index, labels: Labels) -> list[ShardVideos]:
    """The shards of a split, in the order of the index."""
    by_shard = np.argsort(labels.shard, kind="stable")
    numbers, starts = np.unique(labels.shard[by_shard], return_index=True)
    shape, found = (index.segments, index.width), []
    for number, rows in zip(numbers.tolist(), np.split(by_shard, starts)[1:], strict=True):
        ids, offsets = tuple(labels.ids[row] for row in rows.tolist()), tuple(labels.offset[rows].tolist())
        found.append(ShardVideos(index.shards[number], shape, labels.split, ids, offsets))
    return found


def inspect_shard(store: ShardStore, videos: ShardVideos) -> list[LeftOut]:
    """The bad videos of a shard; all of them if the shard itself is bad."""
    try:
        shard = store.open(videos.info, videos.shape)
    except DataError as error:
        return [LeftOut(name, videos.split, str(error)) for name in videos.ids]
    with shard:
        return inspect_videos(shard, videos)


def inspect_videos(shard: ShardFile, videos: ShardVideos) -> list[LeftOut]:
    """The bad videos of an open shard."""
    bad, scratch = [], np.empty(videos.shape, np.float16)
    for name, offset in zip(videos.ids, videos.offsets, strict=True):
        try:
            shard.read(name, offset, scratch)
        except DataError as error:
            bad.append(LeftOut(name, videos.split, str(error)))
    return bad
