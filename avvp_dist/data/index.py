"""What lies beside the shards of a packed data set: index.json, and labels.parquet with a row for each video.

Both together hold all that planning, drawing of partners and evaluation need, so that nobody opens a tar for it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from avvp_dist import storage
from avvp_dist.errors import DataError
from avvp_dist.types import MODALITIES

SCHEMA_VERSION = 1
INDEX_FILE = "index.json"
LABELS_FILE = "labels.parquet"
PARTS_FOLDER = "_parts"
"""Holds the state of an unfinished pack; gone once the index is written."""


def _list(element: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=False))


_EVENT = pa.struct([pa.field(name, pa.int16(), nullable=False) for name in ("label", "onset", "offset")])
_REQUIRED = {
    "id": pa.string(),
    "name": pa.string(),
    "split": pa.string(),
    "shard": pa.int32(),
    "position": pa.int32(),
    "offset": pa.int64(),
    "nbytes": pa.int64(),
    "weak": _list(pa.int16()),
}
LABELS_SCHEMA = pa.schema(
    [pa.field(name, type_, nullable=False) for name, type_ in _REQUIRED.items()]
    + [pa.field(f"{modality}_events", _list(_EVENT)) for modality in MODALITIES]
)

# Names of shards become paths, so an index from elsewhere must not point out of its folder.
_ShardName = Annotated[str, Field(pattern=r"\A[A-Za-z0-9_]+-[0-9]{6}\.tar\z")]
_Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class IndexedStream:
    """One stream: columns ``offset`` to ``offset + dim`` of a video's feature array."""

    name: str
    dim: _Count
    offset: _Count


@dataclass(frozen=True)
class ShardInfo:
    """One tar file, and in ``source`` the fingerprint of what it was made from."""

    name: _ShardName
    split: str
    samples: _Count
    bytes: _Count
    sha256: str
    source: str


@dataclass(frozen=True)
class LeftOut:
    """A video that was not packed, and why."""

    id: str
    split: str
    reason: str


@dataclass(frozen=True)
class Index:
    """A packed data set.

    Attributes:
        dataset: name in the catalog.
        segments: T.
        classes: names of the C classes, in order.
        streams: what stands where along the last axis of the features.
        shards: all tar files, split after split.
        left_out: videos that were skipped because of bad features.
        provenance: where the data come from; ``{"synthetic": True, ...}`` for made-up ones.
        source: fingerprint of all that went in; a second pack of the same inputs recognises its own work by it.
    """

    dataset: str
    segments: _Count
    classes: tuple[str, ...]
    streams: tuple[IndexedStream, ...]
    shards: tuple[ShardInfo, ...]
    left_out: tuple[LeftOut, ...]
    provenance: dict[str, Any]
    source: str = ""

    @property
    def width(self) -> int:
        """Last axis of a video's feature array."""
        return sum(stream.dim for stream in self.streams)

    @property
    def synthetic(self) -> bool:
        """Whether the data are made up."""
        return bool(self.provenance.get("synthetic"))

    @property
    def fingerprint(self) -> str:
        """Identifies the data whatever their place, provenance and history: sha256 over classes, streams and shards."""
        shards = [(shard.name, shard.split, shard.samples, shard.sha256) for shard in self.shards]
        streams = [(stream.name, stream.dim, stream.offset) for stream in self.streams]
        content = [SCHEMA_VERSION, self.dataset, self.segments, self.classes, streams, shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> str:
        """The content of index.json."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = INDEX_FILE) -> Index:
        """Reads `to_json`'s text; ``source`` names it in messages.

        Raises:
            DataError: not an index, malformed, or written by a newer version.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise DataError(f"{source}: not valid JSON ({error}); pack the data set again") from None
        version = content.pop("schema_version", None) if isinstance(content, dict) else None
        if not isinstance(version, int):
            raise DataError(f"{source}: not the index of a packed data set: it has no schema_version")
        if version > SCHEMA_VERSION:
            raise DataError(
                f"{source}: schema version {version}, this avvp_dist reads up to {SCHEMA_VERSION}; install a newer avvp_dist"
            )
        try:
            return _INDEX.validate_python(content)
        except ValidationError as error:
            fields = [(".".join(map(str, detail["loc"])), detail["msg"]) for detail in error.errors()]
            raise DataError([f"{name}: {message}" for name, message in fields], f"{source}: malformed") from None

    @classmethod
    def load(cls, url: str) -> Index:
        """The index of the data set at ``url``.

        Raises:
            DataError: there is none (never packed, or packing was interrupted), or it cannot be used.
        """
        source = storage.join(url, INDEX_FILE)
        try:
            text = storage.read_bytes(source)
        except FileNotFoundError:
            if storage.names(storage.join(url, PARTS_FOLDER)):
                raise DataError(f"{url}: packing was interrupted; run the same pack command again, it goes on") from None
            raise DataError(f"{url}: no {INDEX_FILE} here, not a packed data set; make one with `avvp data pack`") from None
        return cls.from_json(text, source)


_INDEX = TypeAdapter(Index)


@dataclass(frozen=True)
class Labels:
    """Labels and places of the N videos of one split, in the order of the annotations.

    Attributes:
        split: name of the split.
        ids: video ids.
        weak: bool [N,C].
        audio, visual: events as bool [N,T,C]; None where nobody annotated them.
        shard: number of the video's tar in ``Index.shards``, int32 [N].
        position: number of the video within its tar, int32 [N].
        offset, nbytes: byte range of the raw array data (after the .npy header) within the tar, int64 [N].
    """

    split: str
    ids: tuple[str, ...]
    weak: NDArray[np.bool_]
    audio: NDArray[np.bool_] | None
    visual: NDArray[np.bool_] | None
    shard: NDArray[np.int32]
    position: NDArray[np.int32]
    offset: NDArray[np.int64]
    nbytes: NDArray[np.int64]


def labels_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """``rows`` with the columns of `LABELS_SCHEMA`; a tenth of the memory that they take as dicts."""
    return pa.Table.from_pylist(list(rows), schema=LABELS_SCHEMA)


def labels_bytes(tables: Sequence[pa.Table]) -> bytes:
    """The content of labels.parquet: `labels_table` of each shard, in the order of the index."""
    sink = io.BytesIO()
    # in one piece, so that the bytes do not depend on where one shard ends
    pq.write_table(pa.concat_tables(tables).combine_chunks(), sink)
    return sink.getvalue()


def read_labels(url: str, index: Index) -> dict[str, Labels]:
    """Labels of every split of the data set at ``url``.

    Raises:
        DataError: labels.parquet is missing, unreadable or does not belong to ``index``.
    """
    labels = _read_labels(storage.join(url, LABELS_FILE), index)
    pa.default_memory_pool().release_unused()  # arrow would keep what the table took: 1 GB for 10 million videos
    return labels


def _read_labels(source: str, index: Index) -> dict[str, Labels]:
    try:
        # not pq.read_table: its threads sometimes abort a process that ends soon after and has torch loaded
        table = pq.ParquetFile(io.BytesIO(storage.read_bytes(source))).read(use_threads=False)
    except FileNotFoundError:
        raise DataError(f"{source}: missing; run the pack command again") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source}: not a readable parquet file ({error}); run the pack command again") from None
    if not table.schema.equals(LABELS_SCHEMA):
        raise DataError(f"{source}: not the columns of schema version {SCHEMA_VERSION}; run the pack command again")
    places = {name: table[name].to_numpy() for name in ("shard", "position", "offset", "nbytes")}
    problems = _inconsistencies(index, places)
    if problems:
        raise DataError(problems, f"{source}: does not belong to {INDEX_FILE} beside it; run the pack command again")
    splits = np.array([shard.split for shard in index.shards])
    row_splits = splits[places["shard"]] if len(table) else np.empty(0, str)
    return {
        split: _split_labels(source, index, split, table, np.flatnonzero(row_splits == split), places)
        for split in dict.fromkeys(splits.tolist())
    }


