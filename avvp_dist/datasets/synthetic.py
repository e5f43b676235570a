"""A made-up LLP whose features carry what its labels say, for when the real features cannot be had.

A class leaves evidence only in the modality and the seconds where it truly is, some classes look alike, each video has its
own clutter, and how strongly a class shows varies. With v = video, t = second, c = class, d = width of a stream:

    P[c]     direction of a class; confusable classes share half of it
    g[v,t,c] = active * lognormal(0, .35) of the video and class * lognormal(0, .3) of the second and class
    x[v,t]   = relu( s * sum_c g * (sqrt(d) * P[c] + .5 * normal(v,c,d)) + 1.2 * normal(v,d) + normal(v,t,d) )

s is a constant of the stream; what is heard drives the audio stream, what is seen the visual and the motion stream. So
networks and denoisers behave on it much as they are published to behave on LLP, but its scores are not LLP's.

In place of VGGish and ResNet it can have streams like those of CLAP and CLIP, of the same videos: a feature map that smears
each second into its neighbours, and features of length 1. That they tell more than the others is built in (their s).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from avvp_dist import storage
from avvp_dist.datasets import llp
from avvp_dist.datasets.catalog import FEATURE_SETS, LLP
from avvp_dist.datasets.reduction import to_segments
from avvp_dist.datasets.synthetic_labels import SPLITS, generator, records, split_counts
from avvp_dist.errors import ConfigError
from avvp_dist.shards import pack as packing
from avvp_dist.shards import worker_pool
from avvp_dist.shards.feature_source import FeatureReport
from avvp_dist.shards.spec import Dataset, Stream
from avvp_dist.storage import locks
from avvp_dist.types import Event, VideoRecord

__all__ = ["MARKER", "SyntheticFeatures", "features", "frames", "records", "write"]

LAYOUTS = ("official", "shards")
MARKER = "synthetic.json"
"""Lies beside the annotation files of the official layout and says that they are made up, and from what."""

_RECIPE = 1  # goes up whenever the same seed gives other features
_STRENGTH = {"vggish": 0.6, "res152": 0.25, "r2plus1d_18": 0.38, "CLAP/features": 0.4, "CLIP/features": 0.42}
_CONFUSABLE = (
    ("Speech", "Singing"),
    ("Cello", "Violin_fiddle"),
    ("Car", "Motorcycle"),
    ("Cheering", "Clapping"),
    ("Banjo", "Acoustic_guitar"),
    ("Vacuum_cleaner", "Lawn_mower"),
    ("Dog", "Cat"),
    ("Baby_laughter", "Baby_cry_infant_cry"),
    ("Chainsaw", "Lawn_mower"),
    ("Fire_alarm", "Telephone_bell_ringing"),
)
_SHARE = 0.5**0.5
_VIDEO_SPREAD, _SECOND_SPREAD = 0.35, 0.3  # of the logarithm of the strength
_LOOKS, _CLUTTER, _FRAME_SPREAD = 0.5, 1.2, 0.1
_CHUNK = 16  # videos a task of a worker process
_VIDEOS_A_WORKER = 1000  # below this a second process costs more than it saves: a start takes about 1.5 s


@lru_cache(maxsize=4)
def _class_vectors(seed: int, dataset: Dataset) -> Mapping[str, np.ndarray]:
    """sqrt(d) * P of each stream: float32 [C,d], rows of length sqrt(d)."""
    number = {name: index for index, name in enumerate(LLP.classes)}
    vectors = {}
    for stream in dataset.streams:
        rng = generator(seed, "classes", stream.name)
        own = rng.standard_normal((len(LLP.classes), stream.dim))
        confusable = {number[name] for pair in _CONFUSABLE for name in pair}
        for label in confusable:
            own[label] *= _SHARE
        for pair in _CONFUSABLE:
            common = rng.standard_normal(stream.dim)
            for name in pair:
                own[number[name]] += _SHARE * common
        length = np.linalg.norm(own, axis=1, keepdims=True)
        vectors[stream.name] = (own * (stream.dim**0.5 / length)).astype(np.float32)
    return vectors


def features(seed: int, record: VideoRecord, dataset: Dataset = LLP) -> np.ndarray:
    """The features of one video: float16 [T,width], the streams of ``dataset`` (a feature set of LLP) side by side.

    They depend on the seed, the video's id and its events alone. What was not annotated is taken for absent.
    """
    packed = []
    for stream in dataset.streams:
        values = _stream(seed, record, stream, dataset)
        if stream.reduction == "clap-map":
            values = to_segments(_feature_map(values, stream), stream, dataset.segments).astype(np.float16)
        packed.append(values)
    return np.concatenate(packed, axis=-1)


def _feature_map(values: np.ndarray, stream: Stream) -> np.ndarray:
    """The rows of a CLAP file, float32 [rows,d]: two like bands, each column what its middle lies in."""
    columns = stream.rows // 2
    seconds = (np.arange(columns) * 2 + 1) * len(values) // (2 * columns)
    return np.tile(values[seconds].astype(np.float32), (2, 1))


def _stream(seed: int, record: VideoRecord, stream: Stream, dataset: Dataset) -> np.ndarray:
    rng = generator(seed, "features", record.id, stream.name)
    shape = (LLP.segments, stream.dim)
    values = rng.standard_normal(shape, dtype=np.float32)
    values += np.float32(_CLUTTER) * rng.standard_normal(stream.dim, dtype=np.float32)
    events = record.audio_events if stream.name == "audio" else record.visual_events
    directions = _class_vectors(seed, dataset)[stream.name]
    for label, active in _activity(events or ()).items():
        looks = directions[label] + np.float32(_LOOKS) * rng.standard_normal(stream.dim, dtype=np.float32)
        strength = np.exp(_VIDEO_SPREAD * rng.standard_normal() + _SECOND_SPREAD * rng.standard_normal(LLP.segments))
        gain = (_STRENGTH[stream.folder] * strength * active).astype(np.float32)
        values += gain[:, None] * looks
    np.maximum(values, 0, out=values)
    if stream.folder == "CLIP/features":
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(np.float16)


def _activity(events: Iterable[Event]) -> dict[int, np.ndarray]:
    """For each class that occurs, in ascending order, bool [T]: whether it is there in that second."""
    active: dict[int, np.ndarray] = {}
    for event in events:
        active.setdefault(event.label, np.zeros(LLP.segments, bool))[event.onset : event.offset] = True
    return dict(sorted(active.items()))


def frames(seed: int, record: VideoRecord, dataset: Dataset = LLP) -> dict[str, np.ndarray]:
    """The files of one video in the official layout, by stream: float32 [rows,d].

    Where a second has several rows they differ by a tenth of their mean, which is the value of `features`: float16 numbers,
    so that averaging the rows in float32 and rounding gives back the very same ones.
    """
    files = {}
    for stream in dataset.streams:
        mean = _stream(seed, record, stream, dataset).astype(np.float32)
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
    """Made-up features as a source of a pack; see `avvp_dist.shards.shard_file.FeatureSource`."""

    seed: int
    dataset: Dataset = LLP

    def fingerprint(self, records: Sequence[VideoRecord]) -> str:
        """Identifies the features of ``records``."""
        truth = [(record.id, record.audio_events, record.visual_events) for record in records]
        kind = [] if self.dataset == LLP else [self.dataset.name]
        return hashlib.sha256(json.dumps(["synthetic", _RECIPE, self.seed, truth, *kind]).encode()).hexdigest()

    def examine(self, record: VideoRecord) -> FeatureReport:
        """Nothing can be wrong with made-up features."""
        return FeatureReport()

    def read(self, record: VideoRecord) -> np.ndarray:
        """The streams of one video side by side, float16 [T,width]."""
        return features(self.seed, record, self.dataset)


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
    shard_videos: int = 256,
) -> dict[str, Any]:
    """Writes a synthetic LLP; the same arguments write the same bytes.

    Args:
        out: folder or URL. A synthetic LLP in the official layout is replaced there, shards of other arguments are refused.
        videos: how many in all, shared out over the splits as in LLP.
        seed: of everything random.
        annotations: folder of LLP's annotation files, whose videos are then taken; None draws labels from LLP's statistics.
        layout: ``official`` (*.csv and feats/*/<id>.npy in one folder, as the authors' code reads them) or ``shards``.
        streams: which features, a key of `avvp_dist.datasets.catalog.FEATURE_SETS`.
        splits: videos of train, val and test, in place of ``videos``. Without either: all videos.
        workers: processes; None for what the machine has and the work deserves.
        shard_videos: videos in a shard, for ``layout="shards"``.

    Returns:
        What was written: ``layout``, ``where``, ``seed``, ``videos`` by split, ``notes``, and in ``next`` what to run.

    Raises:
        ConfigError: arguments that cannot be, all at once, or an ``out`` with files in the official layout that may be real.
        DataError: annotation files that cannot be read, or an ``out`` that holds other shards.
    """
    counts = _checked(videos, splits, seed, layout, streams, workers, shard_videos, annotations is not None)
    dataset = FEATURE_SETS[streams]
    made = records(annotations, counts, seed)
    present = {split: sum(record.split == split for record in made) for split in SPLITS}
    source = SyntheticFeatures(seed, dataset)
    provenance = {
        "synthetic": True,
        "about": "SYNTHETIC: made-up features for testing; scores on them say nothing about LLP itself.",
        "seed": seed,
        "streams": streams,
        "recipe": _RECIPE,
        "truth": "drawn from the statistics of LLP" if annotations is None else "annotation files; made up for train",
        "videos": present,
        "fingerprint": source.fingerprint(made),
    }
    notes = [
        f"{split}: all {present[split]} videos of the annotations (asked for {count})"
        for split, count in zip(SPLITS, counts or (), strict=False)
        if present[split] < count
    ]
    workers = workers or max(1, min(os.cpu_count() or 1, len(made) // _VIDEOS_A_WORKER))
    if layout == "shards":
        packing.pack(dataset, made, source, out, provenance=provenance, workers=workers, shard_videos=shard_videos)
        following = f"avvp train han data={shlex.quote(out)}"
    else:
        with locks.lock_folder(out, "choose another folder"):
            _write_official(out, made, source, provenance, workers)
        places = {"annotations": out, "features": storage.join(out, "feats"), "out": f"{out.rstrip('/')}-packed"}
        options = {**places, **({} if dataset == LLP else {"streams": streams})}
        following = " ".join(["avvp data pack llp", *(f"--{name} {shlex.quote(value)}" for name, value in options.items())])
    return {"layout": layout, "where": out, "seed": seed, "videos": present, "notes": notes, "next": following}


def _checked(
    videos: int | None,
    splits: tuple[int, int, int] | None,
    seed: int,
    layout: str,
    streams: str,
    workers: int | None,
    shard_videos: int,
    annotated: bool,
) -> tuple[int, int, int] | None:
    """Videos by split; None for all that the annotations have."""
    problems = []
    if layout not in LAYOUTS:
        problems.append(f"layout: {layout!r} is not one of {', '.join(LAYOUTS)}")
    if streams not in FEATURE_SETS:
        problems.append(f"streams: {streams!r} is not one of {', '.join(FEATURE_SETS)}")
    if seed < 0:
        problems.append(f"seed: a whole number from 0 on, got {seed}")
    if workers is not None and workers < 1:
        problems.append(f"workers: at least 1, got {workers}")
    if shard_videos < 1:
        problems.append(f"shard_videos: at least 1, got {shard_videos}")
    try:
        counts = split_counts(videos, splits)
    except ConfigError as error:
        problems = error.problems + problems
    if problems:
        raise ConfigError(problems, "a synthetic LLP cannot be made from these arguments")
    return None if annotated and videos is None and splits is None else counts


def _write_official(
    out: str, made: Sequence[VideoRecord], source: SyntheticFeatures, provenance: Mapping[str, Any], workers: int
) -> None:
    held = storage.names(out)
    if held and MARKER not in held:
        raise ConfigError(f"{out}: what it holds may be real, as there is no {MARKER}; choose another folder")
    files = _annotation_files(made)
    for name in files:  # whoever is interrupted leaves features without annotations, not a mixture that can be read
        storage.remove(storage.join(out, name))
    storage.write_text(storage.join(out, MARKER), json.dumps(provenance, indent=1) + "\n")
    for stream in {stream for dataset in FEATURE_SETS.values() for stream in dataset.streams}:
        if stream in source.dataset.streams:
            storage.remove_abandoned(_folder(out, stream))
        else:  # of other features that were here, perhaps of another seed
            storage.remove(_folder(out, stream))
    jobs = [(out, source, made[start : start + _CHUNK]) for start in range(0, len(made), _CHUNK)]
    with worker_pool.pool(workers) as executor:
        worker_pool.run(_write_features, jobs, [len(chunk) for *_, chunk in jobs], executor, "synthetic features")
    for name, content in files.items():
        storage.write_text(storage.join(out, name), content)


def _folder(out: str, stream: Stream) -> str:
    beside = stream.folder.startswith(("CLAP/", "CLIP/"))  # where their authors have them
    return storage.join(out, stream.folder) if beside else storage.join(out, "feats", stream.folder)


def _write_features(job: tuple[str, SyntheticFeatures, Sequence[VideoRecord]]) -> None:
    out, source, chunk = job
    for record in chunk:
        files = frames(source.seed, record, source.dataset)
        for stream in source.dataset.streams:
            content = io.BytesIO()
            np.lib.format.write_array(content, files[stream.name], allow_pickle=False)
            storage.write_bytes(storage.join(_folder(out, stream), f"{record.id}.npy"), content.getvalue())


def _annotation_files(made: Sequence[VideoRecord]) -> dict[str, str]:
    """The annotation files by name, as LLP's authors write them; the events of train are the planted ones."""
    files = {
        file: _table(
            ("filename", "event_labels"),
            ((video.name, ",".join(LLP.classes[label] for label in video.weak)) for video in made if video.split == split),
        )
        for split, file in llp.SPLIT_FILES.items()
    }
    for named, training in ((llp.EVENT_FILES, False), (llp.TRAIN_EVENT_FILES, True)):
        chosen = [video for video in made if (video.split == "train") == training]
        for modality, file in named.items():
            rows = (
                (video.name, str(event.onset), str(event.offset), LLP.classes[event.label])
                for video in chosen
                for event in (video.audio_events if modality == "audio" else video.visual_events) or ()
            )
            files[file] = _table(("filename", "onset", "offset", "event_labels"), rows)
    return files


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in (header, *rows))
