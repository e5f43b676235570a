"""Bad shards and videos: found and named before training, so that every rank can leave out the same ones.

A shard whose hash is not the recorded one is bad as a whole, since nobody knows where it changed. In a shard with the right
hash single videos are bad: not where labels.parquet says, of another shape, not finite.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from avvp_dist import storage
from avvp_dist.data.index import INDEX_FILE, Index, Labels, LeftOut
from avvp_dist.data.reading import REMEDY, ShardStore
from avvp_dist.errors import DataError


def check_files(url: str, index: Index, labels: Labels) -> None:
    """Refuses a split some of whose shards are missing or too short or long; opens none.

    Raises:
        DataError: names them all.
    """
    found = storage.sizes(url)
    if INDEX_FILE not in found:  # a place that cannot be listed
        return
    problems = []
    for number in np.unique(labels.shard):
        shard = index.shards[number]
        if shard.name not in found:
            problems.append(f"{shard.name}: missing")
        elif found[shard.name] != shard.bytes:
            problems.append(f"{shard.name}: {found[shard.name]} bytes, the index says {shard.bytes}; delete it")
    if problems:
        title = f"{url}: bad shards of {labels.split}; pack again (complete shards are kept); {REMEDY}"
        raise DataError(problems, title)


def inspect(store: ShardStore, index: Index, labels: Mapping[str, Labels], rank: int, world: int) -> list[LeftOut]:
    """Reads every video of this rank's share of the shards; returns the bad ones, and why they are."""
    jobs = [(of_split, number) for of_split in labels.values() for number in np.unique(of_split.shard).tolist()]
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = pool.map(lambda job: inspect_shard(store, index, *job), jobs[rank::world])
        return [bad for of_shard in found for bad in of_shard]


def without(labels: Labels, left_out: Collection[LeftOut]) -> Labels:
    """The labels of the other videos.

    Raises:
        DataError: none is left.
    """
    ids = {bad.id for bad in left_out if bad.split == labels.split}
    if not ids:
        return labels
    kept = np.array([name not in ids for name in labels.ids])
    if not kept.any():
        raise DataError(f"split {labels.split}: every video is bad; pack the data set again")
    arrays: dict[str, Any] = {
        name: None if values is None else values[kept]
        for name, values in vars(labels).items()
        if name not in ("split", "ids")
    }
    return replace(labels, ids=tuple(name for name in labels.ids if name not in ids), **arrays)


def inspect_shard(store: ShardStore, index: Index, labels: Labels, number: int) -> list[LeftOut]:
    """The bad videos of shard ``number``: all of its own where the shard itself is bad."""
    info, shape = index.shards[number], (index.segments, index.width)
    rows = np.flatnonzero(labels.shard == number).tolist()
    try:
        shard = store.open(info, shape)
    except DataError as error:
        return [LeftOut(labels.ids[row], labels.split, str(error)) for row in rows]
    bad, scratch = [], np.empty(shape, np.float16)
    for row in rows:
        try:
            shard.read(labels.ids[row], int(labels.offset[row]), scratch)
        except DataError as error:
            bad.append(LeftOut(labels.ids[row], labels.split, str(error)))
    shard.close()
    return bad
