"""Consistency of index.json and labels.parquet beyond the types of their fields, and the checksum of index.json."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from avvp_dist.errors import DataError
from avvp_dist.shards.index_entries import IndexedStream, LeftOut, ShardInfo
from avvp_dist.storage import json_files
from avvp_dist.text.plural import plural

RESTORE = "restore it from a copy, or delete the data set and pack again"
_SEAL = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n}\n\Z')
_VIDEO_ID = "^[A-Za-z0-9_-]{1,64}$"


def seal(body: str) -> str:
    """Append the key ``checksum``, over all bytes before it, to a JSON object that is indented by 1."""
    digest = hashlib.sha256(body.encode()).hexdigest()
    return body.removesuffix("\n}") + f',\n "checksum": "{digest}"\n}}\n'


def unseal(raw: bytes, source: str) -> tuple[Any, bool]:
    """Parse the result of `seal`; return its content, and whether it had a checksum, which older files lack.

    Raises:
        DataError: a byte has changed, or it is not JSON.
    """
    damaged = f"{source}: damaged or edited by hand, its checksum does not match; {RESTORE}"
    found = _SEAL.search(raw)
    if found and hashlib.sha256(raw[: found.start()] + b"\n}").hexdigest() != found[1].decode():
        raise DataError(damaged)
    content = json_files.parse(raw, source, RESTORE, allow_nan=False)
    if isinstance(content, dict) and "checksum" in content:
        if not found:
            raise DataError(damaged)
        del content["checksum"]
    return content, found is not None


def contradictions(
    tracks: Sequence[str],
    classes: Sequence[str],
    streams: Sequence[IndexedStream],
    shards: Sequence[ShardInfo],
    left_out: Sequence[LeftOut],
) -> list[str]:
    """Contradictions between the entries of an index."""
    problems = [
        *_duplicates("tracks", tracks),
        *_duplicates("classes", classes),
        *_duplicates("streams", (stream.name for stream in streams)),
        *_duplicates("shards", (shard.name for shard in shards)),
        *_duplicates("left_out", (video.id for video in left_out)),
    ]
    end = 0
    for stream in sorted(streams, key=lambda stream: stream.offset):
        if math.prod(stream.shape) != stream.dim:
            problems.append(f"streams: {stream.name} has shape {list(stream.shape)}, which is not {stream.dim} values")
        if stream.offset != end:
            problems.append(
                f"streams: {stream.name} begins at column {stream.offset}, but the previous one ends at {end}; "
                "streams must not overlap or leave gaps"
            )
        end = stream.offset + stream.dim
    problems += [
        f"shards: {shard.name} has split {shard.split}" for shard in shards if shard.name.rpartition("-")[0] != shard.split
    ]
    return problems


def _duplicates(what: str, names: Iterable[str]) -> list[str]:
    return [f"{what}: {name} is listed {count} times" for name, count in Counter(names).items() if count > 1]


def misplaced(shards: Sequence[ShardInfo], length: int, locations: Mapping[str, NDArray]) -> list[str]:
    """Shards whose videos are not stored in them as the index records.

    Args:
        shards: of the index.
        length: size of a video's features in bytes.
        locations: columns ``shard``, ``position``, ``offset`` and ``nbytes`` of labels.parquet.
    """
    shard = locations["shard"]
    outside = int(((shard < 0) | (shard >= len(shards))).sum())
    if outside:
        return [f"{outside} {plural(outside, 'row refers', 'rows refer')} to shards that are not in the index"]
    # a single pass over the rows, since there may be tens of thousands of shards and every worker checks them
    counts = np.bincount(shard, minlength=len(shards))
    samples = np.array([info.samples for info in shards])
    ends = np.array([info.bytes for info in shards])[shard]
    offset = locations["offset"]
    misfits = _count_by(shard, (locations["nbytes"] != length) | (offset < 0) | (offset > ends - length), len(counts))
    by_shard = np.argsort(shard, kind="stable")
    in_order = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
    unordered = _count_by(shard[by_shard], locations["position"][by_shard] != in_order, len(counts))
    problems = []
    for number in np.flatnonzero((counts != samples) | (unordered > 0) | (misfits > 0)):
        info = shards[int(number)]
        if counts[number] != info.samples:
            problems.append(
                f"{info.name}: {counts[number]} {plural(counts[number], 'video')}, but {info.samples} in the index"
            )
        elif unordered[number]:
            problems.append(f"{info.name}: its videos are not in order")
        if misfits[number]:
            problems.append(f"{info.name}: byte ranges that do not match")
    return problems


def _count_by(shard: NDArray, flags: NDArray[np.bool_], shards: int) -> NDArray[np.int64]:
    """Number of ``flags`` that are set in each shard."""
    return np.bincount(shard[flags], minlength=shards)


def misnamed(shards: Sequence[ShardInfo], table: pa.Table) -> list[str]:
    """Videos of labels.parquet with an invalid id, or in another split than their shard."""
    problems = []
    invalid = table.filter(pc.invert(pc.match_substring_regex(table["id"], _VIDEO_ID)))["id"]
    if len(invalid):
        problems.append(f"{len(invalid)} invalid video {plural(len(invalid), 'id')}, the first {invalid[0].as_py()!a}")
    named = table["split"].combine_chunks().dictionary_encode()
    codes = {name: code for code, name in enumerate(named.dictionary.to_pylist())}
    of_shard = np.array([codes.get(shard.split, -1) for shard in shards], np.int64)
    elsewhere = int((of_shard[table["shard"].to_numpy()] != named.indices.to_numpy()).sum()) if len(table) else 0
    if elsewhere:
        problems.append(f"{elsewhere} {plural(elsewhere, 'video has', 'videos have')} another split than their shard")
    return problems
