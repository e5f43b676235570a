"""A split's labels on the device that trains, and how rows of features become a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.index import Index, Labels
from avvp_dist.types import Batch, Refined


@dataclass(frozen=True)
class BatchBuilder:
    """All of a split but its features: small enough for memory whatever the features take.

    Attributes:
        labels: ids, weak labels and truth as the index holds them.
        segments: T.
        weak: float32 [N,C].
        streams: name -> (offset, dim) along the last axis of a video's features.
        dtype: dtype of a batch's features.
        refined: labels in place of the weak ones, of all N videos, or None.
    """

    labels: Labels
    segments: int
    weak: Tensor
    streams: Mapping[str, tuple[int, int]]
    dtype: torch.dtype
    refined: Refined | None = None

    @classmethod
    def for_split(cls, index: Index, labels: Labels, device: torch.device | None, dtype: torch.dtype) -> BatchBuilder:
        """The builder of one split, on ``device``."""
        weak = torch.from_numpy(labels.weak.astype("float32")).to(device or "cpu")
        streams = {stream.name: (stream.offset, stream.dim) for stream in index.streams}
        return cls(labels, index.segments, weak, streams, dtype)

    def batch(self, rows: Tensor, index: Tensor, total: int, partners: tuple[Batch, ...] = ()) -> Batch:
        """Features ``rows`` [B,T,width] of the videos ``index`` [B], all on the device, with their labels."""
        streams = {name: rows[..., offset : offset + dim] for name, (offset, dim) in self.streams.items()}
        refined = self.refined
        if refined is not None:
            video = None if refined.video is None else refined.video[index]
            refined = replace(refined, video=video, audio=refined.audio[index], visual=refined.visual[index])
        return Batch(streams, self.weak.index_select(0, index), index, total, refined, partners)

    def with_refined(self, labels: RefinedLabels, classes: Sequence[str], source: str) -> BatchBuilder:
        """See `SplitReader`."""
        found = labels.aligned(self.labels.ids, classes, self.segments, source)
        video, audio, visual = (
            None if values is None else torch.from_numpy(values).to(self.weak)
            for values in (found.video, found.audio, found.visual)
        )
        return replace(self, refined=Refined(video, audio, visual, found.windows))  # type: ignore[arg-type]  # only video can be None
