"""LLP's official files: tab-separated annotations, and one .npy file per video and network.

    AVVP_train.csv, AVVP_val_pd.csv, AVVP_test_pd.csv   filename, event_labels (comma-separated): the weak labels
    AVVP_eval_audio.csv, AVVP_eval_visual.csv           filename, onset, offset, event_labels (one): events of val and test
    AVVP_train_audio.csv, AVVP_train_visual.csv         the same for train; only synthetic data sets have them
    feats/{vggish,res152,r2plus1d_18}/<id>.npy          [10,128], [80,2048], [10,512]
    {CLAP,CLIP}/features/<id>.npy                       [64,768], [10,768], beside feats/; published by VALOR's authors

The annotations have known flaws, which are reported and handled; anything that would silently change a label is an error.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from avvp_dist import storage
from avvp_dist.datasets import annotation_rows, feature_files, llp_editions
from avvp_dist.datasets.catalog import LLP
from avvp_dist.datasets.flaws import Annotations, Flaw
from avvp_dist.datasets.reduction import to_segments
from avvp_dist.errors import DataError
from avvp_dist.shards.feature_source import FeatureReport, OddFile
from avvp_dist.shards.spec import Dataset, Stream
from avvp_dist.text.plural import plural
from avvp_dist.text.suggest import did_you_mean
from avvp_dist.types import MODALITIES, Event, VideoRecord

SPLIT_FILES = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
EVENT_FILES = {"audio": "AVVP_eval_audio.csv", "visual": "AVVP_eval_visual.csv"}
TRAIN_EVENT_FILES = {"audio": "AVVP_train_audio.csv", "visual": "AVVP_train_visual.csv"}

FLAWS = {
    "orphan": "row of a video that is in no split (ignored)",
    "empty": "offset not after onset (selects nothing)",
    "duplicate": "repeated row (counts once)",
    "overlap": "overlaps another row of the same label (merged)",
    "outside-weak": "annotated label that is not in the weak label (kept)",
    "unannotated": "weak label without any event (kept)",
    "repeated-label": "label repeated in one weak label (counts once)",
    llp_editions.OLDER: f"row that the corrected edition of {llp_editions.DATE} fixes (--mend does too)",
    llp_editions.MENDED: f"row corrected as in the edition of {llp_editions.DATE}",
}
"""Kinds of flaws that an import reports, and how each is handled."""

_ID = "[A-Za-z0-9_-]{11}"
_SECONDS = r"[0-9]+(?:\.[0-9]+)?"
_NAME = re.compile(f"({_ID})_{_SECONDS}_{_SECONDS}")
_WEAK_COLUMNS = ("filename", "event_labels")
_EVENT_COLUMNS = ("filename", "onset", "offset", "event_labels")
_LARGEST = float(np.finfo(np.float16).max)


@dataclass
class _Video:
    id: str
    name: str
    split: str
    weak: tuple[int, ...]
    file: str
    row: int
    events: dict[str, list[Event]] = field(default_factory=lambda: {modality: [] for modality in MODALITIES})


@dataclass
class _Findings:
    problems: list[str] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)


def read_annotations(folder: str | os.PathLike[str], mend: bool = False) -> Annotations:
    """Read and check the annotation files of LLP.

    Event rows refer to their video by its full file name. Validation and test videos without rows have no events; the events
    of training videos are unknown (None), unless the two optional files exist.

    Args:
        folder: path or URL of their folder.
        mend: correct the rows of the older edition as LLP's authors did (`llp_editions`).

    Raises:
        DataError: lists every problem of every file: missing files and columns, unknown classes, seconds that are not whole
            numbers within 0..10, malformed file names, videos listed twice.
    """
    if not storage.exists(folder):
        raise DataError(f"{os.fspath(folder)}: no such folder; it must contain LLP's annotation files")
    found = _Findings()
    videos: dict[str, _Video] = {}
    for split, file in SPLIT_FILES.items():
        _read_split(folder, split, file, videos, found)
    train_files = [file for file in TRAIN_EVENT_FILES.values() if storage.exists(storage.join(folder, file))]
    if len(train_files) == 1:
        missing = next(file for file in TRAIN_EVENT_FILES.values() if file not in train_files)
        found.problems.append(f"{missing}: missing, although {train_files[0]} exists; training events need both or neither")
    for modality in MODALITIES:
        _read_events(folder, EVENT_FILES[modality], modality, ("val", "test"), videos, found, mend)
        if TRAIN_EVENT_FILES[modality] in train_files:
            _read_events(folder, TRAIN_EVENT_FILES[modality], modality, ("train",), videos, found)
    if found.problems:
        raise DataError(found.problems, f"{os.fspath(folder)}: these annotations cannot be used")
    annotated = {"val", "test", *(["train"] if train_files else [])}
    for video in videos.values():
        if video.split in annotated:
            _report_unannotated(video, found)
    records = tuple(_record(video, video.split in annotated) for video in videos.values())
    files = [*SPLIT_FILES.values(), *EVENT_FILES.values(), *TRAIN_EVENT_FILES.values()]
    flaws = sorted(found.flaws, key=lambda flaw: (files.index(flaw.file), flaw.row or 0, flaw.kind))
    return Annotations(records, tuple(flaws), FLAWS)


def read_weak_labels(folder: str | os.PathLike[str], split: str = "train") -> tuple[VideoRecord, ...]:
    """Read the videos of one split, without events, in the order of its file's rows, by which other tools number them.

    Raises:
        DataError: there is no such split, or lists every problem of its file.
    """
    if split not in SPLIT_FILES:
        raise DataError(f"no split {split!r}; LLP has {', '.join(SPLIT_FILES)}")
    found = _Findings()
    videos: dict[str, _Video] = {}
    _read_split(folder, split, SPLIT_FILES[split], videos, found)
    if found.problems:
        raise DataError(found.problems, f"{os.fspath(folder)}: these annotations cannot be used")
    return tuple(_record(video, annotated=False) for video in videos.values())


def _record(video: _Video, annotated: bool) -> VideoRecord:
    events = {track: tuple(found) for track, found in video.events.items()} if annotated else None
    return VideoRecord(video.id, video.name, video.split, video.weak, events)


def _read_split(folder: str | os.PathLike[str], split: str, file: str, videos: dict[str, _Video], found: _Findings) -> None:
    places = {video.id: f"{video.file}:{video.row}" for video in videos.values()}
    for row, (name, labels) in annotation_rows.read(folder, file, _WEAK_COLUMNS, found.problems):
        weak = [_label(label.strip(), file, row, found.problems) for label in labels.split(",")]
        match = _NAME.fullmatch(name)
        if match is None:
            found.problems.append(
                f"{file}:{row}: filename {name!r} is not <id>_<start>_<end> with an id of 11 letters, digits, '-' or '_'"
            )
            continue
        if match[1] in places:
            found.problems.append(f"{file}:{row}: video {match[1]} is already listed at {places[match[1]]}")
            continue
        places[match[1]] = f"{file}:{row}"
        known = [label for label in weak if label is not None]
        repeated = sorted({LLP.classes[label] for label in known if known.count(label) > 1})
        if repeated:
            found.flaws.append(Flaw(file, row, "repeated-label", f"{name}: {', '.join(repeated)}"))
        videos[name] = _Video(match[1], name, split, tuple(sorted(set(known))), file, row)


def _label(name: str, file: str, row: int, problems: list[str]) -> int | None:
    """Number of a class; if there is no such class, add a problem and return None."""
    if name in LLP.classes:
        return LLP.classes.index(name)
    if not name:
        problems.append(f"{file}:{row}: event_labels is empty")
        return None
    hint = did_you_mean(name, LLP.classes, f"; the classes are {', '.join(LLP.classes)}")
    problems.append(f"{file}:{row}: unknown class {name!r} in event_labels{hint}")
    return None


def _read_events(
    folder: str | os.PathLike[str],
    file: str,
    modality: str,
    splits: Sequence[str],
    videos: Mapping[str, _Video],
    found: _Findings,
    mend: bool = False,
) -> None:
    """Add the events of one file to the videos of ``splits``."""
    seen: set[tuple[str, Event]] = set()
    outside: set[tuple[str, int]] = set()
    for row, (name, onset, offset, label_name) in annotation_rows.read(folder, file, _EVENT_COLUMNS, found.problems):
        label = _label(label_name, file, row, found.problems)
        start = _second(onset, "onset", file, row, found.problems)
        end = _second(offset, "offset", file, row, found.problems)
        if label is None or start is None or end is None:
            continue
        event = Event(label, float(start), float(end))
        corrected = llp_editions.correction(file, name, start, end, label_name)
        if corrected is not None and corrected in videos:
            kind = llp_editions.MENDED if mend else llp_editions.OLDER
            found.flaws.append(Flaw(file, row, kind, f"{name}: {label_name} {start}-{end}, should be {corrected}"))
            name = corrected if mend else name
        text = f"{name}: {label_name} {start}-{end}"
        kinds = []
        video = videos.get(name)
        if end <= start:
            kinds.append("empty")
        if video is None or video.split not in splits:
            kinds.append("orphan")
        elif (name, event) in seen:
            kinds.append("duplicate")
        elif end > start:
            others = [other for other in video.events[modality] if other.label == label]
            if any(max(start, other.onset) < min(end, other.offset) for other in others):
                kinds.append("overlap")
            if label not in video.weak and (name, label) not in outside:
                outside.add((name, label))
                kinds.append("outside-weak")
            video.events[modality].append(event)
        seen.add((name, event))
        found.flaws += [Flaw(file, row, kind, text) for kind in kinds]


def _second(text: str, column: str, file: str, row: int, problems: list[str]) -> int | None:
    value = annotation_rows.second(text, LLP.segments)
    if isinstance(value, str):
        problems.append(f"{file}:{row}: {column} {value}")
        return None
    return value


def _report_unannotated(video: _Video, found: _Findings) -> None:
    annotated = {event.label for events in video.events.values() for event in events}
    for label in video.weak:
        if label not in annotated:
            found.flaws.append(Flaw(video.file, video.row, "unannotated", f"{video.name}: {LLP.classes[label]}"))


class OfficialFeatures:
    """Features in the official layout, with one file per video and stream.

    Args:
        folder: path or URL of the folder that contains ``feats/`` (and ``CLAP/`` and ``CLIP/``), or of ``feats`` itself.
        dataset: defines the streams to read.

    Raises:
        DataError: the folder of a stream is missing.
    """

    def __init__(self, folder: str | os.PathLike[str], dataset: Dataset = LLP) -> None:
        root = storage.absolute(folder).rstrip("/")
        above, _, name = root.rpartition("/")
        places = [storage.join(root, "feats"), root, *([above] if name == "feats" else [])]
        found = {
            stream.folder: feature_files.find([storage.join(place, stream.folder) for place in places])
            for stream in dataset.streams
        }
        missing = [name for name, place in found.items() if place is None]
        if missing:
            raise DataError(
                [f"{name}/: no such folder" for name in missing],
                f"{root}: not the official layout of these features (--streams selects them)",
            )
        self._dataset = dataset
        self._folders = {name: place for name, place in found.items() if place is not None}

    def fingerprint(self, records: Sequence[VideoRecord]) -> str:
        """Identify the files of ``records`` by name, size and modification time; missing files are included."""
        digest = hashlib.sha256()
        for record in records:
            for stream in self._dataset.streams:
                file = _file(record)
                digest.update(f"{stream.folder}/{file} {self._folders[stream.folder].version(file)}\n".encode())
        return digest.hexdigest()

    def examine(self, record: VideoRecord) -> FeatureReport:
        """Report everything that is wrong or unusual about the files of one video.

        Raises:
            ConfigError: this machine, which may not be the one that planned the pack, has no access to the folder.
        """
        problems: list[str] = []
        odd: list[OddFile] = []
        for stream in self._dataset.streams:
            try:
                odd += self._read_stream(record, stream)[1]
            except DataError as error:
                problems += error.problems
        return FeatureReport(tuple(problems), tuple(odd))

    def check(self, record: VideoRecord) -> list[str]:
        """Reasons why the files of one video are unusable; see `examine`."""
        return list(self.examine(record).problems)

    def read(self, record: VideoRecord) -> np.ndarray:
        """Read the streams of one video, concatenated to float16 [T,width].

        Raises:
            DataError: the first unusable file.
        """
        return np.concatenate([self._read_stream(record, stream)[0] for stream in self._dataset.streams], axis=-1)

    def _read_stream(self, record: VideoRecord, stream: Stream) -> tuple[np.ndarray, tuple[OddFile, ...]]:
        """Read one stream of one video, reduced to [T,dim] in float32 or better, as float16; and its unusual properties."""
        file = _file(record)
        name = f"{stream.folder}/{file}"
        values, trailing = feature_files.load(self._folders[stream.folder], file, name)
        expected = (stream.rows, stream.dim)
        if values.shape != expected:
            raise DataError(f"{name}: shape {list(values.shape)}, expected {list(expected)}")
        if values.dtype.kind != "f" or values.dtype.itemsize > 8:
            raise DataError(f"{name}: has dtype {values.dtype}, expected float32 (or float16, float64)")
        finite = np.isfinite(values)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            bad = int(finite.size - finite.sum())
            values_are = plural(bad, "value is", "values are")
            raise DataError(f"{name}: {bad} {values_are} not finite, the first at [{row}, {column}]")
        with np.errstate(over="ignore"):
            packed = to_segments(values.astype(np.float32), stream, self._dataset.segments).astype(np.float16)
        if not np.isfinite(packed).all():
            raise DataError(f"{name}: values up to {np.abs(values).max():.4g} do not fit float16 (at most {_LARGEST:.0f})")
        return packed, feature_files.oddities(values, trailing, name)


def _file(record: VideoRecord) -> str:
    if not re.fullmatch(_ID, record.id):
        raise DataError(f"video id {record.id!r} is not 11 letters, digits, '-' or '_'")
    return f"{record.id}.npy"
