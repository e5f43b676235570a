"""A synthetic LLP whose features encode its labels, for when the real features are not available.

What the features contain is in `synthetic_evidence`. Networks and denoisers behave much as published for LLP on them, but
the scores are not LLP's.

Instead of streams like VGGish and ResNet, the same videos can have streams like those of CLAP and CLIP: a feature map that
blurs each second into the adjacent ones, and features of length 1. That these are more informative is built in.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from avvp_dist import storage
from avvp_dist.datasets import llp
from avvp_dist.datasets.catalog import FEATURE_SETS, LLP
from avvp_dist.datasets.reduction import to_segments
from avvp_dist.datasets.synthetic_evidence import DEFAULT_VERSION, VERSIONS, Evidence, stream_values
from avvp_dist.datasets.synthetic_labels import SPLITS, generator, records, split_counts
from avvp_dist.errors import ConfigError
from avvp_dist.shards import pack as packing
from avvp_dist.shards import worker_pool
from avvp_dist.shards.feature_source import FeatureReport
from avvp_dist.shards.label_rows import plain
from avvp_dist.shards.spec import Dataset, Stream
from avvp_dist.storage import locks
from avvp_dist.types import Event, VideoRecord

__all__ = ["MARKER", "SyntheticFeatures", "features", "frames", "records", "write"]

LAYOUTS = ("official", "shards")
MARKER = "synthetic.json"
"""File beside the annotation files of the official layout that marks them as synthetic and records their origin."""

_FRAME_SPREAD = 0.1
_CHUNK = 16  # videos per task of a worker process
_VIDEOS_PER_WORKER = 1000  # with fewer, a second process costs more than it saves: it takes about 1.5 s to start


def features(
    seed: int, record: VideoRecord, dataset: Dataset = LLP, evidence: Evidence = VERSIONS[DEFAULT_VERSION]
) -> np.ndarray:
    """Features of one video: float16 [T,width], the streams of ``dataset`` (a feature set of LLP) concatenated.

    They depend only on the seed, the video's id and its events. A modality without annotations counts as empty.
    """
    packed = []
    for stream in dataset.streams:
        values = stream_values(seed, record, stream, evidence)
        if stream.reduction == "clap-map":
            values = to_segments(_feature_map(values, stream), stream, dataset.segments).astype(np.float16)
        packed.append(values)
    return np.concatenate(packed, axis=-1)


def _feature_map(values: np.ndarray, stream: Stream) -> np.ndarray:
    """Rows of a CLAP file, float32 [rows,d]: two equal bands, each column with the second that contains its center."""
    columns = stream.rows // 2
    seconds = (np.arange(columns) * 2 + 1) * len(values) // (2 * columns)
    return np.tile(values[seconds].astype(np.float32), (2, 1))


def _plain(record: VideoRecord, track: str) -> list[Event] | None:
    events = record.events_of(track)
    return None if events is None else [plain(event) for event in events]


def frames(
    seed: int, record: VideoRecord, dataset: Dataset = LLP, evidence: Evidence = VERSIONS[DEFAULT_VERSION]
) -> dict[str, np.ndarray]:
    """Files of one video in the official layout, by stream: float32 [rows,d].

    If a second has several rows, they deviate from their mean by a tenth. The mean is the float16 value of `features`, so
    averaging the rows in float32 and rounding restores exactly these values.
    """
    files = {}
    for stream in dataset.streams:
        mean = stream_values(seed, record, stream, evidence).astype(np.float32)
        if stream.reduction == "clap-map":
            files[stream.name] = _feature_map(mean, stream)
            continue
        repeats = stream.rows // LLP.segments
        if repeats > 1:
            rng = generator(seed, "frames", record.id, stream.name)
            spread = rng.standard_normal((LLP.segments, repeats, stream.dim), dtype=np.float32)
            spread -= spread.mean(axis=1, keepdims=True)
            spread *= np.float32(_FRAME_SPREAD)
            spread += 1
            spread *= mean[:, None]
            mean = spread.reshape(stream.rows, stream.dim)
        files[stream.name] = np.ascontiguousarray(mean)
    return files


@dataclass(frozen=True)
class SyntheticFeatures:
    """Synthetic features as the source of a pack; see `avvp_dist.shards.feature_source.FeatureSource`."""

    seed: int
    dataset: Dataset = LLP
    evidence: Evidence = VERSIONS[DEFAULT_VERSION]

    @property
    def recipe(self) -> Any:
        """Number of the version of the features; parameters that are no version's are given in full."""
        known = [version for version, evidence in VERSIONS.items() if evidence == self.evidence]
        return known[0] if known else asdict(self.evidence)

    def fingerprint(self, records: Sequence[VideoRecord]) -> str:
        """Identify the features of ``records``."""
        truth = [(record.id, *(_plain(record, track) for track in LLP.tracks)) for record in records]
        kind = [] if self.dataset == LLP else [self.dataset.name]
        return hashlib.sha256(json.dumps(["synthetic", self.recipe, self.seed, truth, *kind]).encode()).hexdigest()

    def examine(self, record: VideoRecord) -> FeatureReport:
        """Synthetic features are always valid."""
        return FeatureReport()

    def read(self, record: VideoRecord) -> np.ndarray:
        """Create the streams of one video, concatenated to float16 [T,width]."""
        return features(self.seed, record, self.dataset, self.evidence)


