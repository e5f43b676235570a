"""The interface through which a pack reads features, and the reports about their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from avvp_dist.types import VideoRecord

ODDITIES = {
    "float64": "float64 instead of float32 (rounded to float32)",
    "float16": "float16 instead of float32 (the same values)",
    "big-endian": "other byte order (the same values)",
    "fortran-order": "stored in column order (the same values)",
    "all-zero": "only zeros (packed unchanged; perhaps their extraction failed)",
    "trailing-bytes": "additional bytes after the array (ignored; perhaps the file is damaged)",
}
"""Kinds of usable feature files that differ from the official ones, and how each is handled."""


@dataclass(frozen=True)
class OddFile:
    """A usable feature file that differs from the official ones.

    Attributes:
        kind: a key of `ODDITIES`.
        file: ``<folder of the stream>/<id>.npy``.
    """

    kind: str
    file: str


@dataclass(frozen=True)
class FeatureReport:
    """Findings about the feature files of one video.

    Attributes:
        problems: reasons why they are unusable, one per line.
        odd: unusual properties of usable files.
    """

    problems: tuple[str, ...] = ()
    odd: tuple[OddFile, ...] = ()


class FeatureSource(Protocol):
    """Provides the features of videos. It is sent to worker processes, so it must be picklable."""

    def fingerprint(self, records: Sequence[VideoRecord]) -> str:
        """Identify the inputs of ``records`` without reading them (for files: names, sizes, modification times)."""

    def examine(self, record: VideoRecord) -> FeatureReport:
        """Report everything that is wrong or unusual about the features of one video."""

    def read(self, record: VideoRecord) -> np.ndarray:
        """Read the features of one video, float16 [T,width]."""
