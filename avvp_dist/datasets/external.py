"""Segment-level labels from outside: from files of another tool, or from the ground truth with synthetic noise."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.index import Index, Labels, read_labels
from avvp_dist.types import MODALITIES


def import_segment_labels(data: str, audio: str, visual: str, split: str = "train") -> RefinedLabels:
    """Import segment-level labels from two folders of ``<id>.npy``, as VALOR publishes them (segment_pseudo_labels).

    Args:
        data: packed data set with the labeled videos.
        audio, visual: folders or URLs; each file is [T,C] of bool, int or float in [0, 1], classes in the data set's order.
        split: of the videos. Labels of val and test reveal their weak labels: never train on them.

    Raises:
        DataError: lists every file that is missing, unreadable, of another shape or out of range.
    """
    index, labels = load_split(data, split)
    problems = [
        f"{modality}: no folder {folder}"
        for modality, folder in zip(MODALITIES, (audio, visual), strict=True)
        if not storage.exists(folder)
    ]
    problems += [f"video id {name!r} cannot be the name of a file" for name in labels.ids if not _is_file_name(name)]
    shape = (index.segments, len(index.classes))
    found = []
    if not problems:
        for folder in (audio, visual):
            with ThreadPoolExecutor(max_workers=8) as pool:
                read = list(pool.map(partial(_read, folder, shape), labels.ids))
            problems += [values for values in read if isinstance(values, str)]
            found.append(read)
    if problems:
        raise DataError(problems, f"{len(problems)} problems with these segment-level labels; nothing was written")
    audio_labels, visual_labels = (np.array(read, np.float32).reshape(-1, *shape) for read in found)
    origin = {"audio": storage.absolute(audio), "visual": storage.absolute(visual)}
    return refined_labels(data, index, labels, None, audio_labels, visual_labels, {"importer": "external labels", **origin})


def noisy_segment_labels(data: str, flip: float, seed: int, split: str = "train") -> RefinedLabels:
    """Add noise to the ground truth of a split, as a substitute for another tool's labels.

    For each class of a video's weak label, the label of each annotated segment is flipped with probability ``flip``,
    independently in each modality. Classes that are not in the weak label stay 0.

    Raises:
        ConfigError: ``flip`` is not a probability, or ``seed`` is negative.
        DataError: there is no such split, or it is not annotated.
    """
    problems = [] if 0 <= flip <= 1 else [f"flip: {flip} is not between 0 and 1"]
    problems += [] if seed >= 0 else [f"seed: {seed} is negative"]
    if problems:
        raise ConfigError(problems)
    index, labels = load_split(data, split)
    if labels.truth is None:
        raise DataError(f"{data}: split {split} has no annotated segments to make labels from; synthetic data have them")
    rng = np.random.default_rng(seed)
    audio_labels, visual_labels = (
        ((truth ^ (rng.random(truth.shape) < flip)) & labels.weak[:, None]).astype(np.float32)
        for truth in (labels.truth[modality] for modality in MODALITIES)
    )
    return refined_labels(
        data, index, labels, None, audio_labels, visual_labels, {"maker": "truth with noise", "flip": flip, "seed": seed}
    )


def load_split(data: str, split: str) -> tuple[Index, Labels]:
    """Read the index of a packed data set and the labels of one split.

    Raises:
        DataError: there is no such data set or split, or its events are not of audio and visual.
    """
    index = Index.load(data)
    if set(index.tracks) != set(MODALITIES):
        raise DataError(
            f"{data}: labels of {' and '.join(MODALITIES)} are needed, but the events of {index.dataset} are of "
            f"{', '.join(index.tracks)}"
        )
    labels = read_labels(data, index)
    if split not in labels:
        raise DataError(f"{data}: no split {split!r}; it has {', '.join(labels)}")
    return index, labels[split]


def refined_labels(
    data: str,
    index: Index,
    labels: Labels,
    video: NDArray | None,
    audio_labels: NDArray,
    visual_labels: NDArray,
    provenance: dict[str, Any],
) -> RefinedLabels:
    """Create refined labels, [N,C] or [N,T,C], of the videos of one split, and complete their provenance."""
    provenance |= {"data": storage.absolute(data), "fingerprint": index.fingerprint, "split": labels.split}
    provenance["synthetic"] = index.synthetic
    # VALOR masks its labels by the weak ones, so a tool that does not should be reported
    provenance["outside_weak"] = sum(
        int(outside_weak(values, labels.weak).sum()) for values in (audio_labels, visual_labels)
    )
    return RefinedLabels(labels.ids, index.classes, video, {"audio": audio_labels, "visual": visual_labels}, provenance)


def outside_weak(values: NDArray, weak: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask of labels [N,C] or [N,T,C] above 0 whose class is not in the video's weak label [N,C]."""
    return (values > 0) & ~(weak[:, None] if values.ndim == 3 else weak)


def _is_file_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) is not None


def _read(folder: str, shape: tuple[int, int], name: str) -> NDArray | str:
    """The labels of one video, or a description of what is wrong with their file."""
    url = storage.join(folder, f"{name}.npy")
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        return f"{url}: missing"
    try:
        values = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header can make numpy raise almost any error
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        return f"{url}: not a readable .npy array ({detail})"
    if values.shape != shape:
        return f"{url}: shape {list(values.shape)}, expected {list(shape)} (segments, classes)"
    if values.dtype.kind not in "biuf":
        return f"{url}: has dtype {values.dtype}, expected bool, int or float"
    inside = (values >= 0) & (values <= 1)  # False for NaN
    if not inside.all():
        row, column = np.argwhere(~inside)[0]
        return f"{url}: {inside.size - inside.sum()} values outside 0..1, the first at [{row}, {column}]"
    return values
