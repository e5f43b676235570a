"""Assembles batches from feature arrays and a split's labels, on the training device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.index import Index, Labels
from avvp_dist.types import Batch, Refined


@dataclass(frozen=True)
class BatchBuilder:
    """Everything about a split except its features, which fits in memory whatever the size of the features.

    Attributes:
        labels: ids, weak labels and ground truth from the index.
        segments: T.
        weak: float32 [N,C].
        streams: name -> (offset, shape of a segment) along the last axis of a video's features.
        dtype: of a batch's features.
        refined: labels of all N videos that replace the weak ones, or None.
    """

    labels: Labels
    segments: int
    weak: Tensor
    streams: Mapping[str, tuple[int, tuple[int, ...]]]
    dtype: torch.dtype
    refined: Refined | None = None

    @classmethod
    def for_split(cls, index: Index, labels: Labels, device: torch.device | None, dtype: torch.dtype) -> BatchBuilder:
        """Create the builder of one split, with its labels on ``device``."""
        weak = torch.from_numpy(labels.weak.astype("float32")).to(device or "cpu")
        streams = {stream.name: (stream.offset, stream.shape) for stream in index.streams}
        return cls(labels, index.segments, weak, streams, dtype)

    def build(self, rows: Tensor, index: Tensor, total: int, partners: tuple[Batch, ...] = ()) -> Batch:
        """Combine the features ``rows`` [B,T,width] of the videos ``index`` [B], both on the device, with their labels."""
        streams = {name: _stream(rows, offset, shape) for name, (offset, shape) in self.streams.items()}
        refined = self.refined
        if refined is not None:
            video = None if refined.video is None else refined.video[index]
            tracks = {name: labels[index] for name, labels in refined.tracks.items()}
            refined = replace(refined, video=video, tracks=tracks)
        return Batch(streams, self.weak.index_select(0, index), index, total, refined, partners)

    def with_refined(self, labels: RefinedLabels, classes: Sequence[str], source: str) -> BatchBuilder:
        """See `SplitReader`."""
        found = labels.aligned(self.labels.ids, classes, self.segments, source)
        video = None if found.video is None else torch.from_numpy(found.video).to(self.weak)
        tracks = {name: torch.from_numpy(values).to(self.weak) for name, values in found.tracks.items()}
        return replace(self, refined=Refined(video, tracks, found.windows))


def _stream(rows: Tensor, offset: int, shape: tuple[int, ...]) -> Tensor:
    """One stream of ``rows`` [B,T,width] as a view [B,T,*shape]."""
    columns = rows[..., offset : offset + math.prod(shape)]
    return columns if len(shape) == 1 else columns.unflatten(-1, shape)
