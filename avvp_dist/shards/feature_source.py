"""The features that a pack reads, and what there is to report about the files they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from avvp_dist.types import VideoRecord

ODDITIES = {
    "float64": "float64 in place of float32 (rounded to float32)",
    "float16": "float16 in place of float32 (the same values)",
    "big-endian": "numbers of the other byte order (the same values)",
    "fortran-order": "stored column by column (the same values)",
    "all-zero": "nothing but zeros (packed as they are; perhaps their extraction failed)",
    "trailing-bytes": "more bytes after the array (left out; perhaps the file is damaged)",
}
"""Kinds of feature files that are not as the official ones but can be used, and what becomes of each."""


@dataclass(frozen=True)
class OddFile:
    """A feature file that can be used although it is not as the official ones are.

    Attributes:
        kind: a key of `ODDITIES`.
        file: ``<folder of the stream>/<id>.npy``.
    """

    kind: str
    file: str


@dataclass(frozen=True)
class FeatureReport:
    """What there is to say about the feature files of one video.

    Attributes:
        problems: what makes them unusable, a line each.
        odd: what is odd about those that can be used.
    """

    problems: tuple[str, ...] = ()
    odd: tuple[OddFile, ...] = ()


class FeatureSource(Protocol):
    """Where the features of videos come from. Travels to worker processes, so it must be picklable."""

    def fingerprint(self, records: Sequence[VideoRecord]) -> str:
        """Identifies the inputs of ``records`` without reading them (for files: names, sizes, times of change)."""

    def examine(self, record: VideoRecord) -> FeatureReport:
        """Everything that is wrong or odd about the features of one video."""

    def read(self, record: VideoRecord) -> np.ndarray:
        """Features of one video, float16 [T,width]."""
