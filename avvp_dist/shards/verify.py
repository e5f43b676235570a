"""Reads a packed data set from end to end, bypassing the cache, and reports every difference from its index."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from avvp_dist import storage
from avvp_dist.errors import DataError
from avvp_dist.shards import quarantine, worker_pool
from avvp_dist.shards.cache import ContentMismatch, ShardCache, fetch_verified
from avvp_dist.shards.checked_file import OpenShard, ShardInMemory
from avvp_dist.shards.index import (
    INDEX_FILE,
    LABELS_FILE,
    PARTS_FOLDER,
    Index,
    ShardInfo,
    labels_by_split,
    labels_info,
    read_table,
)
from avvp_dist.shards.quarantine import ShardVideos
from avvp_dist.shards.reading import ShardFile, ShardStore
from avvp_dist.shards.reference import FEATURES, ShardRef
from avvp_dist.shards.shard_file import describe
from avvp_dist.text.plural import plural
from avvp_dist.types import Event, VideoRecord

_SHOWN = 100  # characters of a value in a message


class VerifyReport(NamedTuple):
    """What was read, and what is wrong with it.

    Attributes:
        shards, videos, bytes: totals of the index.
        bad_videos: number of bad videos, including those in bad shards.
        problems: one line per problem, with the name of the file.
        fingerprint: of the data set, after checksums were added.
    """

    shards: int
    videos: int
    bytes: int
    bad_videos: int
    problems: tuple[str, ...]
    fingerprint: str


class _Job(NamedTuple):
    """A shard to read.

    Attributes:
        rows: of labels.parquet; None if that is unusable, in which case only the shard's hash is verified.
    """

    store: ShardStore
    shard: ShardInfo
    shape: tuple[int, int]
    classes: tuple[str, ...]
    tracks: tuple[str, ...]
    rows: pa.Table | None


class _ShardResult(NamedTuple):
    bad_videos: int
    problems: list[str]


class _NoCache(ShardCache):
    """Reads every shard from its original location, since a cached copy proves nothing about the store."""

    def open(self, url: str, shard: ShardInfo | ShardRef) -> OpenShard:
        """See `ShardCache.open`."""
        if storage.local_path(url) is not None:
            return super().open(url, shard)
        try:
            return ShardInMemory(fetch_verified(storage.join(url, shard.name), shard), shard)
        except FileNotFoundError:
            raise DataError(f"{shard.name}: missing; pack again") from None
        except ContentMismatch as error:
            raise DataError(f"{shard.name}: {error}; delete it there and pack again") from None


def verify(url: str, processes: int | None = None, record: bool = False) -> VerifyReport:
    """Verify every hash and every video, and compare labels.parquet with what the shards record about their videos.

    Args:
        url: packed data set.
        processes: number of reader processes; one per core by default.
        record: if nothing is wrong, add the checksums that a data set of an earlier version lacks.

    Raises:
        DataError: index.json is unusable, so that nothing can be compared with it.
    """
    index = Index.load(url)
    problems = _unexpected_files(url, index)
    table = None
    try:
        table = read_table(url, index)
        labels_by_split(url, index, table)
    except DataError as error:
        problems += [f"{LABELS_FILE}: {problem}" if error.title else problem for problem in error.problems]
        table = None
    jobs = _jobs(ShardStore(url, _NoCache()), index, table)
    sizes = [shard.samples for shard in index.shards]
    with worker_pool.pool(processes) as pool:
        found = worker_pool.run(_verify, jobs, sizes, pool, "verified", "shards")
    problems += [line for of_shard in found for line in of_shard.problems]
    if record and table is not None and not problems:
        index = _record(url, index, table)
    size, bad = sum(shard.bytes for shard in index.shards), sum(of_shard.bad_videos for of_shard in found)
    return VerifyReport(len(jobs), sum(sizes), size, bad, tuple(problems), index.fingerprint)


def _unexpected_files(url: str, index: Index) -> list[str]:
    """Files that look like part of the data set, but are not."""
    known = {shard.name for shard in index.shards} | {INDEX_FILE, LABELS_FILE}
    names = [name for name in storage.names(url) if name not in known]
    problems = [f"{name}: not in {INDEX_FILE}; delete it" for name in names if name.endswith((".tar", ".parquet"))]
    if PARTS_FOLDER in names:
        problems.append(f"{PARTS_FOLDER}: packing was interrupted at the end; run the pack command again")
    return problems


def _jobs(store: ShardStore, index: Index, table: pa.Table | None) -> list[_Job]:
    shape = (index.segments, index.width)
    job = _Job(store, index.shards[0], shape, index.classes, index.tracks, None) if index.shards else None
    rows: Sequence[pa.Table | None] = [None] * len(index.shards)
    if table is not None and index.shards:
        by_shard = np.argsort(table["shard"].to_numpy(), kind="stable")
        ends = np.cumsum([shard.samples for shard in index.shards])
        # copies, since pickling a slice would send the whole table to another process
        rows = [table.take(pa.array(part)) for part in np.split(by_shard, ends[:-1])]
    return [job._replace(shard=shard, rows=part) for shard, part in zip(index.shards, rows, strict=True) if job]


def _verify(job: _Job) -> _ShardResult:
    try:
        file = job.store.cache.open(job.store.url, job.shard)
    except DataError as error:
        return _ShardResult(job.shard.samples, error.problems)
    with file:
        if job.rows is None:
            return _ShardResult(0, [])
        ids, offsets = tuple(job.rows["id"].to_pylist()), tuple(job.rows["offset"].to_pylist())
        videos = ShardVideos(job.shard, job.shape, job.shard.split, ids, offsets)
        bad = quarantine.inspect_videos(ShardFile(file, job.shape), videos)
        return _ShardResult(len(bad), [video.reason for video in bad] + _contradictions(file, job))


def _contradictions(file: OpenShard, job: _Job) -> list[str]:
    """Differences between the members of a shard and labels.parquet."""
    assert job.rows is not None
    expected: dict[str, dict[str, Any] | None] = {}
    for row in job.rows.to_pylist():
        expected[f"{row['id']}.{FEATURES}"] = None
        expected[f"{row['id']}.json"] = describe(_video(row, job.tracks), job.classes)
    problems, name = [], job.shard.name
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = tar.getmembers()
            found = [member.name for member in members]
            if found != list(expected):
                surplus = sorted(set(found) - set(expected)) or sorted(set(expected) - set(found)) or ["their order"]
                members_are = plural(len(found), "member is", "members are")
                problems.append(f"{name}: its {len(found)} {members_are} not those of {LABELS_FILE}: {_short(surplus[0])}")
            for member in members:
                content = tar.extractfile(member) if expected.get(member.name) else None
                if content is not None:
                    problems += _differences(f"{name}: {member.name}", content.read(), expected[member.name] or {})
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        problems.append(f"{name}: the tar cannot be read ({error}); pack into another folder")
    return problems


def _video(row: Mapping[str, Any], tracks: Sequence[str]) -> VideoRecord:
    """Convert a row of labels.parquet to a record, with the tracks that are annotated."""
    lists = {track: row[f"{track}_events"] for track in tracks}
    events = {track: tuple(Event(**event) for event in found) for track, found in lists.items() if found is not None}
    return VideoRecord(row["id"], row["name"], row["split"], tuple(row["weak"]), events or None)


def _differences(where: str, content: bytes, expected: Mapping[str, Any]) -> list[str]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        return [f"{where}: not valid JSON ({error}); pack into another folder"]
    if not isinstance(found, dict):
        return [f"{where}: not a JSON object; pack into another folder"]
    return [
        f"{where}: {_short(key)} is {_short(found.get(key))}, but {LABELS_FILE} records {_short(expected.get(key))}"
        for key in dict.fromkeys([*expected, *found])
        if found.get(key) != expected.get(key)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _record(url: str, index: Index, table: pa.Table) -> Index:
    """Add the checksums of labels.parquet and of the index to index.json; return the new index.

    Raises:
        DataError: labels.parquet has changed since it was read.
    """
    if index.labels is not None:
        return index
    labels = labels_info(storage.read_bytes(storage.join(url, LABELS_FILE)))
    recorded = replace(index, labels=labels)
    if not read_table(url, recorded).equals(table):
        raise DataError(f"{storage.join(url, LABELS_FILE)}: changed during verification; run the command again")
    storage.write_text(storage.join(url, INDEX_FILE), recorded.to_json())
    return recorded
