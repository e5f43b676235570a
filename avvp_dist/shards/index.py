"""What lies beside the shards of a packed data set: index.json, and labels.parquet with a row for each video.

Both together hold all that planning, drawing of partners and evaluation need, so that nobody opens a tar for it. index.json
records size and hash of every shard and of labels.parquet, and ends in a checksum of itself. Data sets that were packed
before there were these two checksums are read with a warning; `avvp data verify --record` adds them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from avvp_dist import storage
from avvp_dist.errors import DataError
from avvp_dist.shards import index_checks as checks
from avvp_dist.text.credentials import redact
from avvp_dist.types import MODALITIES

LOGGER = logging.getLogger(__name__)

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
_ShardName = Annotated[str, Field(pattern=r"\A[A-Za-z0-9_]{1,32}-[0-9]{6}\.tar\z")]
_Split = Annotated[str, Field(pattern=r"\A[A-Za-z0-9_]{1,32}\z")]
_Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(checks.printable)]
_Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_Count = Annotated[int, Field(strict=True, ge=1, le=10**6)]
_Bytes = Annotated[int, Field(strict=True, ge=1, le=2**53)]
_FIELDS = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class IndexedStream:
    """One stream: columns ``offset`` to ``offset + dim`` of a video's feature array."""

    __pydantic_config__ = _FIELDS

    name: _Name
    dim: _Count
    offset: Annotated[int, Field(strict=True, ge=0, le=10**6)]


@dataclass(frozen=True)
class ShardInfo:
    """One tar file, and in ``source`` the fingerprint of what it was made from."""

    __pydantic_config__ = _FIELDS

    name: _ShardName
    split: _Split
    samples: _Count
    bytes: _Bytes
    sha256: _Sha256
    source: str


@dataclass(frozen=True)
class LabelsInfo:
    """Size and hash of labels.parquet."""

    __pydantic_config__ = _FIELDS

    bytes: _Bytes
    sha256: _Sha256