def _inconsistencies(index: Index, places: Mapping[str, NDArray]) -> list[str]:
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
        info = index.shards[number]
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


def _split_labels(
    source: str, index: Index, split: str, table: pa.Table, rows: NDArray[np.int64], places: Mapping[str, NDArray]
) -> Labels:
    part = table.take(pa.array(rows, pa.int64()))
    problems: list[str] = []
    ids = part["id"].to_pylist()
    lists, labels = _flat(part["weak"])
    weak = np.zeros((len(ids), len(index.classes)), bool)
    if len(set(ids)) != len(ids):
        problems += [f"{split}: video {name} is listed {count} times" for name, count in Counter(ids).items() if count > 1]
    elif ((labels < 0) | (labels >= len(index.classes))).any():
        problems.append(f"{split}: weak labels outside 0..{len(index.classes) - 1}")
    else:
        weak[lists, labels] = True
    audio, visual = (_dense(part[f"{name}_events"], f"{split}: {name} events", index, problems) for name in MODALITIES)
    if problems:
        raise DataError(problems, f"{source}: labels that cannot be used; run the pack command again")
    return Labels(split, tuple(ids), weak, audio, visual, **{name: values[rows] for name, values in places.items()})


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], Any]:
    """For the elements of a list column: the row of each, and the elements themselves (numpy for numbers, else arrow)."""
    lists = column.combine_chunks()
    values = lists.flatten()
    parents = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lists)), parents)
    return rows, values if pa.types.is_struct(values.type) else values.to_numpy(zero_copy_only=False)


def _dense(column: pa.ChunkedArray, what: str, index: Index, problems: list[str]) -> NDArray[np.bool_] | None:
    """Events as bool [N,T,C], overlapping ones united; None where no video has any annotation."""
    if column.null_count == len(column):
        return None
    if column.null_count:
        problems.append(f"{what}: known for some videos only")
        return None
    rows, events = _flat(column)
    label, onset, offset = (events.field(name).to_numpy(zero_copy_only=False) for name in ("label", "onset", "offset"))
    if ((label < 0) | (label >= len(index.classes)) | (onset < 0) | (offset > index.segments)).any():
        problems.append(f"{what}: labels or seconds out of range")
        return None
    dense = np.zeros((len(column), index.segments, len(index.classes)), bool)
    for segment in range(index.segments):
        inside = (onset <= segment) & (segment < offset)
        dense[rows[inside], segment, label[inside]] = True
    return dense
