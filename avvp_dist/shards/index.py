"""Metadata of a packed data set: index.json, and labels.parquet with one row per video, both stored beside the shards.

Together they contain everything that planning, the choice of partners and evaluation need, so no tar is opened for that.
index.json records size and hash of every shard and of labels.parquet, and ends with a checksum of itself. Data sets that
were packed before these two checksums existed are read with a warning; `avvp data verify --record` adds the checksums.

Schema version 2 added the task, the tracks, the duration of segments and the shapes of streams. Data sets of version 1 are
read, and keep their version and their fingerprint.
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
from pydantic import Field, TypeAdapter, ValidationError

from avvp_dist import storage
from avvp_dist.errors import DataError
from avvp_dist.shards import index_checks, label_rows
from avvp_dist.shards.index_entries import (
    NO_OTHER_FIELDS,
    Count,
    IndexedStream,
    LabelsInfo,
    LeftOut,
    Name,
    Seconds,
    ShardInfo,
    TrackName,
)
from avvp_dist.shards.label_rows import Timeline
from avvp_dist.text.credentials import redact

__all__ = [
    "INDEX_FILE",
    "LABELS_FILE",
    "PARTS_FOLDER",
    "SCHEMA_VERSION",
    "Index",
    "IndexedStream",
    "Labels",
    "LabelsInfo",
    "LeftOut",
    "ShardInfo",
    "labels_by_split",
    "labels_bytes",
    "labels_info",
    "labels_table",
    "read_labels",
    "read_table",
]

LOGGER = logging.getLogger(__name__)

SCHEMA_VERSION = 2
SCHEMA_1: dict[str, Any] = {"task": "parsing", "tracks": ("audio", "visual"), "segment_seconds": 1.0}
"""Properties of all data sets of schema version 1, which did not record them."""
INDEX_FILE = "index.json"
LABELS_FILE = "labels.parquet"
PARTS_FOLDER = "_parts"
"""Contains the state of an unfinished pack; deleted once the index is written."""


@dataclass(frozen=True)
class Index:
    """A packed data set.

    Attributes:
        dataset: name in the catalog.
        task: name of the task that the labels are for.
        segments: T.
        segment_seconds: duration of a segment.
        tracks: what events are indexed by.
        classes: names of the C classes, in order.
        streams: position of each stream along the last axis of the features, and shape of its segments.
        shards: all tar files, ordered by split.
        left_out: videos that were skipped because of bad features.
        provenance: origin of the data; ``{"synthetic": True, ...}`` for synthetic data.
        source: fingerprint of all inputs, by which a repeated pack recognizes its own output.
        labels: size and hash of labels.parquet; None if the data set was packed before they were recorded.
        schema_version: of index.json and labels.parquet.
    """

    __pydantic_config__ = NO_OTHER_FIELDS

    dataset: Name
    task: Name
    segments: Count
    segment_seconds: Seconds
    tracks: Annotated[tuple[TrackName, ...], Field(min_length=1)]
    classes: Annotated[tuple[Name, ...], Field(min_length=1)]
    streams: Annotated[tuple[IndexedStream, ...], Field(min_length=1)]
    shards: tuple[ShardInfo, ...]
    left_out: tuple[LeftOut, ...]
    provenance: dict[str, Any]
    source: str = ""
    labels: LabelsInfo | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def width(self) -> int:
        """Size of the last axis of a video's feature array."""
        return sum(stream.dim for stream in self.streams)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one segment, by stream."""
        return {stream.name: stream.shape for stream in self.streams}

    @property
    def timeline(self) -> Timeline:
        """Segments and classes of its events."""
        return Timeline(self.segments, self.segment_seconds, len(self.classes))

    @property
    def labels_schema(self) -> pa.Schema:
        """Columns of its labels.parquet."""
        return label_rows.schema(self.schema_version, self.tracks)

    @property
    def synthetic(self) -> bool:
        """Whether the data are synthetic."""
        return bool(self.provenance.get("synthetic"))

    @property
    def fingerprint(self) -> str:
        """SHA-256 that identifies the data regardless of location and provenance.

        It covers task, tracks, segments, classes, streams, shards and labels: what the schema version contains, and labels
        if their hash is recorded, so that data sets packed earlier keep their fingerprint.
        """
        shards = [(shard.name, shard.split, shard.samples, shard.sha256) for shard in self.shards]
        streams: list[tuple] = [(stream.name, stream.dim, stream.offset) for stream in self.streams]
        content: list[Any] = [self.schema_version, self.dataset, self.segments, self.classes, streams, shards]
        if self.schema_version > 1:
            content += [self.task, self.tracks, self.segment_seconds, [stream.shape for stream in self.streams]]
        content += [self.labels.sha256] if self.labels else []
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> str:
        """Content of index.json, including its checksum."""
        content = {"schema_version": self.schema_version, **asdict(self)}
        if self.schema_version == 1:
            for name in SCHEMA_1:
                del content[name]
            for stream in content["streams"]:
                del stream["shape"]
        if self.labels is None:
            del content["labels"]
        return index_checks.seal(redact(json.dumps(content, indent=1)))  # `storage.write_text` redacts too

    @classmethod
    def from_json(cls, text: str | bytes, source: str = INDEX_FILE) -> Index:
        """Parse the result of `to_json`; ``source`` names it in messages.

        Raises:
            DataError: not an index, damaged, malformed, or written by a newer version.
        """
        content, sealed = index_checks.unseal(text.encode() if isinstance(text, str) else text, source)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if type(version) is not int or version < 1:
            raise DataError(f"{source}: not the index of a packed data set, because it has no schema_version")
        if version > SCHEMA_VERSION:
            raise DataError(
                f"{source}: schema version {version}, but this avvp_dist reads at most {SCHEMA_VERSION}; install a newer one"
            )
        if version == 1:
            content |= SCHEMA_1
        try:
            index = _INDEX.validate_python(content)
        except ValidationError as error:
            fields = [(".".join(map(str, detail["loc"])), detail["msg"]) for detail in error.errors(include_url=False)]
            problems = [f"{name}: {message}" for name, message in fields]
            raise DataError(problems, f"{source}: malformed; {index_checks.RESTORE}") from None
        if index.labels is not None and not sealed:
            raise DataError(f"{source}: edited by hand, its checksum is missing; {index_checks.RESTORE}")
        entries = (index.tracks, index.classes, index.streams, index.shards, index.left_out)
        if problems := index_checks.contradictions(*entries):
            raise DataError(problems, f"{source}: inconsistent; {index_checks.RESTORE}")
        return index

    @classmethod
    def load(cls, url: str) -> Index:
        """Read the index of the data set at ``url``.

        Raises:
            DataError: it is missing (never packed, or packing was interrupted) or unusable.
        """
        source = storage.join(url, INDEX_FILE)
        try:
            text = storage.read_bytes(source)
        except FileNotFoundError:
            if storage.names(storage.join(url, PARTS_FOLDER)):
                raise DataError(f"{url}: packing was interrupted; run the same pack command again, and it resumes") from None
            if not storage.exists(url):
                raise DataError(f"{url}: no such folder") from None
            raise DataError(f"{url}: no {INDEX_FILE} here, not a packed data set; make one with `avvp data pack`") from None
        return cls.from_json(text, source)


_INDEX = TypeAdapter(Index)
_REPACK = "run the pack command again"


@dataclass(frozen=True)
class Labels:
    """Labels and locations of the N videos of one split, in the order of the annotations.

    Attributes:
        split: name of the split.
        ids: video ids.
        weak: bool [N,C].
        truth: events by track, each bool [N,T,C]; None if they were not annotated.
        shard: number of the video's tar in ``Index.shards``, int32 [N].
        position: number of the video within its tar, int32 [N].
        offset, nbytes: byte range of the raw array data (after the .npy header) within the tar, int64 [N].
    """

    split: str
    ids: tuple[str, ...]
    weak: NDArray[np.bool_]
    truth: Mapping[str, NDArray[np.bool_]] | None
    shard: NDArray[np.int32]
    position: NDArray[np.int32]
    offset: NDArray[np.int64]
    nbytes: NDArray[np.int64]

    def truth_of(self, track: str) -> NDArray[np.bool_] | None:
        """Events of one track, bool [N,T,C]; None if they were not annotated."""
        return None if self.truth is None else self.truth[track]


def labels_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """``rows`` as a table with the columns of ``schema``, which takes a tenth of the memory of the dicts."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def labels_bytes(tables: Sequence[pa.Table]) -> bytes:
    """Content of labels.parquet, from the `labels_table` of each shard in the order of the index."""
    sink = io.BytesIO()
    # combined, so that the bytes do not depend on the boundaries of shards
    pq.write_table(pa.concat_tables(tables).combine_chunks(), sink)
    return sink.getvalue()


