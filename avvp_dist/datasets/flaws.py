"""The result of reading annotations: videos, and known flaws of the files that are reported and handled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from avvp_dist.types import VideoRecord


@dataclass(frozen=True)
class Flaw:
    """A known flaw of the files of a data set.

    Attributes:
        file: name of the file.
        row: line in a text file, counted from 1 and including its header; row of an array, counted from 0; None if the flaw
            concerns the whole file.
        kind: a key of `Annotations.meanings`.
        detail: the affected content.
    """

    file: str
    row: int | None
    kind: str
    detail: str


@dataclass(frozen=True)
class Annotations:
    """The videos of all splits, and the flaws of their files.

    Attributes:
        records: the videos, in the order in which they are packed.
        flaws: by file and row.
        meanings: explanation of each kind of flaw, and how it is handled.
        rows: row of each video by its id, if the features of many videos are in one array. Rows are numbered across arrays.
        array_rows: number of rows of each of these arrays.
    """

    records: tuple[VideoRecord, ...]
    flaws: tuple[Flaw, ...]
    meanings: Mapping[str, str]
    rows: Mapping[str, int] = field(default_factory=dict)
    array_rows: tuple[int, ...] = ()

    def count(self) -> Counter[tuple[str, str]]:
        """Number of flaws by (kind, file)."""
        return Counter((flaw.kind, flaw.file) for flaw in self.flaws)
