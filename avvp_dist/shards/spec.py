"""Structure of a packed data set: task, classes, tracks, segments and feature streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stream:
    """One feature stream of a data set.

    Attributes:
        name: name in a Batch: ``audio``, ``visual``, ``motion``.
        dim: number of values of one segment in a shard.
        folder: folder of its ``<id>.npy`` files, or its HDF5 file, in the official layout.
        rows: rows of a video in an official file.
        reduction: how they become rows of segments in the shard (`avvp_dist.datasets.reduction`). block-mean: mean over
            blocks of rows, whose number is a multiple of the segments; clap-map: a feature map of CLAP. Both are exact for
            any network that starts with a linear layer followed by the same reduction, as the published networks do.
        shape: shape of one segment in a Batch; ``(dim,)`` by default, for image regions e.g. ``(7, 7, 512)``.
    """

    name: str
    dim: int
    folder: str
    rows: int
    reduction: Literal["block-mean", "clap-map"] = "block-mean"
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.shape:
            object.__setattr__(self, "shape", (self.dim,))


@dataclass(frozen=True)
class Dataset:
    """Fixed properties of a data set.

    Attributes:
        name: in the catalog, in indexes and in recipes.
        classes: names of the C classes, in order.
        streams: feature streams, in the order in which a shard stores them.
        segments: T.
        task: name of the task that its labels are for.
        tracks: what its events are indexed by.
        segment_seconds: duration of a segment.
    """

    name: str
    classes: tuple[str, ...]
    streams: tuple[Stream, ...]
    segments: int
    task: str
    tracks: tuple[str, ...]
    segment_seconds: float = 1.0

    @property
    def width(self) -> int:
        """Sum of the stream widths: the last axis of a shard's feature array."""
        return sum(stream.dim for stream in self.streams)

    @property
    def seconds(self) -> float:
        """Duration of a video."""
        return self.segments * self.segment_seconds
