"""Writes one shard of a packed data set, or recognizes a complete one, in whichever worker executes the job.

A shard contains videos of one split in annotation order, with two members each: ``<id>.features.npy``, float16 [T,width],
and ``<id>.json``. Its bytes depend only on the data, not on who packed it, where or when.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from avvp_dist import storage
from avvp_dist.errors import DataError
from avvp_dist.shards import index as indexes
from avvp_dist.shards import label_rows
from avvp_dist.shards.feature_source import FeatureSource
from avvp_dist.shards.index import ShardInfo
from avvp_dist.shards.spec import Dataset
from avvp_dist.types import VideoRecord

_FEATURES = "features.npy"


@dataclass(frozen=True)
class ShardJob:
    """What a worker needs to write one shard.

    Attributes:
        number: of the shard, over all splits; the index lists shards in this order.
        fingerprint: of the shard's inputs, as computed by the planning process.
        known: entry of the shard in a finished index.
        schema_version: of the index, which determines the columns of labels.parquet.
    """

    dataset: Dataset
    source: FeatureSource
    out: str
    number: int
    name: str
    split: str
    records: tuple[VideoRecord, ...]
    fingerprint: str
    known: ShardInfo | None
    schema_version: int = indexes.SCHEMA_VERSION


@dataclass(frozen=True)
class PackedShard:
    """A shard that exists: its index entry, its rows of labels.parquet, and whether it had to be written."""

    info: ShardInfo
    rows: pa.Table
    written: bool


def pack_shard(job: ShardJob) -> PackedShard:
    """Write one shard, unless it is complete already.

    Raises:
        DataError: features differ in shape or type from the data set's.
    """
    url = storage.join(job.out, job.name)
    part = storage.join(job.out, indexes.PARTS_FOLDER, f"{job.name}.json")
    known = job.known or _read_part(part)
    expected = (job.name, len(job.records), job.fingerprint)
    content = _complete(url, known) if known and (known.name, known.samples, known.source) == expected else None
    if known and content is not None:
        return PackedShard(known, _rows(job, content), written=False)
    content = _tar(job)
    digest = hashlib.sha256(content).hexdigest()
    info = ShardInfo(job.name, job.split, len(job.records), len(content), digest, job.fingerprint)
    storage.write_bytes(url, content)
    storage.write_text(part, json.dumps(asdict(info)))
    return PackedShard(info, _rows(job, content), written=True)


def _read_part(url: str) -> ShardInfo | None:
    try:
        return ShardInfo(**json.loads(storage.read_bytes(url)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _complete(url: str, known: ShardInfo) -> bytes | None:
    """Content of the shard if it matches ``known``, else None."""
    try:
        if storage.size(url) != known.bytes:
            return None
        content = storage.read_bytes(url)
    except FileNotFoundError:
        return None
    return content if hashlib.sha256(content).hexdigest() == known.sha256 else None


def _tar(job: ShardJob) -> bytes:
    """Content of a shard: the same bytes for the same data, independent of machine and time."""
    shape = (job.dataset.segments, job.dataset.width)
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for record in job.records:
            values = job.source.read(record)
            if values.shape != shape or values.dtype != np.float16:
                raise DataError(
                    f"{record.id}: features are {values.dtype} {list(values.shape)}, expected float16 {list(shape)}"
                )
            array = io.BytesIO()
            np.lib.format.write_array(array, np.ascontiguousarray(values, "<f2"), version=(1, 0), allow_pickle=False)
            text = json.dumps(describe(record, job.dataset.classes))
            for name, content in ((_FEATURES, array.getvalue()), ("json", text.encode())):
                member = tarfile.TarInfo(f"{record.id}.{name}")  # mode 644, time 0 and owner 0 by default
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def describe(record: VideoRecord, classes: Sequence[str]) -> dict[str, Any]:
    """Content of a video's ``<id>.json``."""
    description: dict[str, Any] = {
        "id": record.id,
        "name": record.name,
        "split": record.split,
        "weak": [classes[label] for label in record.weak],
    }
    for track, events in (record.events or {}).items():
        description[f"{track}_events"] = [
            {**label_rows.plain(event)._asdict(), "label": classes[event.label]} for event in events
        ]
    return description


def _rows(job: ShardJob, content: bytes) -> pa.Table:
    """The rows of labels.parquet for a shard."""
    length = job.dataset.segments * job.dataset.width * 2
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        ends = {member.name: member.offset_data + member.size for member in tar}
    rows = [
        {
            "id": record.id,
            "name": record.name,
            "split": record.split,
            "shard": job.number,
            "position": position,
            "offset": ends[f"{record.id}.{_FEATURES}"] - length,  # the array data are at the end of the member
            "nbytes": length,
            "weak": record.weak,
            **label_rows.event_columns(record, job.dataset.tracks),
        }
        for position, record in enumerate(job.records)
    ]
    return indexes.labels_table(rows, label_rows.schema(job.schema_version, job.dataset.tracks))
