"""A synthetic AVE whose features encode its labels, in the official file layout or as shards.

A class leaves evidence in the modality and the seconds in which it is audible or visible (`synthetic_ave_labels`). It is
visible in a patch of 2x2 to 3x3 of the 49 regions, which moves slowly; the other regions show the scene and objects that are
no class. With v = video, t = second, r = region, c = class, d = width of a stream:

    P[c]       direction of a class, sqrt(d) long; confusable classes share half of it
    g[v,t]     lognormal(0, .35) of the video * lognormal(0, .3) of the second, if the class is audible or visible
    audio      x[v,t]   = scale * relu(s * g * (P[c] + .5 * normal(v,d)) + 1.2 * normal(v,d) + normal(v,t,d) - .4)
    visual     x[v,t,r] = scale * relu(s * (g * in_patch * (P[c] + .5 * normal(v,d)) + objects) + .8 * normal(v,d)
                                       + normal(v,t,r,d) - .4)

Localization networks therefore behave much as published for AVE, but the scores are not AVE's.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.datasets import ave, hdf5
from avvp_dist.datasets.ave import Row
from avvp_dist.datasets.catalog import AVE
from avvp_dist.datasets.synthetic import LAYOUTS, MARKER
from avvp_dist.datasets.synthetic_ave_labels import NOTHING, SPLITS, Counts, counts, evidence, rows_and_orders
from avvp_dist.datasets.synthetic_labels import generator
from avvp_dist.errors import ConfigError
from avvp_dist.shards import pack as packing
from avvp_dist.shards.feature_source import FeatureReport
from avvp_dist.storage import locks
from avvp_dist.types import VideoRecord

_RECIPE = 2  # increased whenever the same seed yields other features
_SIDE, _CHANNELS = 7, 512
_AUDIO_STRENGTH, _VISUAL_STRENGTH = 0.75, 0.75
_AUDIO_SCALE, _VISUAL_SCALE = 0.2, 0.5  # values about as large as those of VGGish and VGG-19
_CONFUSABLE = (
    ("Male speech, man speaking", "Female speech, woman speaking"),
    ("Fixed-wing aircraft, airplane", "Helicopter"),
    ("Race car, auto racing", "Motorcycle"),
    ("Truck", "Bus"),
    ("Violin, fiddle", "Ukulele"),
    ("Acoustic guitar", "Banjo"),
    ("Banjo", "Mandolin"),
    ("Ukulele", "Mandolin"),
    ("Bark", "Cat"),
    ("Goat", "Horse"),
    ("Flute", "Shofar"),
    ("Church bell", "Clock"),
    ("Chainsaw", "Motorcycle"),
    ("Train horn", "Shofar"),
)
_SHARE = 0.5**0.5
_VIDEO_SPREAD, _SECOND_SPREAD = 0.35, 0.3  # of the logarithm of the strength
_APPEARANCE, _AUDIO_CLUTTER, _SCENE, _OFFSET = 0.5, 1.2, 0.8, 0.4
_OBJECTS, _KINDS_OF_OBJECTS = 3, 24  # in a video, and in all
_MOVES = 0.3  # probability that the patch moves by one region from one second to the next
_CHUNK = 16  # videos that are written at a time


@lru_cache(maxsize=4)
def _directions(seed: int) -> dict[str, NDArray[np.float32]]:
    """Directions of the classes and of objects that are no class, float32 [.,d] with rows of length sqrt(d)."""
    number = {name: index for index, name in enumerate(AVE.classes)}
    directions = {}
    for name, width in (("audio", 128), ("visual", _CHANNELS)):
        rng = generator(seed, "ave classes", name)
        vectors = rng.standard_normal((len(AVE.classes), width))
        for label in {number[one] for pair in _CONFUSABLE for one in pair}:
            vectors[label] *= _SHARE
        for pair in _CONFUSABLE:
            common = rng.standard_normal(width)
            for one in pair:
                vectors[number[one]] += _SHARE * common
        directions[name] = vectors
    directions["objects"] = generator(seed, "ave objects").standard_normal((_KINDS_OF_OBJECTS, _CHANNELS))
    return {
        name: (vectors * (vectors.shape[1] ** 0.5 / np.linalg.norm(vectors, axis=1, keepdims=True))).astype(np.float32)
        for name, vectors in directions.items()
    }


def audio(seed: int, record: VideoRecord) -> NDArray[np.float16]:
    """Audio features of one video, float16 [T,128]; they depend only on the seed, the video's id, label and event."""
    rng = generator(seed, "ave features", record.id, "audio")
    width = AVE.streams[0].dim
    values = rng.standard_normal((AVE.segments, width), dtype=np.float32)
    values += np.float32(_AUDIO_CLUTTER) * rng.standard_normal(width, dtype=np.float32)
    for label, gain in _gains(rng, evidence(seed, record).audio):
        appearance = _directions(seed)["audio"][label] + np.float32(_APPEARANCE) * rng.standard_normal(width, np.float32)
        values += np.float32(_AUDIO_STRENGTH) * gain[:, None] * appearance
    return _rectified(values, _AUDIO_SCALE)


