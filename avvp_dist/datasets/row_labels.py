"""Imports labels that other tools index by the row of an annotation file instead of by video.

MA's need_to_change.pkl lists rows of AVVP_train.csv whose labels are to be cleared; arrays of refined labels have one entry
per row. Rows are numbered from 0 without the header, as in pandas; classes are in LLP's official order.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.datasets import llp, safe_pickle
from avvp_dist.datasets.catalog import LLP
from avvp_dist.datasets.external import load_split, outside_weak, refined_labels
from avvp_dist.errors import DataError
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.index import Index, Labels
from avvp_dist.text.plural import plural
from avvp_dist.types import MODALITIES, VideoRecord

_NOTHING_WRITTEN = "these labels do not match the data; nothing was written"
_SHOWN = 3  # examples in a message


@dataclass(frozen=True)
class _Rows:
    """The videos of one split of a packed data set, and their rows in its annotation file.

    Attributes:
        file: name of the annotation file.
        records: the videos of the file, in its order.
        weak: bool [R,C], their weak labels, classes in LLP's order.
        place: row of each of the N packed videos, int [N].
        columns: number in LLP's order of each class of the data set, int [C].
    """

    index: Index
    labels: Labels
    file: str
    records: tuple[VideoRecord, ...]
    weak: NDArray[np.bool_]
    place: NDArray[np.int64]
    columns: NDArray[np.int64]

    def packed(self, values: NDArray) -> NDArray:
        """Rearrange ``values`` [R,...,C] of the rows and LLP's classes to [N,...,C] of the data set's videos and classes."""
        return values[self.place][..., self.columns]

    def describe(self, row: int) -> str:
        """Describe a row by its number and video."""
        return f"row {row} ({self.records[row].name})"


def import_need_to_change(
    data: str,
    file: str,
    annotations: str,
    aliasing: Literal["published", "fixed"] = "published",
    split: str = "train",
) -> RefinedLabels:
    """Import the labels that remain after clearing those listed by MA's step 2.

    Args:
        data: packed data set with the labeled videos.
        file: path or URL of need_to_change.pkl: two lists, visual and audio, with one list of row numbers per class.
        annotations: folder with the annotation file to which the rows refer.
        aliasing: published: clearing an audio label also clears the video-level label, as in MA's step 3; fixed: it does
            not.
        split: of the annotation file; MA uses train.

    Raises:
        DataError: the file is missing, of another kind, or does not belong to these annotations and data; lists every
            problem.
    """
    rows = _rows(data, annotations, split)
    try:
        content = storage.read_bytes(file)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    lists = safe_pickle.load(content, file)
    problems: list[str] = []
    cleared = {}
    if not _is_list(lists, len(MODALITIES)):
        problems.append(f"contains {_named(lists)}, expected two lists: visual and audio")
    else:
        for modality, of_classes in zip(("visual", "audio"), lists, strict=True):
            cleared[modality] = _cleared(modality, of_classes, rows, problems)
    if problems:
        raise DataError(problems, f"{file}: {_NOTHING_WRITTEN}")
    weak = rows.labels.weak
    audio_labels, visual_labels = (weak & ~rows.packed(cleared[modality]) for modality in MODALITIES)
    provenance = {
        "importer": "need_to_change",
        "file": storage.absolute(file),
        "annotations": storage.absolute(annotations),
        "aliasing": aliasing,
        "cleared": {"audio": int((weak & ~audio_labels).sum()), "visual": int((weak & ~visual_labels).sum())},
    }
    video, audio_labels, visual_labels = (
        values.astype(np.float32)
        for values in (audio_labels if aliasing == "published" else weak, audio_labels, visual_labels)
    )
    return refined_labels(data, rows.index, rows.labels, video, audio_labels, visual_labels, provenance)


def import_arrays(
    data: str,
    audio: str,
    visual: str,
    annotations: str,
    keep_outside_weak: bool = False,
    split: str = "train",
) -> RefinedLabels:
    """Import video-level or segment-level labels from two arrays with one entry per row of an annotation file.

    Args:
        data: packed data set with the labeled videos.
        audio, visual: paths or URLs of .npy files, or of .npz files with an array of that name (they can be the same file).
            Each is [rows, classes] or [rows, segments, classes] of bool, int or float in [0, 1], classes in LLP's order.
        annotations: folder with the annotation file to which the rows refer.
        keep_outside_weak: keep labels that are not in a video's weak label instead of refusing them as a sign of a different
            order.
        split: of the annotation file.

    Raises:
        DataError: lists every array that is missing, unreadable, of another shape, out of range or of other rows.
    """
    rows = _rows(data, annotations, split)
    problems: list[str] = []
    found = {}
    for modality, file in zip(MODALITIES, (audio, visual), strict=True):
        values = _array(file, modality, shared=audio == visual)
        if isinstance(values, str):
            problems.append(values)
            continue
        wrong = _misfits(values, rows, keep_outside_weak)
        problems += [f"{file}: {modality}: {problem}" for problem in wrong]
        found[modality] = values
    if problems:
        raise DataError(problems, _NOTHING_WRITTEN)
    audio_labels, visual_labels = (np.asarray(rows.packed(found[modality]), np.float32) for modality in MODALITIES)
    origin = {
        name: storage.absolute(url) for name, url in (("audio", audio), ("visual", visual), ("annotations", annotations))
    }
    return refined_labels(
        data, rows.index, rows.labels, None, audio_labels, visual_labels, {"importer": "arrays by row", **origin}
    )


def _rows(data: str, annotations: str, split: str) -> _Rows:
    """Match the packed videos with the rows of their annotation file.

    Raises:
        DataError: videos without a row, other weak labels, or other classes than LLP's.
    """
    index, labels = load_split(data, split)
    if set(index.classes) != set(LLP.classes):
        raise DataError(f"{data}: its classes are not LLP's, to which these files refer")
    records = llp.read_weak_labels(annotations, split)
    file = llp.SPLIT_FILES[split]
    columns = np.array([LLP.classes.index(name) for name in index.classes])
    weak = np.zeros((len(records), len(LLP.classes)), bool)
    for row, record in enumerate(records):
        weak[row, list(record.weak)] = True
    number = {record.id: row for row, record in enumerate(records)}
    missing = [name for name in labels.ids if name not in number]
    title = f"{storage.join(annotations, file)}: does not belong to {data}"
    if missing:
        are = plural(len(missing), "is", "are")
        raise DataError(f"{len(missing)} of {len(labels.ids)} videos {are} not in it: {_listed(missing)}", title)
    place = np.array([number[name] for name in labels.ids], np.int64)
    differing = np.flatnonzero((weak[place][:, columns] != labels.weak).any(axis=1))
    if len(differing):
        names = [labels.ids[position] for position in differing]
        raise DataError(
            f"{len(differing)} of {len(labels.ids)} videos {plural(len(differing), 'has', 'have')} other weak labels in it: "
            f"{_listed(names)}",
            title,
        )
    return _Rows(index, labels, file, records, weak, place, columns)


def _cleared(modality: str, of_classes: Any, rows: _Rows, problems: list[str]) -> NDArray[np.bool_]:
    """Labels [R,C] that the lists of one modality clear; problems are added to ``problems``."""
    cleared = np.zeros(rows.weak.shape, bool)
    if not _is_list(of_classes, len(LLP.classes)):
        problems.append(f"{modality}: {_named(of_classes)}, expected {len(LLP.classes)} lists, one per class")
        return cleared
    for label, listed in enumerate(of_classes):
        where = f"{modality}[{label}] ({LLP.classes[label]})"
        numbers = _whole_numbers(listed)
        if isinstance(numbers, str):
            problems.append(f"{where}: {numbers}, expected row numbers")
            continue
        outside = [number for number in numbers if not 0 <= number < len(rows.records)]
        if outside:
            problems.append(
                f"{where}: {len(outside)} of {len(numbers)} row numbers outside the {len(rows.records)} rows of {rows.file} "
                f"(0..{len(rows.records) - 1}): {_listed(outside)}"
            )
        inside = np.array([number for number in numbers if 0 <= number < len(rows.records)], np.int64)
        without = inside[~rows.weak[inside, label]]
        if len(without):
            problems.append(
                f"{where}: in {len(without)} of {len(numbers)} rows, the weak label does not contain this class: "
                f"{_listed([rows.describe(row) for row in without.tolist()])}"
            )
        cleared[inside, label] = True
    return cleared


def _whole_numbers(values: Any) -> list[int] | str:
    """Convert a list, array or tensor of integers to a list of int; return the name of its type for any other value."""
    if isinstance(values, np.ndarray | torch.Tensor):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        return _named(values)
    numbers = []
    for value in values:
        plain = value.item() if isinstance(value, np.generic | np.ndarray | torch.Tensor) and _is_single(value) else value
        if isinstance(plain, bool) or not isinstance(plain, int):
            return f"contains {_named(value)}"
        numbers.append(plain)
    return numbers


def _is_single(value: Any) -> bool:
    return int(np.prod(value.shape)) == 1


def _is_list(value: Any, length: int) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0 and len(value) == length
    return isinstance(value, list | tuple) and len(value) == length


def _named(value: Any) -> str:
    """Describe a value for a message."""
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"an array of {value.dtype} {list(value.shape)}"
    return f"{value!r:.40}"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")


def _array(file: str, name: str, shared: bool = False) -> NDArray | str:
    """Read the array in an .npy file, or the one called ``name`` in an .npz file; else return what is wrong.

    ``shared``: the file is given for both modalities.
    """
    try:
        content = storage.read_bytes(file)
    except FileNotFoundError:
        return f"{name}: {file}: no such file"
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return f"{name}: {file}: a single array for both modalities; give an .npz with both" if shared else loaded
        with loaded:
            if name in loaded.files:
                return loaded[name]
            return f"{name}: {file}: no array {name!r}; it contains {', '.join(loaded.files) or 'none'}"
    except Exception as error:  # a damaged header can make numpy raise almost any error
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        return f"{name}: {file}: not a readable .npy or .npz file ({detail})"


def _misfits(values: NDArray, rows: _Rows, keep_outside_weak: bool) -> Iterable[str]:
    """Problems of the labels of one modality."""
    count, classes, segments = len(rows.records), len(LLP.classes), rows.index.segments
    if values.shape not in ((count, classes), (count, segments, classes)):
        return [
            f"shape {list(values.shape)}, expected [{count}, {classes}] or [{count}, {segments}, {classes}]: "
            f"the rows of {rows.file}, segments, classes"
        ]
    if values.dtype.kind not in "biuf":
        return [f"has dtype {values.dtype}, expected bool, int or float"]
    inside = (values >= 0) & (values <= 1)  # False for NaN
    if not inside.all():
        first = np.argwhere(~inside)[0].tolist()
        bad = int(inside.size - inside.sum())
        return [f"{bad} {plural(bad, 'value')} outside 0..1, the first at {first}"]
    outside = outside_weak(values, rows.weak)
    if outside.any() and not keep_outside_weak:
        videos = np.flatnonzero(outside.reshape(count, -1).any(axis=1)).tolist()
        return [
            f"labels that are not in their video's weak label, in {len(videos)} of {count} rows: "
            f"{_listed([rows.describe(row) for row in videos])}; the array may be in another order than {rows.file}. "
            "--keep-outside-weak keeps them"
        ]
    return []
