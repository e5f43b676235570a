"""AVE's official annotation files (Tian et al., ECCV 2018), and background videos that were published with weak labels.

    Annotations.txt                         Category&YouTubeID&Quality&StartTime&EndTime, one video per line: row i is row i
                                            of all arrays; a header is optional
    train_order.h5, val_order.h5, ..        ``order``: row numbers of a split
    labels.h5, right_labels.h5              [rows,10,29]: class of each second, the last one is background
    mil_labels.h5                           [rows,29]: weak labels
    labels_noisy.h5                         [videos,29]: the background videos, which belong to the training split
    audio_feature.h5, visual_feature.h5     [rows,10,128], [rows,10,7,7,512]; see `avvp_dist.datasets.ave_features`
    audio_feature_noisy.h5, visual_..       the same for the background videos

The arrays are called ``avadataset``. Annotations.txt, the order files and one class per video determine everything else, so
the label files are only compared with it.

A video is identified by its YouTube id. Rows that share one are different videos of this data set: the id of each is
``<YouTube id>_<row>``. Background videos are ``background_<row>``, with four digits.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.datasets import hdf5
from avvp_dist.datasets.catalog import AVE
from avvp_dist.datasets.flaws import Annotations, Flaw
from avvp_dist.errors import DataError
from avvp_dist.text.plural import plural
from avvp_dist.text.suggest import did_you_mean
from avvp_dist.types import Event, VideoRecord

ANNOTATIONS_FILE = "Annotations.txt"
HEADER = "Category&YouTubeID&Quality&StartTime&EndTime"
ORDER_FILES = {"train": "train_order.h5", "val": "val_order.h5", "test": "test_order.h5"}
SEGMENT_LABEL_FILES = ("labels.h5", "right_labels.h5")
WEAK_LABEL_FILE = "mil_labels.h5"
BACKGROUND_FILE = "labels_noisy.h5"
FEATURE_FILES = {stream.name: stream.folder for stream in AVE.streams}
BACKGROUND_FEATURE_FILES = {name: file.replace(".h5", "_noisy.h5") for name, file in FEATURE_FILES.items()}
ARRAY, ORDER = "avadataset", "order"
TRACK = AVE.tracks[0]

FLAWS = {
    "repeated-id": "YouTube id of an earlier row (each row is a video of its own)",
    "shared-id": "YouTube id that a video of another split has too (kept; the splits overlap)",
    "zero-length": "event without duration (the video has no event, its weak label is kept)",
    "unused": "row that is in no split (ignored)",
    "class-sorted": "training videos are sorted by class (the order is kept; shuffle them unless a published run does not)",
    "float64": "float64 instead of float32 (rounded)",
    "no-labels": "missing (labels are derived from Annotations.txt)",
    "no-background": "missing (there are no background videos)",
    "other-label": "differs from Annotations.txt (which counts)",
}
"""Kinds of flaws that an import reports, and how each is handled."""

_ID = re.compile("[A-Za-z0-9_-]{11}")
_TIME = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,9})?", re.ASCII)
_SHOWN = 5  # values in a message


@dataclass(frozen=True)
class Row:
    """One line of Annotations.txt.

    Attributes:
        line: its number, counted from 1.
        label: class of the video.
        youtube: YouTube id.
        onset, offset: interval of the event in seconds.
    """

    line: int
    label: int
    youtube: str
    onset: float
    offset: float

    @property
    def events(self) -> tuple[Event, ...]:
        """The event, if it has a duration."""
        return (Event(self.label, self.onset, self.offset),) if self.onset < self.offset else ()


@dataclass
class _Findings:
    problems: list[str] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)


def read_annotations(folder: str | os.PathLike[str], features: str | os.PathLike[str] | None = None) -> Annotations:
    """Read and check the annotation files of AVE.

    The training videos are in the order of train_order.h5, which is that of the published training loop, followed by the
    background videos, whose weak labels and events are empty. All videos are annotated with the track ``event``.

    Args:
        folder: path of their folder.
        features: path of the folder with the feature files, if it is another one; their types are reported as flaws.

    Raises:
        ConfigError: a folder is not on this machine.
        DataError: lists every problem of every file.
    """
    path = hdf5.local_folder(folder)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; it must contain AVE's annotation files")
    found = _Findings()
    rows, count = _read_rows(path, found)
    orders = {split: _read_order(path / file, count, found) for split, file in ORDER_FILES.items()}
    _check_orders(orders, rows, found)
    if rows and not found.problems:
        _compare_labels(path, rows, found)
    background = _count_background(path, found)
    for place in dict.fromkeys([path, path if features is None else hdf5.local_folder(features)]):
        _report_types(place, found)
    if found.problems:
        raise DataError(found.problems, f"{path}: these annotations cannot be used")
    return assemble(rows, orders, background, found.flaws)


def assemble(
    rows: Sequence[Row], orders: Mapping[str, NDArray[np.int64]], background: int, flaws: Sequence[Flaw] = ()
) -> Annotations:
    """The videos of all splits; see `read_annotations`.

    Args:
        rows: lines of Annotations.txt.
        orders: numbers of the rows of each split, in order.
        background: number of background videos.
        flaws: of the files.
    """
    shared = Counter(row.youtube for row in rows)
    ids = [row.youtube if shared[row.youtube] == 1 else f"{row.youtube}_{number}" for number, row in enumerate(rows)]
    records = []
    for split, order in orders.items():
        for number in order.tolist():
            row = rows[number]
            records.append(VideoRecord(ids[number], row.youtube, split, (row.label,), {TRACK: row.events}))
        if split == "train":
            names = [f"background_{number:04d}" for number in range(background)]
            records += [VideoRecord(name, name, split, (), {TRACK: ()}) for name in names]
    numbers = {name: number for number, name in enumerate(ids)}
    numbers |= {f"background_{number:04d}": len(rows) + number for number in range(background)}
    used = {record.id: numbers[record.id] for record in records}
    in_order = sorted(set(flaws), key=lambda flaw: (flaw.file, -1 if flaw.row is None else flaw.row, flaw.kind, flaw.detail))
    return Annotations(tuple(records), tuple(in_order), FLAWS, used, (len(rows), background))


def _read_rows(folder: Path, found: _Findings) -> tuple[list[Row], int]:
    """The usable lines of Annotations.txt, and the number of all lines."""
    try:
        text = storage.read_bytes(storage.join(folder, ANNOTATIONS_FILE)).decode("utf-8-sig")
    except FileNotFoundError:
        found.problems.append(f"{ANNOTATIONS_FILE}: missing from {folder}")
        return [], 0
    except (OSError, UnicodeDecodeError) as error:
        found.problems.append(f"{ANNOTATIONS_FILE}: cannot be read as UTF-8 text ({error})")
        return [], 0
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
    first = 2 if lines[0].startswith("Category&") else 1
    rows = []
    earlier: dict[str, int] = {}
    for number, line in enumerate(lines[first - 1 :], start=first):
        row = _parse(number, line, found.problems)
        if row is None:
            continue
        rows.append(row)
        if row.youtube in earlier:
            detail = f"{row.youtube}: also in line {earlier[row.youtube]}"
            found.flaws.append(Flaw(ANNOTATIONS_FILE, number, "repeated-id", detail))
        earlier.setdefault(row.youtube, number)
        if not row.events:
            detail = f"{row.youtube}: {AVE.classes[row.label]} {row.onset:g}-{row.offset:g}"
            found.flaws.append(Flaw(ANNOTATIONS_FILE, number, "zero-length", detail))
    if not rows and not found.problems:
        found.problems.append(f"{ANNOTATIONS_FILE}: no videos")
    return rows, len(lines) - first + 1


def _parse(number: int, line: str, problems: list[str]) -> Row | None:
    where = f"{ANNOTATIONS_FILE}:{number}"
    values = [value.strip() for value in line.split("&")]
    if len(values) != HEADER.count("&") + 1:
        problems.append(f"{where}: {len(values)} values separated by '&', expected {HEADER}: {line[:80]!r}")
        return None
    category, youtube, _, start, end = values
    wrong = []
    if category not in AVE.classes:
        wrong.append(f"unknown category {category[:80]!r}{did_you_mean(category, AVE.classes, '')}")
    if not _ID.fullmatch(youtube):
        wrong.append(f"YouTube id {youtube[:80]!r} is not 11 letters, digits, '-' or '_'")
    times = []
    for name, text in (("StartTime", start), ("EndTime", end)):
        if not _TIME.fullmatch(text) or float(text) > AVE.seconds:
            wrong.append(f"{name} {text[:80]!r} is not a number of seconds within 0..{AVE.seconds:g}")
        else:
            times.append(float(text))
    if len(times) == 2 and times[0] > times[1]:
        wrong.append(f"StartTime {start} is after EndTime {end}")
    problems += [f"{where}: {problem}" for problem in wrong]
    return None if wrong else Row(number, AVE.classes.index(category), youtube, *times)


def _read_order(path: Path, rows: int, found: _Findings) -> NDArray[np.int64]:
    """The row numbers of one split; empty if the file is unusable."""
    numbers = hdf5.read_all(path, ORDER, (None,), "iu", found.problems)
    if numbers is None:
        return np.empty(0, np.int64)
    if not len(numbers):
        found.problems.append(f"{path.name}: no rows")
    outside = numbers[(numbers < 0) | (numbers >= rows)] if rows else numbers[:0]
    if len(outside):
        found.problems.append(
            f"{path.name}: {len(outside)} of {len(numbers)} row numbers {plural(len(outside), 'is', 'are')} "
            f"outside the {rows} rows of {ANNOTATIONS_FILE} "
            f"(0..{rows - 1}): {_listed(outside)}"
        )
    values, counts = np.unique(numbers, return_counts=True)
    if (counts > 1).any():
        found.problems.append(
            f"{path.name}: {(counts > 1).sum()} {plural((counts > 1).sum(), 'row is', 'rows are')} "
            f"listed more than once: {_listed(values[counts > 1])}"
        )
    return numbers.astype(np.int64)


def _check_orders(orders: dict[str, NDArray[np.int64]], rows: Sequence[Row], found: _Findings) -> None:
    """Check the splits against each other."""
    splits = list(orders)
    for number, split in enumerate(splits):
        for other in splits[number + 1 :]:
            both = np.intersect1d(orders[split], orders[other])
            if len(both):
                files = f"{ORDER_FILES[split]} and {ORDER_FILES[other]}"
                found.problems.append(
                    f"{files}: {len(both)} {plural(len(both), 'row is', 'rows are')} in both: {_listed(both)}"
                )
    if found.problems or not rows:
        return
    places: dict[str, dict[str, int]] = {}
    for split, order in orders.items():
        for position, number in enumerate(order.tolist()):
            of_id = places.setdefault(rows[number].youtube, {})
            if of_id and split not in of_id:
                detail = f"{rows[number].youtube} (line {rows[number].line}): also in {', '.join(of_id)}"
                found.flaws.append(Flaw(ORDER_FILES[split], position, "shared-id", detail))
            of_id.setdefault(split, number)
    used = set(np.concatenate(list(orders.values())).tolist())
    found.flaws += [
        Flaw(ANNOTATIONS_FILE, row.line, "unused", row.youtube) for number, row in enumerate(rows) if number not in used
    ]
    labels = np.array([rows[number].label for number in orders["train"].tolist()])
    changes = int((labels[1:] != labels[:-1]).sum())
    if changes == len(set(labels.tolist())) - 1 and changes:
        detail = f"{changes} {plural(changes, 'change')} of the class in {len(labels)} videos"
        found.flaws.append(Flaw(ORDER_FILES["train"], None, "class-sorted", detail))


def label_arrays(rows: Sequence[Row]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Content of mil_labels.h5 [rows,29] and labels.h5 [rows,10,29] according to Annotations.txt."""
    one_hot, label = np.eye(len(AVE.classes) + 1, dtype=np.float32), np.array([row.label for row in rows])
    second = np.arange(AVE.segments)
    onset, offset = (np.array([getattr(row, name) for row in rows])[:, None] for name in ("onset", "offset"))
    inside = np.minimum(offset, second + 1) - np.maximum(onset, second) >= 0.5
    return one_hot[label], one_hot[np.where(inside, label[:, None], len(AVE.classes))]