def labels_info(content: bytes) -> LabelsInfo:
    """What the index records about a labels.parquet with this content."""
    return LabelsInfo(len(content), hashlib.sha256(content).hexdigest())


def read_labels(url: str, index: Index) -> dict[str, Labels]:
    """Read the labels of every split of the data set at ``url``.

    Raises:
        DataError: labels.parquet is missing, unreadable or does not belong to ``index``.
    """
    labels = labels_by_split(url, index, read_table(url, index))
    pa.default_memory_pool().release_unused()  # else arrow keeps the table's memory: 1 GB for 10 million videos
    return labels


def read_table(url: str, index: Index) -> pa.Table:
    """Read the rows of labels.parquet, with the columns of `Index.labels_schema`, and verify their hash.

    Raises:
        DataError: see `read_labels`.
    """
    source = storage.join(url, LABELS_FILE)
    try:
        content = storage.read_bytes(source)
    except FileNotFoundError:
        raise DataError(f"{source}: missing; {_REPACK}") from None
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error}") from None
    if index.labels is None:
        _warn_without_hash(url)
    elif len(content) != index.labels.bytes:
        raise DataError(
            f"{source}: {len(content)} bytes, but the index records {index.labels.bytes}; restore it, or {_REPACK}"
        )
    elif labels_info(content) != index.labels:
        raise DataError(f"{source}: content differs from what the index recorded; restore it, or {_REPACK}")
    try:
        # not pq.read_table: its threads sometimes abort a process that ends soon after and has torch loaded
        table = pq.ParquetFile(io.BytesIO(content)).read(use_threads=False)
        if index.labels is None:
            table.validate(full=True)
    except Exception as error:  # a damaged file can make pyarrow raise almost any error
        raise DataError(f"{source}: not a readable parquet file ({error}); {_REPACK}") from None
    if not table.schema.equals(index.labels_schema):
        raise DataError(f"{source}: does not have the columns of schema version {index.schema_version}; {_REPACK}")
    return table


