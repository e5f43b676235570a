"""A tiny data set in LLP's official layout, for tests of the code that reads it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from avvp_dist.datasets.catalog import LLP
from avvp_dist.datasets.llp import OfficialFeatures, read_annotations
from avvp_dist.shards.index import Index
from avvp_dist.shards.pack import pack
from avvp_dist.shards.spec import Dataset, Stream
from avvp_dist.types import VideoRecord

TINY = replace(
    LLP,
    name="tiny",
    streams=(Stream("audio", 3, "vggish", 10), Stream("visual", 5, "res152", 80), Stream("motion", 2, "r2plus1d_18", 10)),
)
"""LLP with narrow streams: files of a kilobyte."""

WEAK = "filename\tevent_labels\n"
EVENTS = "filename\tonset\toffset\tevent_labels\n"


def video_id(number: int) -> str:
    """Synthetic id of a video."""
    return f"video-_{number:04d}"


IDS = [video_id(number) for number in range(12)]
"""Ids of the videos of `write_official`."""


def write_official(folder: Path) -> Path:
    """Write seven training, two validation and three test videos; return the folder."""
    write_annotations(folder)
    write_features(folder, IDS)
    return folder


def pack_tiny(official: Path, out: object, **options) -> Index:
    """Pack ``official`` with three videos per shard, in this process by default."""
    arguments = {"provenance": {"from": "test"}, "workers": 1, "shard_videos": 3, **options}
    records = arguments.pop("records", None) or read_annotations(official).records
    return pack(TINY, records, arguments.pop("source", OfficialFeatures(official, TINY)), str(out), **arguments)


def modification_times(folder: Path) -> dict[str, int]:
    """Modification time of every file in ``folder`` in nanoseconds."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def write_annotations(folder: Path, counts: Sequence[int] = (7, 2, 3)) -> None:
    """Clean annotation files of ``counts`` videos in train, val and test, numbered consecutively."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    audio, visual = EVENTS, EVENTS
    for (split, file), count in zip(
        {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}.items(), counts, strict=True
    ):
        text = WEAK
        for _ in range(count):
            name, label = f"{video_id(number)}_10_20", LLP.classes[1 + number % 24]
            text += f"{name}\t{label},Speech\n"
            if split != "train":
                audio += f"{name}\t0\t{1 + number % 10}\tSpeech\n{name}\t2\t6\t{label}\n"
                visual += f"{name}\t{number % 10}\t10\t{label}\n"
            number += 1
        (folder / file).write_text(text)
    (folder / "AVVP_eval_audio.csv").write_text(audio)
    (folder / "AVVP_eval_visual.csv").write_text(visual)


def write_features(folder: Path, ids: Sequence[str], dataset: Dataset = TINY) -> None:
    """Random feature files of ``ids`` below ``folder/feats``."""
    for stream in dataset.streams:
        place = folder / "feats" / stream.folder
        place.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(ids):
            values = np.random.default_rng([number, stream.dim]).standard_normal((stream.rows, stream.dim))
            np.save(place / f"{name}.npy", values.astype(np.float32))


def contents(folder: Path) -> Mapping[str, bytes]:
    """Content of every file below ``folder`` by its relative path, including hidden files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class SlowFeatures(OfficialFeatures):
    """Features on a slow disk, so that a test has time to interrupt their packing."""

    def read(self, record: VideoRecord) -> np.ndarray:
        time.sleep(0.25)
        return super().read(record)


class DeadlyFeatures(OfficialFeatures):
    """Features whose last video kills the process that reads it, as the kernel does when memory runs out."""

    def read(self, record: VideoRecord) -> np.ndarray:
        if record.id == video_id(11):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(record)


class DyingOnceFeatures(OfficialFeatures):
    """Features whose last video kills the first process that packs it, as if its node was removed."""

    def __init__(self, folder: Path, dataset: Dataset = TINY) -> None:
        super().__init__(folder, dataset)
        self._died = folder / "died"

    def read(self, record: VideoRecord) -> np.ndarray:
        if record.id == video_id(11) and not self._died.exists():
            self._died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(record)
