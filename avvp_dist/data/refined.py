"""Refined labels: what a refiner found, keyed by video id, so that any training can read it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.errors import DataError

_FORMAT = 1


@dataclass(frozen=True)
class RefinedLabels:
    """Labels in place of the weak ones, each modality its own; hard (0 or 1) or soft.

    Attributes:
        ids: the N videos, in any order.
        classes: the C classes.
        video: [N,C] labels of the video, or None where the weak ones stay.
        audio, visual: [N,C] labels of a modality of the video, [N,T,C] of its segments, or [N,S,C] of its windows; float32.
        provenance: who made them, of what.
        windows: segments [start, stop) of each of the S windows, where labels are of windows.
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    video: NDArray[np.float32] | None
    audio: NDArray[np.float32]
    visual: NDArray[np.float32]
    provenance: Mapping[str, Any]
    windows: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def without(
        cls,
        removed: NDArray[np.bool_],
        weak: NDArray[np.bool_],
        ids: Sequence[str],
        classes: Sequence[str],
        provenance: Mapping[str, Any],
    ) -> RefinedLabels:
        """The weak labels [N,C] without those ``removed`` [N,2,C] from the sound and from the picture of whole videos."""
        audio, visual = ((weak & ~removed[:, number]).astype(np.float32) for number in range(2))
        return cls(tuple(ids), tuple(classes), None, audio, visual, provenance)

    def to_bytes(self) -> bytes:
        """One .npz, readable without pickle."""
        about = {
            "format": _FORMAT,
            "classes": list(self.classes),
            "provenance": dict(self.provenance),
            "windows": self.windows,
        }
        arrays = {
            "audio": self.audio,
            "visual": self.visual,
            "ids": np.array(self.ids),
            "about": np.array(json.dumps(about)),
        }
        if self.video is not None:
            arrays["video"] = self.video
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def load(cls, url: str) -> RefinedLabels:
        """Reads what `to_bytes` wrote.

        Raises:
            DataError: it is not there or not such a file.
        """
        try:
            with np.load(io.BytesIO(storage.read_bytes(url)), allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
                video = arrays.get("video")
                ids, audio, visual = tuple(arrays["ids"].tolist()), arrays["audio"], arrays["visual"]
        except FileNotFoundError:
            raise DataError(f"{url}: no such file") from None
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise DataError(f"{url}: not a file of refined labels ({type(error).__name__}: {error})") from None
        windows = None if about["windows"] is None else tuple((start, stop) for start, stop in about["windows"])
        return cls(ids, tuple(about["classes"]), video, audio, visual, about["provenance"], windows)

    @property
    def of_segments(self) -> bool:
        """Whether both modalities' labels are of single segments, [N,T,C]."""
        return self.windows is None and self.audio.ndim == self.visual.ndim == 3

    @property
    def fingerprint(self) -> str:
        """Hash of what a training would see of them."""
        digest = hashlib.sha256(json.dumps([self.ids, self.classes, self.windows]).encode())
        for values in (self.video, self.audio, self.visual):
            digest.update(b"none" if values is None else np.ascontiguousarray(values, np.float32).tobytes())
        return digest.hexdigest()

    def aligned(self, ids: Sequence[str], classes: Sequence[str], segments: int, source: str) -> RefinedLabels:
        """The same labels in the order of ``ids``.

        Raises:
            DataError: videos or classes without labels, or arrays of another shape; every problem.
        """
        number = {name: row for row, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in number]
        problems = []
        if missing:
            listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            problems.append(f"no labels for {len(missing)} of {len(ids)} training videos: {listed}")
        if tuple(classes) != self.classes:
            problems.append("its classes are not the data set's, or in another order")
        rows = segments if self.windows is None else len(self.windows)
        shapes = {(len(self.ids), len(self.classes)), (len(self.ids), rows, len(self.classes))}
        problems += [
            f"{name}: shape {values.shape}, expected [videos, classes] or [videos, {rows}, classes]"
            for name, values in (("audio", self.audio), ("visual", self.visual))
            if values.shape not in shapes
        ]
        if problems:
            raise DataError(problems, f"{source}: these refined labels do not fit the data")
        order = [number[name] for name in ids]
        return replace(
            self,
            ids=tuple(ids),
            video=None if self.video is None else self.video[order],
            audio=self.audio[order],
            visual=self.visual[order],
        )
