"""Packs videos and their features into WebDataset tar shards, in parallel over processes or the nodes of a cluster.

`shards/shard_file.py` describes the shards. index.json is written last; until it exists, a pack is unfinished, and `_parts`
beside the shards records its progress:

    _parts/plan.json             fingerprint of all inputs, and the videos found bad
    _parts/<shard>.json          fingerprint of the shard's inputs, and its size and hash; written after the shard
    <split>-000000.tar ...       the shards, each written atomically
    labels.parquet, index.json   in this order; then _parts is deleted

A pack can therefore be killed at any point and started again: complete files are recognized by their fingerprint and hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from avvp_dist import storage
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.shards import index as indexes
from avvp_dist.shards import label_rows, worker_pool
from avvp_dist.shards.feature_source import FeatureSource, OddFile
from avvp_dist.shards.index import Index, IndexedStream, LeftOut, labels_info
from avvp_dist.shards.shard_file import ShardJob, pack_shard
from avvp_dist.shards.spec import Dataset
from avvp_dist.storage import locks
from avvp_dist.text.plural import plural
from avvp_dist.types import VideoRecord

LOGGER = logging.getLogger(__name__)

_PLAN_FILE = "plan.json"
_INPUTS = "annotations, feature files (size or modification time) or the number of videos per shard"
_CHECK_BLOCK = 64  # videos that a worker checks at a time
_SHARD_BYTES = 2**24  # of features: a worker has a few copies of a shard in memory


def pack(
    dataset: Dataset,
    records: Sequence[VideoRecord],
    source: FeatureSource,
    out: str,
    *,
    provenance: Mapping[str, Any],
    workers: int | None = None,
    shard_videos: int | None = None,
    skip_bad: bool = False,
    open_pool: worker_pool.OpenPool = worker_pool.pool,
) -> Index:
    """Write ``records`` with their features as a packed data set to ``out``, or complete an unfinished one.

    All features are checked before anything is written. A second call with the same inputs writes only what is missing or
    damaged.

    Args:
        dataset: classes, streams and segments.
        records: the videos; their order within each split is kept.
        source: their features.
        out: local folder or object-store URL.
        provenance: origin of the data, stored in the index; JSON values.
        workers: number of workers requested from ``open_pool``. For processes, the default is one per core, and with 1 this
            process does the work.
        shard_videos: videos per shard; by default 256, or as many as 16 MB hold.
        skip_bad: leave out videos with bad features and record them in the index.
        open_pool: creates the workers; the output does not depend on it.

    Raises:
        ConfigError: numbers below 1, or another process writes to ``out``.
        DataError: invalid records, bad feature files (all of them; unless ``skip_bad``), or an ``out`` that contains other
            data.
    """
    shard_videos = _default_shard_videos(dataset) if shard_videos is None else shard_videos
    if shard_videos < 1 or (workers is not None and workers < 1):
        raise ConfigError(f"shard_videos ({shard_videos}) and workers ({workers}) must be at least 1")
    _check_records(dataset, records)
    with locks.lock_folder(out, "pack into another folder"):
        return _pack(dataset, records, source, out, provenance, workers, shard_videos, skip_bad, open_pool)


def _pack(
    dataset: Dataset,
    records: Sequence[VideoRecord],
    source: FeatureSource,
    out: str,
    provenance: Mapping[str, Any],
    workers: int | None,
    shard_videos: int,
    skip_bad: bool,
    open_pool: worker_pool.OpenPool,
) -> Index:
    """Pack while holding the lock on ``out``."""
    parts = storage.join(out, indexes.PARTS_FOLDER)
    storage.remove_abandoned(out)
    storage.remove_abandoned(parts)
    inputs = _inputs(dataset, records, source, shard_videos)
    earlier = _finished(out, inputs)
    left_out = earlier.left_out if earlier else _unfinished(out, inputs)
    with open_pool(workers) as pool:
        if left_out is None:
            left_out, odd = _check(records, source, pool)
            _log_odd_files(odd)
        if left_out and not skip_bad:
            raise DataError(
                [f"{bad.split} {bad.id}: {bad.reason}" for bad in left_out],
                f"{len(left_out)} of {len(records)} videos {plural(len(left_out), 'has', 'have')} bad features; "
                "nothing was packed. Fix them, or leave them out with --skip-bad:",
            )
        jobs = _plan(dataset, records, source, out, shard_videos, {bad.id for bad in left_out}, earlier)
        if not earlier:
            _log_resumed(out, parts, len(jobs))
            plan = {"inputs": inputs, "left_out": list(map(asdict, left_out))}
            _write_if_changed(storage.join(parts, _PLAN_FILE), json.dumps(plan).encode())
        packed = worker_pool.run(pack_shard, jobs, [len(job.records) for job in jobs], pool, "packing", "shards")
    storage.remove_abandoned(out)  # temporary files of workers that died and were replaced
    shards = tuple(shard.info for shard in packed)
    labels = _labels(out, earlier, [shard.rows for shard in packed])
    index = Index(
        dataset=dataset.name,
        task=dataset.task,
        segments=dataset.segments,
        segment_seconds=dataset.segment_seconds,
        tracks=dataset.tracks,
        classes=dataset.classes,
        streams=_streams(dataset),
        shards=shards,
        left_out=left_out,
        provenance=dict(provenance),
        source=inputs,
        labels=labels_info(labels),
        schema_version=earlier.schema_version if earlier else indexes.SCHEMA_VERSION,
    )
    _write_if_changed(storage.join(out, indexes.LABELS_FILE), labels)
    _write_if_changed(storage.join(out, indexes.INDEX_FILE), index.to_json().encode())
    storage.remove(parts)
    written = sum(shard.written for shard in packed)
    complete = f"{len(packed) - written} {plural(len(packed) - written, 'was', 'were')} already complete"
    LOGGER.info("%s: %d %s written, %s", out, written, plural(written, "shard"), complete)
    return index


def _default_shard_videos(dataset: Dataset) -> int:
    return max(1, min(256, _SHARD_BYTES // (2 * dataset.segments * dataset.width)))


def _inputs(dataset: Dataset, records: Sequence[VideoRecord], source: FeatureSource, shard_videos: int) -> str:
    """Fingerprint of all inputs: `_digest` of a list, computed one record at a time, since there may be millions."""
    digest = hashlib.sha256(f"[{json.dumps(_identity(dataset))}, {json.dumps(shard_videos)}, [".encode())
    for number, record in enumerate(records):
        digest.update(f"{', ' if number else ''}{json.dumps(_record_identity(dataset, record))}".encode())
    digest.update(f"], {json.dumps(source.fingerprint(records))}]".encode())
    return digest.hexdigest()


def _identity(dataset: Dataset) -> dict[str, Any]:
    """The data set as existing packs identify it: properties that earlier versions did not have are added only if needed."""
    facts = asdict(dataset)
    for stream in facts["streams"]:
        if stream["reduction"] == "block-mean":
            del stream["reduction"]
        if stream["shape"] == (stream["dim"],):
            del stream["shape"]
    if (dataset.task, dataset.tracks, dataset.segment_seconds) == tuple(indexes.SCHEMA_1.values()):
        for name in indexes.SCHEMA_1:
            del facts[name]
    return facts


def _record_identity(dataset: Dataset, record: VideoRecord) -> dict[str, Any]:
    """A video as existing packs identify it."""
    columns = label_rows.event_columns(record, dataset.tracks)
    events = {name: None if found is None else [list(event.values()) for event in found] for name, found in columns.items()}
    return {"id": record.id, "name": record.name, "split": record.split, "weak": record.weak, **events}


def _streams(dataset: Dataset) -> tuple[IndexedStream, ...]:
    streams, offset = [], 0
    for stream in dataset.streams:
        streams.append(IndexedStream(stream.name, stream.dim, offset, stream.shape))
        offset += stream.dim
    return tuple(streams)


def check_features(
    records: Sequence[VideoRecord], source: FeatureSource, workers: int | None = None
) -> tuple[tuple[LeftOut, ...], tuple[OddFile, ...]]:
    """Return the videos whose features cannot be packed, and unusual but usable files, in the order of ``records``."""
    with worker_pool.pool(workers) as pool:
        return _check(records, source, pool)


def _check(
    records: Sequence[VideoRecord], source: FeatureSource, pool: worker_pool.Pool | None
) -> tuple[tuple[LeftOut, ...], tuple[OddFile, ...]]:
    blocks = [(source, records[start : start + _CHECK_BLOCK]) for start in range(0, len(records), _CHECK_BLOCK)]
    checked = worker_pool.run(_check_block, blocks, [len(block) for _, block in blocks], pool, "checking features")
    return tuple(bad for block, _ in checked for bad in block), tuple(odd for _, block in checked for odd in block)


def _check_block(job: tuple[FeatureSource, Sequence[VideoRecord]]) -> tuple[list[LeftOut], list[OddFile]]:
    source, records = job
    examined = [(record, source.examine(record)) for record in records]
    bad = [LeftOut(record.id, record.split, "; ".join(found.problems)) for record, found in examined if found.problems]
    return bad, [odd for _, found in examined for odd in found.odd]


def _log_odd_files(odd: Sequence[OddFile]) -> None:
    if odd:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(file.kind for file in odd).items()))
        LOGGER.warning("unusual but usable feature files: %s; `avvp data check` explains how each is handled", counts)


def _check_records(dataset: Dataset, records: Sequence[VideoRecord]) -> None:
    """Raise DataError for records that no shard can hold; ids and splits become names of files and tar members."""
    problems = [] if records else ["no videos"]
    seen: set[str] = set()
    annotated: dict[str, bool] = {}
    timeline = label_rows.Timeline(dataset.segments, dataset.segment_seconds, len(dataset.classes))
    for record in records:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", record.id):
            problems.append(f"video id {record.id!r}: use up to 64 letters, digits, '-' and '_'")
        if not re.fullmatch(r"[A-Za-z0-9_]{1,32}", record.split):
            problems.append(f"{record.id}: split {record.split!r}: use letters, digits and '_'")
        if record.id in seen:
            problems.append(f"{record.id}: listed twice")
        seen.add(record.id)
        if not all(0 <= label < len(dataset.classes) for label in record.weak):
            problems.append(f"{record.id}: weak labels {record.weak} outside 0..{len(dataset.classes) - 1}")
        known = record.events is not None
        if annotated.setdefault(record.split, known) != known:
            problems.append(f"{record.id}: events must be known for all videos of {record.split} or for none")
        if record.events is not None and tuple(record.events) != dataset.tracks:
            problems.append(f"{record.id}: has events of {tuple(record.events)}, expected of {dataset.tracks}")
        problems += [
            f"{record.id}: {track} {event} is outside {len(dataset.classes)} classes or {dataset.seconds:g} seconds"
            for track, events in (record.events or {}).items()
            for event in events
            if not timeline.contains(*event)
        ]
    if problems:
        raise DataError(problems, "these videos cannot be packed")


def _finished(out: str, inputs: str) -> Index | None:
    """The index at ``out`` if it was made from these inputs; None if there is no index.

    Raises:
        DataError: it was made from other inputs.
    """
    if not storage.exists(storage.join(out, indexes.INDEX_FILE)):
        return None
    index = Index.load(out)
    if index.source != inputs:
        raise DataError(
            f"{out}: contains a data set packed from other inputs ({index.dataset}, {len(index.shards)} "
            f"{plural(len(index.shards), 'shard')}): {_INPUTS} differ. Pack into another folder, or delete this one first"
        )
    return index


def _unfinished(out: str, inputs: str) -> tuple[LeftOut, ...] | None:
    """The videos that an interrupted pack of the same inputs found bad; None if no pack was started.

    Raises:
        DataError: a pack of other inputs was started, or the folder contains shards of unknown origin.
    """
    plan_file = storage.join(out, indexes.PARTS_FOLDER, _PLAN_FILE)
    try:
        plan = json.loads(storage.read_bytes(plan_file))
        if plan["inputs"] == inputs:
            return tuple(LeftOut(**bad) for bad in plan["left_out"])
    except FileNotFoundError:
        foreign = [name for name in storage.names(out) if name.endswith((".tar", ".parquet"))]
        if not foreign:
            return None
        raise DataError(
            f"{out}: contains {foreign[0]} ({len(foreign)} such files) of unknown origin; pack into another folder"
        ) from None
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{plan_file}: not written by this program; delete {out}, or pack into another folder") from None
    raise DataError(
        f"{out}: contains an interrupted pack of other inputs: {_INPUTS} differ. Pack into another folder, or delete "
        "this one first"
    )


def _plan(
    dataset: Dataset,
    records: Sequence[VideoRecord],
    source: FeatureSource,
    out: str,
    shard_videos: int,
    left_out: set[str],
    earlier: Index | None,
) -> list[ShardJob]:
    known = {shard.name: shard for shard in earlier.shards} if earlier else {}
    version = earlier.schema_version if earlier else indexes.SCHEMA_VERSION
    splits: dict[str, list[VideoRecord]] = {}
    for record in records:
        if record.id not in left_out:
            splits.setdefault(record.split, []).append(record)
    if not splits:
        raise DataError("every video has bad features; nothing is left to pack")
    jobs: list[ShardJob] = []
    for split, videos in splits.items():
        for number, start in enumerate(range(0, len(videos), shard_videos)):
            name = f"{split}-{number:06d}.tar"
            chosen = tuple(videos[start : start + shard_videos])
            identities = [_record_identity(dataset, record) for record in chosen]
            fingerprint = _digest([identities, source.fingerprint(chosen)])
            jobs.append(
                ShardJob(dataset, source, out, len(jobs), name, split, chosen, fingerprint, known.get(name), version)
            )
    return jobs


def _labels(out: str, earlier: Index | None, rows: Sequence[pa.Table]) -> bytes:
    """Content of labels.parquet; an existing file with the same rows is kept, whichever version of pyarrow wrote it."""
    content = indexes.labels_bytes(rows)
    if earlier and earlier.labels and earlier.labels != labels_info(content):
        with contextlib.suppress(DataError):
            if indexes.read_table(out, earlier).equals(pa.concat_tables(rows)):
                return storage.read_bytes(storage.join(out, indexes.LABELS_FILE))
    return content


def _log_resumed(out: str, parts: str, shards: int) -> None:
    existing = sum(name.endswith(".tar.json") for name in storage.names(parts))
    if existing:
        LOGGER.info("%s: resuming an interrupted pack, %d of %d shards exist and are verified", out, existing, shards)


def _write_if_changed(url: str, content: bytes) -> None:
    if not storage.exists(url) or storage.read_bytes(url) != content:
        storage.write_bytes(url, content)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