@functools.cache
def _warn_without_hash(url: str) -> None:
    """Log the warning once per process."""
    LOGGER.warning(
        "%s: packed before index.json recorded a hash of %s, so changes to it are not detected; `avvp data verify %s "
        "--record` checks the data set and adds the hash",
        url,
        LABELS_FILE,
        url,
    )


def labels_by_split(url: str, index: Index, table: pa.Table) -> dict[str, Labels]:
    """Convert the rows of `read_table` to the labels of every split.

    Raises:
        DataError: they do not belong to ``index``, or are invalid.
    """
    source = storage.join(url, LABELS_FILE)
    locations = {name: table[name].to_numpy() for name in ("shard", "position", "offset", "nbytes")}
    problems = index_checks.misplaced(index.shards, 2 * index.segments * index.width, locations)
    problems = problems or index_checks.misnamed(index.shards, table)
    if problems:
        title = f"{source}: does not belong to the {INDEX_FILE} beside it; {_REPACK}"
        raise DataError(problems, title)
    splits = np.array([shard.split for shard in index.shards])
    row_splits = splits[locations["shard"]] if len(table) else np.empty(0, str)
    return {
        split: _split_labels(source, index, split, table, np.flatnonzero(row_splits == split), locations)
        for split in dict.fromkeys(splits.tolist())
    }


def _split_labels(
    source: str, index: Index, split: str, table: pa.Table, rows: NDArray[np.int64], locations: Mapping[str, NDArray]
) -> Labels:
    part = table.take(pa.array(rows, pa.int64()))
    problems: list[str] = []
    ids = part["id"].to_pylist()
    lists, labels = label_rows.flat(part["weak"])
    weak = np.zeros((len(ids), len(index.classes)), bool)
    if len(set(ids)) != len(ids):
        problems += [f"{split}: video {name} is listed {count} times" for name, count in Counter(ids).items() if count > 1]
    elif ((labels < 0) | (labels >= len(index.classes))).any():
        problems.append(f"{split}: weak labels outside 0..{len(index.classes) - 1}")
    else:
        weak[lists, labels] = True
        if weak.sum() != len(labels):
            problems.append(f"{split}: weak labels listed twice for a video")
    truth = {}
    for track in index.tracks:
        active = label_rows.dense(part[f"{track}_events"], f"{split}: {track} events", index.timeline, ids, problems)
        if active is not None:
            truth[track] = active
    if problems:
        raise DataError(problems, f"{source}: unusable labels; {_REPACK}")
    annotated = truth if len(truth) == len(index.tracks) else None
    return Labels(split, tuple(ids), weak, annotated, **{name: values[rows] for name, values in locations.items()})
