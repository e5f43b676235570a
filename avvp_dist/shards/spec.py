"""Structure of a packed data set: classes, segments and feature streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stream:
    """One feature stream of a data set.

    Attributes:
        name: name in a Batch: ``audio``, ``visual``, ``motion``.
        dim: width of one segment's feature vector in a shard.
        folder: folder of its ``<id>.npy`` files in the official layout.
        rows: rows of an official file.
        reduction: how they become rows of segments in the shard (`avvp_dist.datasets.reduction`). block-mean: mean over
            blocks of rows, whose number is a multiple of the segments; clap-map: a feature map of CLAP. Both are exact for
            any network that starts with a linear layer followed by the same reduction, as the published networks do.
    """

    name: str
    dim: int
    folder: str
    rows: int
    reduction: Literal["block-mean", "clap-map"] = "block-mean"


@dataclass(frozen=True)
class Dataset:
    """Fixed properties of a data set."""

    name: str
    classes: tuple[str, ...]
    streams: tuple[Stream, ...]
    segments: int

    @property
    def width(self) -> int:
        """Sum of the stream widths: the last axis of a shard's feature array."""
        return sum(stream.dim for stream in self.streams)