def write(
    out: str,
    *,
    videos: int | None,
    seed: int,
    annotations: str | None = None,
    layout: str = "official",
    streams: str = "vggish-resnet",
    splits: tuple[int, int, int] | None = None,
    workers: int | None = None,
    shard_videos: int | None = None,
    evidence: Evidence = VERSIONS[DEFAULT_VERSION],
) -> dict[str, Any]:
    """Write a synthetic LLP; the same arguments write the same bytes.

    Args:
        out: folder or URL. A synthetic LLP in the official layout is replaced; shards of other arguments are refused.
        videos: total number, divided among the splits as in LLP.
        seed: of everything random.
        annotations: folder of LLP's annotation files, to use their videos; None draws labels from LLP's statistics.
        layout: ``official`` (*.csv and feats/*/<id>.npy in one folder, as the authors' code reads them) or ``shards``.
        streams: features to create, a key of `avvp_dist.datasets.catalog.FEATURE_SETS`.
        splits: numbers of train, val and test videos, instead of ``videos``. Without either: all videos.
        workers: number of processes; None for a number that suits the machine and the amount of work.
        shard_videos: videos per shard (see `avvp_dist.shards.pack.pack`), for ``layout="shards"``.
        evidence: what the features contain.

    Returns:
        A summary: ``layout``, ``where``, ``seed``, ``videos`` by split, ``notes``, and the ``next`` command to run.

    Raises:
        ConfigError: lists all invalid arguments, or ``out`` contains files in the official layout that may be real.
        DataError: annotation files cannot be read, or ``out`` contains other shards.
    """
    counts = _checked(videos, splits, seed, layout, streams, workers, shard_videos, annotations is not None)
    dataset = FEATURE_SETS[streams]
    written = records(annotations, counts, seed)
    source = SyntheticFeatures(seed, dataset, evidence)
    provenance = _provenance(written, source, streams, annotations)
    present = provenance["videos"]
    notes = [
        f"{split}: all {present[split]} videos of the annotations ({count} were requested)"
        for split, count in zip(SPLITS, counts or (), strict=False)
        if present[split] < count
    ]
    workers = workers or max(1, min(os.cpu_count() or 1, len(written) // _VIDEOS_PER_WORKER))
    if layout == "shards":
        packing.pack(dataset, written, source, out, provenance=provenance, workers=workers, shard_videos=shard_videos)
        following = f"avvp train han data={shlex.quote(out)}"
    else:
        with locks.lock_folder(out, "choose another folder"):
            _write_official(out, written, source, provenance, workers)
        paths = {"annotations": out, "features": storage.join(out, "feats"), "out": f"{out.rstrip('/')}-packed"}
        options = {**paths, **({} if dataset == LLP else {"streams": streams})}
        following = " ".join(["avvp data pack llp", *(f"--{name} {shlex.quote(value)}" for name, value in options.items())])
    return {"layout": layout, "where": out, "seed": seed, "videos": present, "notes": notes, "next": following}


def _provenance(
    videos: Sequence[VideoRecord], source: SyntheticFeatures, streams: str, annotations: str | None
) -> dict[str, Any]:
    return {
        "synthetic": True,
        "about": "SYNTHETIC: features generated for testing; scores on them do not apply to LLP itself.",
        "seed": source.seed,
        "streams": streams,
        "recipe": source.recipe,
        "truth": "drawn from the statistics of LLP" if annotations is None else "annotation files; synthetic for train",
        "videos": {split: sum(record.split == split for record in videos) for split in SPLITS},
        "fingerprint": source.fingerprint(videos),
    }


def _checked(
    videos: int | None,
    splits: tuple[int, int, int] | None,
    seed: int,
    layout: str,
    streams: str,
    workers: int | None,
    shard_videos: int | None,
    annotated: bool,
) -> tuple[int, int, int] | None:
    """Check the arguments of `write`; return the number of videos by split, None for all annotated videos."""
    problems = []
    if layout not in LAYOUTS:
        problems.append(f"layout: {layout!r} is not one of {', '.join(LAYOUTS)}")
    if streams not in FEATURE_SETS:
        problems.append(f"streams: {streams!r} is not one of {', '.join(FEATURE_SETS)}")
    if seed < 0:
        problems.append(f"seed: must be a whole number of at least 0, got {seed}")
    if workers is not None and workers < 1:
        problems.append(f"workers: must be at least 1, got {workers}")
    if shard_videos is not None and shard_videos < 1:
        problems.append(f"shard_videos: must be at least 1, got {shard_videos}")
    try:
        counts = split_counts(videos, splits)
    except ConfigError as error:
        problems = error.problems + problems
    if problems:
        raise ConfigError(problems, "a synthetic LLP cannot be made from these arguments")
    return None if annotated and videos is None and splits is None else counts


def _write_official(
    out: str, videos: Sequence[VideoRecord], source: SyntheticFeatures, provenance: Mapping[str, Any], workers: int
) -> None:
    existing = storage.names(out)
    if existing and MARKER not in existing:
        raise ConfigError(f"{out}: its files may be real, as there is no {MARKER}; choose another folder")
    files = _annotation_files(videos)
    for name in files:  # first, so that an interrupted write does not leave a readable mixture of old and new files
        storage.remove(storage.join(out, name))
    storage.write_text(storage.join(out, MARKER), json.dumps(provenance, indent=1) + "\n")
    for stream in {stream for dataset in FEATURE_SETS.values() for stream in dataset.streams}:
        if stream in source.dataset.streams:
            storage.remove_abandoned(_folder(out, stream))
        else:  # stale features of an earlier call, perhaps with another seed
            storage.remove(_folder(out, stream))
    jobs = [(out, source, videos[start : start + _CHUNK]) for start in range(0, len(videos), _CHUNK)]
    with worker_pool.pool(workers) as executor:
        worker_pool.run(_write_features, jobs, [len(chunk) for *_, chunk in jobs], executor, "synthetic features")
    for name, content in files.items():
        storage.write_text(storage.join(out, name), content)


def _folder(out: str, stream: Stream) -> str:
    is_path = "/" in stream.folder  # such as CLAP/features: beside feats/, as in the layout of their authors
    return storage.join(out, stream.folder) if is_path else storage.join(out, "feats", stream.folder)


def _write_features(job: tuple[str, SyntheticFeatures, Sequence[VideoRecord]]) -> None:
    out, source, chunk = job
    for record in chunk:
        files = frames(source.seed, record, source.dataset, source.evidence)
        for stream in source.dataset.streams:
            content = io.BytesIO()
            np.lib.format.write_array(content, files[stream.name], allow_pickle=False)
            storage.write_bytes(storage.join(_folder(out, stream), f"{record.id}.npy"), content.getvalue())


def _annotation_files(videos: Sequence[VideoRecord]) -> dict[str, str]:
    """Annotation files by name, in the format of LLP's authors; the events of train are the synthetic ones."""
    files = {
        file: _table(
            ("filename", "event_labels"),
            ((video.name, ",".join(LLP.classes[label] for label in video.weak)) for video in videos if video.split == split),
        )
        for split, file in llp.SPLIT_FILES.items()
    }
    for named, training in ((llp.EVENT_FILES, False), (llp.TRAIN_EVENT_FILES, True)):
        chosen = [video for video in videos if (video.split == "train") == training]
        for modality, file in named.items():
            rows = (
                (video.name, f"{event.onset:g}", f"{event.offset:g}", LLP.classes[event.label])
                for video in chosen
                for event in video.events_of(modality) or ()
            )
            files[file] = _table(("filename", "onset", "offset", "event_labels"), rows)
    return files


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in (header, *rows))