def _compare_labels(folder: Path, rows: Sequence[Row], found: _Findings) -> None:
    """Compare the official label arrays with Annotations.txt, which contains the same facts."""
    weak, segments = label_arrays(rows)
    for file, expected in ((WEAK_LABEL_FILE, weak), *((file, segments) for file in SEGMENT_LABEL_FILES)):
        if not (folder / file).exists():
            if file != SEGMENT_LABEL_FILES[1]:  # corrected labels that only PSP's authors publish
                found.flaws.append(Flaw(file, None, "no-labels", "no such file"))
            continue
        values = hdf5.read_all(folder / file, ARRAY, expected.shape, "biuf", found.problems)
        if values is None:
            continue
        differing = np.flatnonzero((values != expected).reshape(len(rows), -1).any(axis=1))
        if 2 * len(differing) > len(rows):
            found.problems.append(
                f"{file}: {len(differing)} of {len(rows)} rows differ from {ANNOTATIONS_FILE}; the two files belong to "
                "different data sets, or are in another order"
            )
            continue
        found.flaws += [
            Flaw(file, number, "other-label", f"{rows[number].youtube} (line {rows[number].line})")
            for number in differing.tolist()
        ]


def _count_background(folder: Path, found: _Findings) -> int:
    """Number of background videos."""
    file = folder / BACKGROUND_FILE
    if not file.exists():
        found.flaws.append(Flaw(BACKGROUND_FILE, None, "no-background", "no such file"))
        return 0
    labels = hdf5.read_all(file, ARRAY, (None, len(AVE.classes) + 1), "biuf", found.problems)
    if labels is None:
        return 0
    expected = np.eye(len(AVE.classes) + 1)[-1]
    wrong = np.flatnonzero((labels != expected).any(axis=1))
    if len(wrong):
        found.problems.append(
            f"{BACKGROUND_FILE}: {len(wrong)} of {len(labels)} videos {plural(len(wrong), 'has', 'have')} another "
            f"label than background: {_listed(wrong)}"
        )
    return len(labels)


def _report_types(folder: Path, found: _Findings) -> None:
    """Report feature files whose values are float64; unusable files are a problem of the features, not of annotations."""
    for file in (*FEATURE_FILES.values(), *BACKGROUND_FEATURE_FILES.values()):
        if not (folder / file).exists():
            continue
        try:
            with hdf5.opened(folder / file, ARRAY) as array:
                if array.dtype == np.float64:
                    found.flaws.append(Flaw(file, None, "float64", f"shape {list(array.shape)}"))
        except DataError:
            continue


def _listed(values: NDArray) -> str:
    return ", ".join(str(value) for value in values[:_SHOWN].tolist()) + (", ..." if len(values) > _SHOWN else "")