@dataclass(frozen=True)
class LeftOut:
    """A video that was not packed, and why."""

    __pydantic_config__ = _FIELDS

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
        labels: labels.parquet; None where the data set was packed before that was recorded.
    """

    __pydantic_config__ = _FIELDS

    dataset: _Name
    segments: _Count
    classes: Annotated[tuple[_Name, ...], Field(min_length=1)]
    streams: Annotated[tuple[IndexedStream, ...], Field(min_length=1)]
    shards: tuple[ShardInfo, ...]
    left_out: tuple[LeftOut, ...]
    provenance: dict[str, Any]
    source: str = ""
    labels: LabelsInfo | None = None

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
        """Identifies the data whatever their place, provenance and history: sha256 over classes, streams, shards and labels.

        Labels count where their hash is recorded, so that data sets packed earlier keep the fingerprint they had.
        """
        shards = [(shard.name, shard.split, shard.samples, shard.sha256) for shard in self.shards]
        streams = [(stream.name, stream.dim, stream.offset) for stream in self.streams]
        content = [SCHEMA_VERSION, self.dataset, self.segments, self.classes, streams, shards]
        content += [self.labels.sha256] if self.labels else []
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> str:
        """The content of index.json, with its checksum."""
        content = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        if self.labels is None:
            del content["labels"]
        return checks.seal(redact(json.dumps(content, indent=1)))  # the same that `storage.write_text` writes

    @classmethod
    def from_json(cls, text: str | bytes, source: str = INDEX_FILE) -> Index:
        """Reads `to_json`'s text; ``source`` names it in messages.

        Raises:
            DataError: not an index, damaged, malformed, or written by a newer version.
        """
        content, sealed = checks.unseal(text.encode() if isinstance(text, str) else text, source)
        version = content.pop("schema_version", None) if isinstance(content, dict) else None
        if not isinstance(version, int):
            raise DataError(f"{source}: not the index of a packed data set: it has no schema_version")
        if version > SCHEMA_VERSION:
            raise DataError(
                f"{source}: schema version {version}, this avvp_dist reads up to {SCHEMA_VERSION}; install a newer avvp_dist"
            )
        try:
            index = _INDEX.validate_python(content)
        except ValidationError as error:
            fields = [(".".join(map(str, detail["loc"])), detail["msg"]) for detail in error.errors(include_url=False)]
            problems = [f"{name}: {message}" for name, message in fields]
            raise DataError(problems, f"{source}: malformed; {checks.RESTORE}") from None
        if index.labels is not None and not sealed:
            raise DataError(f"{source}: changed by hand: its checksum is missing; {checks.RESTORE}")
        if problems := checks.contradictions(index):
            raise DataError(problems, f"{source}: contradicts itself; {checks.RESTORE}")
        return index

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
_AGAIN = "run the pack command again"


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


def labels_info(content: bytes) -> LabelsInfo:
    """What the index records of a labels.parquet with this content."""
    return LabelsInfo(len(content), hashlib.sha256(content).hexdigest())


def read_labels(url: str, index: Index) -> dict[str, Labels]:
    """Labels of every split of the data set at ``url``.

    Raises:
        DataError: labels.parquet is missing, unreadable or does not belong to ``index``.
    """
    labels = labels_by_split(url, index, read_table(url, index))
    pa.default_memory_pool().release_unused()  # arrow would keep what the table took: 1 GB for 10 million videos
    return labels


def read_table(url: str, index: Index) -> pa.Table:
    """The rows of labels.parquet, with the columns of `LABELS_SCHEMA`, after a look at its hash.

    Raises:
        DataError: as `read_labels`.
    """
    source = storage.join(url, LABELS_FILE)
    try:
        content = storage.read_bytes(source)
    except FileNotFoundError:
        raise DataError(f"{source}: missing; {_AGAIN}") from None
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error}") from None
    if index.labels is None:
        _warn_without_hash(url)
    elif len(content) != index.labels.bytes:
        raise DataError(f"{source}: {len(content)} bytes, the index says {index.labels.bytes}; restore it, or {_AGAIN}")
    elif labels_info(content) != index.labels:
        raise DataError(f"{source}: content differs from what the index recorded; restore it, or {_AGAIN}")
    try:
        # not pq.read_table: its threads sometimes abort a process that ends soon after and has torch loaded
        table = pq.ParquetFile(io.BytesIO(content)).read(use_threads=False)
        if index.labels is None:
            table.validate(full=True)
    except Exception as error:  # a damaged file makes pyarrow raise nearly anything
        raise DataError(f"{source}: not a readable parquet file ({error}); {_AGAIN}") from None
    if not table.schema.equals(LABELS_SCHEMA):
        raise DataError(f"{source}: not the columns of schema version {SCHEMA_VERSION}; {_AGAIN}")
    return table


@functools.cache
def _warn_without_hash(url: str) -> None:
    """Once a process."""
    LOGGER.warning(
        "%s: packed before index.json recorded a hash of %s, so that a change of it is not noticed; `avvp data verify %s "
        "--record` checks all of it and adds the hash",
        url,
        LABELS_FILE,
        url,
    )


def labels_by_split(url: str, index: Index, table: pa.Table) -> dict[str, Labels]:
    """Labels of every split out of the rows of `read_table`.

    Raises:
        DataError: they do not belong to ``index``, or cannot be.
    """
    source = storage.join(url, LABELS_FILE)
    places = {name: table[name].to_numpy() for name in ("shard", "position", "offset", "nbytes")}
    problems = checks.misplaced(index, places) or checks.misnamed(index, table)
    if problems:
        title = f"{source}: does not belong to {INDEX_FILE} beside it; {_AGAIN}"
        raise DataError(problems, title)
    splits = np.array([shard.split for shard in index.shards])
    row_splits = splits[places["shard"]] if len(table) else np.empty(0, str)
    return {
        split: _split_labels(source, index, split, table, np.flatnonzero(row_splits == split), places)
        for split in dict.fromkeys(splits.tolist())
    }


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
        if weak.sum() != len(labels):
            problems.append(f"{split}: weak labels that are listed twice for a video")
    audio, visual = (_dense(part[f"{name}_events"], f"{split}: {name} events", index, ids, problems) for name in MODALITIES)
    if problems:
        raise DataError(problems, f"{source}: labels that cannot be used; {_AGAIN}")
    return Labels(split, tuple(ids), weak, audio, visual, **{name: values[rows] for name, values in places.items()})


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], Any]:
    """For the elements of a list column: the row of each, and the elements themselves (numpy for numbers, else arrow)."""
    lists = column.combine_chunks()
    values = lists.flatten()
    parents = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lists)), parents)
    return rows, values if pa.types.is_struct(values.type) else values.to_numpy(zero_copy_only=False)


def _dense(
    column: pa.ChunkedArray, what: str, index: Index, ids: Sequence[str], problems: list[str]
) -> NDArray[np.bool_] | None:
    """Events as bool [N,T,C], overlapping ones united; None where no video has any annotation."""
    if column.null_count == len(column):
        return None
    if column.null_count:
        problems.append(f"{what}: known for some videos only")
        return None
    rows, events = _flat(column)
    label, onset, offset = (events.field(name).to_numpy(zero_copy_only=False) for name in ("label", "onset", "offset"))
    bad = (label < 0) | (label >= len(index.classes)) | (onset < 0) | (onset >= offset) | (offset > index.segments)
    if bad.any():
        first = np.flatnonzero(bad)[0]
        problems.append(
            f"{what}: {bad.sum()} with labels or seconds out of range, the first of video {ids[rows[first]]}: class "
            f"{label[first]}, seconds {onset[first]} to {offset[first]}"
        )
        return None
    dense = np.zeros((len(column), index.segments, len(index.classes)), bool)
    for segment in range(index.segments):
        inside = (onset <= segment) & (segment < offset)
        dense[rows[inside], segment, label[inside]] = True
    return dense
