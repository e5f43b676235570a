"""What index.json and labels.parquet may hold, beyond the types of their fields; and the checksum that ends index.json."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from avvp_dist.errors import DataError

RESTORE = "restore it from a copy, or delete the data set and pack again"
_SEAL = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n}\n\Z')
_VIDEO_ID = "^[A-Za-z0-9_-]{1,64}$"


class _Shard(Protocol):
    """See `index.ShardInfo`."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def bytes(self) -> int: ...


class _Stream(Protocol):
    """See `index.IndexedStream`."""

    @property
    def name(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def dim(self) -> int: ...


class _LeftOut(Protocol):
    """See `index.LeftOut`."""

    @property
    def id(self) -> str: ...


class _Content(Protocol):
    """What is checked of an `index.Index`."""

    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def segments(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def streams(self) -> Sequence[_Stream]: ...
    @property
    def shards(self) -> Sequence[_Shard]: ...
    @property
    def left_out(self) -> Sequence[_LeftOut]: ...


def printable(name: str) -> str:
    """``name``, which stands in tables, on terminals and in file names.

    Raises:
        ValueError: it holds what cannot be printed.
    """
    if not name.isprintable():
        raise ValueError(f"{name!a} holds characters that cannot be printed")
    return name


def seal(body: str) -> str:
    """``body``, a JSON object with an indent of 1, with a last key ``checksum`` over all bytes before it."""
    digest = hashlib.sha256(body.encode()).hexdigest()
    return body.removesuffix("\n}") + f',\n "checksum": "{digest}"\n}}\n'


def unseal(raw: bytes, source: str) -> tuple[Any, bool]:
    """What `seal` got, as Python values, and whether there was a checksum, which older texts lack.

    Raises:
        DataError: any byte differs, or it is not JSON.
    """
    damaged = f"{source}: damaged, or changed by hand: its checksum does not fit; {RESTORE}"
    found = _SEAL.search(raw)
    if found and hashlib.sha256(raw[: found.start()] + b"\n}").hexdigest() != found[1].decode():
        raise DataError(damaged)
    try:
        content = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not valid JSON ({error}); {RESTORE}") from None
    if isinstance(content, dict) and "checksum" in content:
        if not found:
            raise DataError(damaged)
        del content["checksum"]
    return content, found is not None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def contradictions(index: _Content) -> list[str]:
    """What of an index cannot be true together."""
    problems = [
        *_doubles("classes", index.classes),
        *_doubles("streams", (stream.name for stream in index.streams)),
        *_doubles("shards", (shard.name for shard in index.shards)),
        *_doubles("left_out", (video.id for video in index.left_out)),
    ]
    end = 0
    for stream in sorted(index.streams, key=lambda stream: stream.offset):
        if stream.offset != end:
            problems.append(
                f"streams: {stream.name} begins at column {stream.offset}, the one before it ends at {end}; streams follow "
                "each other without overlap or gap"
            )
        end = stream.offset + stream.dim
    problems += [
        f"shards: {shard.name} is of split {shard.split}"
        for shard in index.shards
        if shard.name.rpartition("-")[0] != shard.split
    ]
    return problems


def _doubles(what: str, names: Iterable[str]) -> list[str]:
    return [f"{what}: {name} is listed {count} times" for name, count in Counter(names).items() if count > 1]


def misplaced(index: _Content, places: Mapping[str, NDArray]) -> list[str]:
    """Shards whose videos do not lie in them as the index has it.

    Args:
        index: of the data set.
        places: columns ``shard``, ``position``, ``offset`` and ``nbytes`` of labels.parquet.
    """
    shard = places["shard"]
    outside = int(((shard < 0) | (shard >= len(index.shards))).sum())
    if outside:
        return [f"{outside} rows name shards that the index lacks"]
    # one pass over the rows for all shards: there may be tens of thousands of them, and every worker looks
    length = index.segments * index.width * 2
    counts = np.bincount(shard, minlength=len(index.shards))
    samples = np.array([info.samples for info in index.shards])
    ends = np.array([info.bytes for info in index.shards])[shard]
    offset = places["offset"]
    misfits = _count_by(shard, (places["nbytes"] != length) | (offset < 0) | (offset > ends - length), len(counts))
    by_shard = np.argsort(shard, kind="stable")
    in_order = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
    unordered = _count_by(shard[by_shard], places["position"][by_shard] != in_order, len(counts))
    problems = []
    for number in np.flatnonzero((counts != samples) | (unordered > 0) | (misfits > 0)):
        info = index.shards[int(number)]
        if counts[number] != info.samples:
            problems.append(f"{info.name}: {counts[number]} videos, {info.samples} in the index")
        elif unordered[number]:
            problems.append(f"{info.name}: its videos are not in order")
        if misfits[number]:
            problems.append(f"{info.name}: byte ranges that do not fit")
    return problems


def _count_by(shard: NDArray, flags: NDArray[np.bool_], shards: int) -> NDArray[np.int64]:
    """How many ``flags`` are set in each of the shards."""
    return np.bincount(shard[flags], minlength=shards)


def misnamed(index: _Content, table: pa.Table) -> list[str]:
    """Videos of labels.parquet whose id cannot be one, or whose split is not that of their shard."""
    problems = []
    strange = table.filter(pc.invert(pc.match_substring_regex(table["id"], _VIDEO_ID)))["id"]
    if len(strange):
        problems.append(f"{len(strange)} video ids that no shard can hold, the first {strange[0].as_py()!a}")
    named = table["split"].combine_chunks().dictionary_encode()
    codes = {name: code for code, name in enumerate(named.dictionary.to_pylist())}
    of_shard = np.array([codes.get(shard.split, -1) for shard in index.shards], np.int64)
    elsewhere = int((of_shard[table["shard"].to_numpy()] != named.indices.to_numpy()).sum()) if len(table) else 0
    if elsewhere:
        problems.append(f"{elsewhere} videos are of another split than their shard")
    return problems
