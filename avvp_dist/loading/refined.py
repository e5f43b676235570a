"""Refined labels: the output of a refiner, keyed by video id, so that any training can read it."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.errors import DataError
from avvp_dist.storage import integrity
from avvp_dist.types import MODALITIES

_FORMAT = 1
_ARRAYS = "arrays"  # key of the arrays' checksum
_OTHERS = ("video", "ids", "about")  # arrays of a file that are not the labels of a track


@dataclass(frozen=True)
class RefinedLabels:
    """Labels that replace the weak ones, separately per track; hard (0 or 1) or soft.

    Attributes:
        ids: the N videos, in any order.
        classes: the C classes.
        video: [N,C] video-level labels, or None to keep the weak ones.
        tracks: labels by track, float32: [N,C] per video, [N,T,C] per segment, or [N,S,C] per window.
        provenance: how they were made, and from what.
        windows: segments [start, stop) of each of the S windows, if labels are per window.
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    video: NDArray[np.float32] | None
    tracks: Mapping[str, NDArray[np.float32]]
    provenance: Mapping[str, Any]
    windows: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def from_removed(
        cls,
        removed: NDArray[np.bool_],
        weak: NDArray[np.bool_],
        ids: Sequence[str],
        classes: Sequence[str],
        provenance: Mapping[str, Any],
    ) -> RefinedLabels:
        """The weak labels [N,C] without those ``removed`` [N,2,C] from the audio and visual labels of whole videos."""
        kept = {track: (weak & ~removed[:, number]).astype(np.float32) for number, track in enumerate(MODALITIES)}
        return cls(tuple(ids), tuple(classes), None, kept, provenance)

    def to_bytes(self) -> bytes:
        """Serialize to an .npz with a checksum inside, readable without pickle."""
        arrays: dict[str, NDArray[Any]] = {**self.tracks, "ids": np.array(self.ids)}
        if self.video is not None:
            arrays["video"] = self.video
        about = {
            "format": _FORMAT,
            "classes": list(self.classes),
            "provenance": dict(self.provenance),
            "windows": self.windows,
            _ARRAYS: _digest(arrays),
        }
        arrays["about"] = np.array(json.dumps(integrity.seal(about)))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def load(cls, url: str) -> RefinedLabels:
        """Read the result of `to_bytes` from ``url``.

        Raises:
            DataError: the file is missing, of another kind, damaged, or contains invalid labels; lists every problem.
        """
        try:
            return cls.from_bytes(storage.read_bytes(url), url)
        except FileNotFoundError:
            raise DataError(f"{url}: no such file") from None

    @classmethod
    def from_bytes(cls, content: bytes, url: str) -> RefinedLabels:
        """Parse the result of `to_bytes`; see `load`. ``url`` names the file in messages."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            missing = [name for name in ("about", "ids") if name not in arrays]
            missing += [] if arrays.keys() - set(_OTHERS) else ["labels of any track, such as audio"]
            if missing:
                raise DataError(
                    f"{url}: not a file of refined labels, it lacks {', '.join(missing)}; import arrays of other tools with "
                    "`avvp data labels`"
                )
            text = str(arrays.pop("about"))
        except DataError:
            raise
        except Exception as error:  # a damaged zip file can raise almost any error
            detail = " ".join(str(error).split())[:120]
            raise DataError(f"{url}: not a file of refined labels ({type(error).__name__}: {detail})") from None
        about = integrity.unseal(text.encode(), url)
        # files of earlier versions and of other tools have no checksum
        if (_ARRAYS in about or integrity.is_sealed(about)) and about.get(_ARRAYS) != _digest(arrays):
            raise DataError(f"{url}: damaged, its arrays differ from their checksum")
        problems = _problems(arrays, about)
        if problems:
            raise DataError(problems, f"{url}: invalid refined labels")
        windows = about.get("windows")
        kept = None if windows is None else tuple((start, stop) for start, stop in windows)
        values = {name: np.asarray(array, np.float32) for name, array in arrays.items() if name != "ids"}
        video = values.pop("video", None)
        ids, classes = tuple(arrays["ids"].tolist()), tuple(about["classes"])
        return cls(ids, classes, video, values, about.get("provenance") or {}, kept)

    @property
    def has_segment_labels(self) -> bool:
        """Whether the labels of all tracks are segment-level, [N,T,C]."""
        return self.windows is None and all(values.ndim == 3 for values in self.tracks.values())

    @property
    def audio(self) -> NDArray[np.float32]:
        """Labels of the track ``audio``."""
        return self.tracks["audio"]

    @property
    def visual(self) -> NDArray[np.float32]:
        """Labels of the track ``visual``."""
        return self.tracks["visual"]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that affects training."""
        digest = hashlib.sha256(json.dumps([self.ids, self.classes, self.windows]).encode())
        for values in (self.video, *self.tracks.values()):
            digest.update(b"none" if values is None else np.ascontiguousarray(values, np.float32).tobytes())
        return digest.hexdigest()

    def aligned(self, ids: Sequence[str], classes: Sequence[str], segments: int, source: str) -> RefinedLabels:
        """Return the same labels in the order of ``ids``.

        Raises:
            DataError: videos or classes without labels, or arrays of another shape; lists every problem.
        """
        number = {name: row for row, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in number]
        problems = []
        if missing:
            listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            problems.append(f"no labels for {len(missing)} of {len(ids)} training videos: {listed}")
        if tuple(classes) != self.classes:
            problems.append("its classes differ from the data set's, or are in another order")
        rows = segments if self.windows is None else len(self.windows)
        shapes = {(len(self.ids), len(self.classes)), (len(self.ids), rows, len(self.classes))}
        problems += [
            f"{name}: shape {values.shape}, expected [videos, classes] or [videos, {rows}, classes]"
            for name, values in self.tracks.items()
            if values.shape not in shapes
        ]
        if self.windows and self.windows[-1][1] > segments:
            problems.append(f"windows: the last one ends at segment {self.windows[-1][1]} of {segments}")
        if problems:
            raise DataError(problems, f"{source}: these refined labels do not match the data")
        order = [number[name] for name in ids]
        return replace(
            self,
            ids=tuple(ids),
            video=None if self.video is None else self.video[order],
            tracks={name: values[order] for name, values in self.tracks.items()},
        )


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Hash of arrays including their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = arrays[name]
        digest.update(json.dumps([name, values.dtype.str, values.shape]).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _problems(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> list[str]:
    """Problems of a file that make its labels invalid for any data."""
    problems = []
    classes, ids, windows = about.get("classes"), arrays["ids"], about.get("windows")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or not classes:
        return ["classes: expected a list of names"]
    if ids.ndim != 1 or ids.dtype.kind != "U":
        return [f"ids: {ids.dtype} {list(ids.shape)}, expected a list of strings"]
    for what, names in (("ids", ids.tolist()), ("classes", classes)):
        duplicates = [name for name, count in Counter(names).items() if count > 1]
        if duplicates:
            problems.append(f"{what}: {len(duplicates)} listed more than once, such as {duplicates[0]!r}")
    if windows is not None:
        problems += _window_problems(windows)
    rows = len(windows) if isinstance(windows, list) else None
    for name in arrays:
        if name != "ids":
            problems += _value_problems(name, arrays[name], len(ids), len(classes), rows)
    return problems


def _window_problems(windows: Any) -> list[str]:
    """Problems of windows, which must be pairs of segments [start, stop) in order, and may overlap."""
    if not isinstance(windows, list) or not windows:
        return [f"windows: {windows!r:.80}, expected a list of [start, stop]"]
    for number, window in enumerate(windows):
        valid = isinstance(window, list) and len(window) == 2 and all(type(edge) is int for edge in window)
        if not valid or not 0 <= window[0] < window[1]:
            return [f"windows: {window!r:.80} as number {number}, expected [start, stop] with 0 <= start < stop"]
        if number and (window[0] <= windows[number - 1][0] or window[1] < windows[number - 1][1]):
            return [f"windows: {window!r} comes after {windows[number - 1]!r}, expected them in order"]
    return []


def _value_problems(name: str, values: NDArray[Any], videos: int, classes: int, windows: int | None) -> list[str]:
    """Problems of the labels of one track, or of whole videos."""
    if values.dtype.kind not in "biuf":
        return [f"{name}: has dtype {values.dtype}, expected bool, int or float"]
    rows = "segments" if windows is None else windows
    per_part = name != "video" and values.ndim == 3 and windows in (None, values.shape[1])
    if not (values.ndim == 2 or per_part) or (values.shape[0], values.shape[-1]) != (videos, classes):
        parts = "" if name == "video" else f" or [{videos}, {rows}, {classes}]"
        return [f"{name}: shape {list(values.shape)}, expected [{videos}, {classes}]{parts}"]
    inside = (values >= 0) & (values <= 1)  # False for NaN
    if inside.all():
        return []
    place = tuple(np.argwhere(~inside)[0].tolist())
    return [f"{name}: {inside.size - inside.sum()} values outside 0..1, the first is {values[place]} at {list(place)}"]