def visual(seed: int, record: VideoRecord) -> NDArray[np.float16]:
    """Visual features of one video, float16 [T,7,7,512]; see `audio`."""
    rng = generator(seed, "ave features", record.id, "visual")
    directions = _directions(seed)
    values = rng.standard_normal((AVE.segments, _SIDE, _SIDE, _CHANNELS), dtype=np.float32)
    values += np.float32(_SCENE) * rng.standard_normal(_CHANNELS, dtype=np.float32)
    strength = np.float32(_VISUAL_STRENGTH)
    for kind in rng.integers(_KINDS_OF_OBJECTS, size=_OBJECTS):
        gain = strength * np.float32(np.exp(_VIDEO_SPREAD * rng.standard_normal()))
        values[_patch(rng, moves=0)] += gain * directions["objects"][kind]
    for label, gains in _gains(rng, evidence(seed, record).visual):
        appearance = directions["visual"][label] + np.float32(_APPEARANCE) * rng.standard_normal(_CHANNELS, np.float32)
        inside = _patch(rng, _MOVES) & (gains > 0)[:, None, None]
        values[inside] += strength * np.repeat(gains, inside.sum(axis=(1, 2)))[:, None] * appearance
    return _rectified(values, _VISUAL_SCALE)


def _gains(rng: np.random.Generator, classes: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Strength in each second of every class that occurs, in ascending order; 0 where it does not."""
    for label in np.unique(classes[classes != NOTHING]).tolist():
        strength = np.exp(_VIDEO_SPREAD * rng.standard_normal() + _SECOND_SPREAD * rng.standard_normal(len(classes)))
        yield label, (strength * (classes == label)).astype(np.float32)


def _patch(rng: np.random.Generator, moves: float) -> NDArray[np.bool_]:
    """Regions of a rectangle in each second, bool [T,7,7]."""
    size = rng.integers(2, 4, size=2)
    corner = rng.integers(0, _SIDE - size + 1)
    regions = np.zeros((AVE.segments, _SIDE, _SIDE), bool)
    for second in range(AVE.segments):
        if rng.random() < moves:
            corner = np.clip(corner + rng.integers(-1, 2, size=2), 0, _SIDE - size)
        regions[second, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = True
    return regions


def _rectified(values: NDArray[np.float32], scale: float) -> NDArray[np.float16]:
    values -= np.float32(_OFFSET)
    np.maximum(values, 0, out=values)
    values *= np.float32(scale)
    return values.astype(np.float16)


@dataclass(frozen=True)
class SyntheticAve:
    """Synthetic features of AVE as the source of a pack; see `avvp_dist.shards.feature_source.FeatureSource`."""

    seed: int

    def fingerprint(self, records: Sequence[VideoRecord]) -> str:
        """Identify the features of ``records``."""
        truth = [(record.id, record.weak, record.events_of(ave.TRACK)) for record in records]
        return hashlib.sha256(json.dumps(["synthetic ave", _RECIPE, self.seed, truth]).encode()).hexdigest()

    def examine(self, record: VideoRecord) -> FeatureReport:
        """Synthetic features are always valid."""
        return FeatureReport()

    def read(self, record: VideoRecord) -> np.ndarray:
        """Create the streams of one video, each segment flattened, concatenated to float16 [T,width]."""
        regions = visual(self.seed, record)
        return np.concatenate([audio(self.seed, record), regions.reshape(len(regions), -1)], axis=-1)


def write(
    out: str,
    *,
    videos: int | None = None,
    seed: int = 0,
    annotations: str | None = None,
    layout: str = "official",
    splits: Sequence[int] | None = None,
    background: int | None = None,
    workers: int | None = None,
    shard_videos: int | None = None,
) -> dict[str, Any]:
    """Write a synthetic AVE; the same arguments write the same bytes. A video has 0.5 MB in shards, 1 MB in official files.

    Args:
        out: folder, or URL of shards. A synthetic AVE in the official layout is replaced; shards of other arguments are
            refused.
        videos: total number, divided among the splits as in AVE; background videos come in addition.
        seed: of everything random.
        annotations: folder of AVE's annotation files, to use their videos; None draws labels from AVE's statistics.
        layout: ``official`` (Annotations.txt and HDF5 files, as the authors' code reads them) or ``shards``.
        splits: numbers of train, val and test videos, instead of ``videos``. Without either: 400, 60, 60.
        background: number of background videos in train; by default in the proportion of AVE.
        workers: number of processes that write shards; None for one per core.
        shard_videos: videos per shard (see `avvp_dist.shards.pack.pack`), for ``layout="shards"``.

    Returns:
        A summary as `avvp_dist.datasets.synthetic.write` returns it.

    Raises:
        ConfigError: lists all invalid arguments, or ``out`` contains files in the official layout that may be real.
        DataError: annotation files cannot be read, or ``out`` contains other shards.
    """
    wanted = _checked(videos, splits, background, seed, layout, workers, shard_videos)
    rows, orders, available = rows_and_orders(annotations, wanted, seed)
    found = ave.assemble(rows, orders, available)
    source = SyntheticAve(seed)
    present = {split: len(orders[split]) for split in SPLITS} | {"background": available}
    provenance = _provenance(found.records, source, annotations, present)
    notes = [
        f"{name}: all {present[name]} videos of the annotations ({count} were requested)"
        for name, count in wanted._asdict().items()
        if present[name] < count
    ]
    if layout == "shards":
        packing.pack(AVE, found.records, source, out, provenance=provenance, workers=workers, shard_videos=shard_videos)
        following = f"avvp train ave data={shlex.quote(out)}"
    else:
        with locks.lock_folder(out, "choose another folder"):
            _write_official(hdf5.local_folder(out), rows, orders, found.records, found.rows, source, provenance)
        options = {"annotations": out, "features": out, "out": f"{out.rstrip('/')}-packed"}
        following = " ".join(["avvp data pack ave", *(f"--{name} {shlex.quote(value)}" for name, value in options.items())])
    return {"layout": layout, "where": out, "seed": seed, "videos": present, "notes": notes, "next": following}


def _provenance(
    records: Sequence[VideoRecord], source: SyntheticAve, annotations: str | None, present: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "synthetic": True,
        "about": "SYNTHETIC: features generated for testing; scores on them do not apply to AVE itself.",
        "seed": source.seed,
        "recipe": _RECIPE,
        "truth": "drawn from the statistics of AVE" if annotations is None else "annotation files",
        "videos": present,
        "fingerprint": source.fingerprint(records),
    }


def _checked(
    videos: int | None,
    splits: Sequence[int] | None,
    background: int | None,
    seed: int,
    layout: str,
    workers: int | None,
    shard_videos: int | None,
) -> Counts:
    """Check the arguments of `write`."""
    problems = []
    if layout not in LAYOUTS:
        problems.append(f"layout: {layout!r} is not one of {', '.join(LAYOUTS)}")
    if seed < 0:
        problems.append(f"seed: must be a whole number of at least 0, got {seed}")
    for name, value in (("workers", workers), ("shard_videos", shard_videos)):
        if value is not None and value < 1:
            problems.append(f"{name}: must be at least 1, got {value}")
    try:
        wanted = counts(videos, splits, background)
    except ConfigError as error:
        problems = error.problems + problems
    if problems:
        raise ConfigError(problems, "a synthetic AVE cannot be made from these arguments")
    return wanted


def _write_official(
    folder: Path,
    rows: Sequence[Row],
    orders: Mapping[str, NDArray[np.int64]],
    records: Sequence[VideoRecord],
    numbers: Mapping[str, int],
    source: SyntheticAve,
    provenance: dict[str, Any],
) -> None:
    """Write all files, Annotations.txt last: an interrupted write leaves nothing that can be read."""
    existing = storage.names(folder)
    if existing and MARKER not in existing:
        raise ConfigError(f"{folder}: its files may be real, as there is no {MARKER}; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ave.ANNOTATIONS_FILE).unlink(missing_ok=True)
    storage.write_text(folder / MARKER, json.dumps(provenance, indent=1) + "\n")
    weak, segments = ave.label_arrays(rows)
    background = np.tile(np.eye(weak.shape[1], dtype=np.float32)[-1:], (len(numbers) - len(rows), 1))
    arrays = {ave.WEAK_LABEL_FILE: weak, ave.SEGMENT_LABEL_FILES[0]: segments, ave.BACKGROUND_FILE: background}
    for name, values in arrays.items():
        _write_array(folder / name, ave.ARRAY, values)
    for split, order in orders.items():
        _write_array(folder / ave.ORDER_FILES[split], ave.ORDER, order.astype(np.int64))
    by_number = sorted(records, key=lambda record: numbers[record.id])
    _write_features(folder, ave.FEATURE_FILES, by_number[: len(rows)], source, "f4")
    _write_features(folder, ave.BACKGROUND_FEATURE_FILES, by_number[len(rows) :], source, "f8")
    lines = (f"{AVE.classes[row.label]}&{row.youtube}&good&{row.onset:g}&{row.offset:g}\n" for row in rows)
    storage.write_text(folder / ave.ANNOTATIONS_FILE, "".join(lines))


def _write_array(path: Path, key: str, values: NDArray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=values)


def _write_features(
    folder: Path, files: Mapping[str, str], records: Sequence[VideoRecord], source: SyntheticAve, audio_dtype: str
) -> None:
    """Write the feature files of ``records``, a few videos at a time."""
    with h5py.File(folder / files["audio"], "w") as sound, h5py.File(folder / files["visual"], "w") as images:
        shapes = {stream.name: (len(records), AVE.segments, *stream.shape) for stream in AVE.streams}
        to = {
            "audio": sound.create_dataset(ave.ARRAY, shapes["audio"], audio_dtype),
            "visual": images.create_dataset(ave.ARRAY, shapes["visual"], "f4"),
        }
        for start in range(0, len(records), _CHUNK):
            chunk = records[start : start + _CHUNK]
            to["audio"][start : start + len(chunk)] = np.stack([audio(source.seed, record) for record in chunk])
            to["visual"][start : start + len(chunk)] = np.stack([visual(source.seed, record) for record in chunk])
