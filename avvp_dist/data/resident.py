"""A whole split in memory, in the memory of the device that trains where it fits."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist import storage
from avvp_dist.data.index import Index, Labels
from avvp_dist.data.partners import disjoint
from avvp_dist.data.plan import EpochPlan, Plan, split_sizes
from avvp_dist.data.refined import RefinedLabels
from avvp_dist.errors import DataError
from avvp_dist.types import Batch, Refined


@dataclass(frozen=True)
class ResidentSplit:
    """Features and labels of one split in memory: a `Source` whose order is one permutation of all videos.

    Attributes:
        labels: ids, weak labels and truth as the index holds them.
        features: float16 [N,T,width], the streams side by side.
        weak: float32 [N,C].
        streams: name -> (offset, dim) along the last axis of ``features``.
        dtype: dtype of a batch's features.
        refined: labels in place of the weak ones, of all N videos, or None.
        partners: int64 [N,K] numbers of each video's partners; K is 0 where nobody asks for them.
    """

    labels: Labels
    features: Tensor
    weak: Tensor
    streams: Mapping[str, tuple[int, int]]
    dtype: torch.dtype = torch.float32
    refined: Refined | None = None
    partners: NDArray[np.int64] | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Source`."""
        return {}

    def __len__(self) -> int:
        return len(self.labels.ids)

    def plan(self, batch_size: int, seed: int, epoch: int) -> EpochPlan:
        """See `Source`."""
        return EpochPlan(len(self), batch_size, seed, epoch)

    def epoch(self, plan: Plan, first_step: int, rank: int, world: int, partners: int = 0) -> Generator[Batch, None, None]:
        """See `Source`."""
        order, split = plan.order(), self._with_partners(partners, plan.seed, plan.epoch)
        for step in range(first_step, plan.steps):
            yield split.batch(order[plan.rank_slice(step, rank, world)], plan.total(step))

    def ordered(
        self, batch_size: int, rank: int, world: int, partners: int = 0, seed: int = 0
    ) -> Generator[Batch, None, None]:
        """See `Source`; a rank's share is contiguous."""
        sizes, split = split_sizes(len(self), world), self._with_partners(partners, seed, 0)
        mine = np.arange(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for start in range(0, max(len(mine), 1), batch_size):
            yield split.batch(mine[start : start + batch_size], len(mine))

    def close(self) -> None:
        """See `Source`; nothing to let go of."""

    def _with_partners(self, draws: int, seed: int, epoch: int) -> ResidentSplit:
        if not draws:
            return self
        return replace(self, partners=disjoint(self.labels.ids, self.labels.weak, seed, draws, epoch))

    def batch(self, numbers: np.ndarray, total: int) -> Batch:
        """The videos ``numbers`` (int64 [B], may be empty) of a global batch of ``total`` videos."""
        index = torch.from_numpy(numbers).to(self.features.device)
        rows = self.features.index_select(0, index).to(self.dtype)
        streams = {name: rows[..., offset : offset + dim] for name, (offset, dim) in self.streams.items()}
        refined, partners = self.refined, self.partners
        if refined is not None:
            video = None if refined.video is None else refined.video[index]
            refined = replace(refined, video=video, audio=refined.audio[index], visual=refined.visual[index])
        draws = () if partners is None else tuple(partners[numbers].T.copy())
        alone = replace(self, partners=None)
        return Batch(
            streams,
            self.weak.index_select(0, index),
            index,
            total,
            refined,
            tuple(alone.batch(draw, total) for draw in draws),
        )

    def with_refined(self, labels: RefinedLabels, classes: Sequence[str], source: str) -> ResidentSplit:
        """The same videos with refined labels; ``source`` names them in errors.

        Raises:
            DataError: they do not fit.
        """
        found = labels.aligned(self.labels.ids, classes, self.features.shape[1], source)
        video, audio, visual = (
            None if values is None else torch.from_numpy(values).to(self.weak)
            for values in (found.video, found.audio, found.visual)
        )
        return replace(self, refined=Refined(video, audio, visual, found.windows))  # type: ignore[arg-type]  # only video can be None


def load(
    url: str, index: Index, labels: Labels, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> ResidentSplit:
    """Reads a split's shards, several at a time, and checks each against its hash.

    Raises:
        DataError: every shard that is missing or does not hold what the index says.
    """
    features = np.empty((len(labels.ids), index.segments, sum(stream.dim for stream in index.streams)), np.float16)
    numbers = np.unique(labels.shard)

    def fill(number: int) -> str | None:
        return _fill(features, url, index, labels, number)

    with ThreadPoolExecutor(max_workers=4) as pool:
        problems = [problem for problem in pool.map(fill, numbers.tolist()) if problem]
    if problems:
        raise DataError(problems, f"{url}: {labels.split} cannot be read")
    return ResidentSplit(
        labels,
        torch.from_numpy(features).to(device or "cpu"),
        torch.from_numpy(labels.weak.astype(np.float32)).to(device or "cpu"),
        {stream.name: (stream.offset, stream.dim) for stream in index.streams},
        dtype,
    )


def _fill(features: np.ndarray, url: str, index: Index, labels: Labels, number: int) -> str | None:
    shard = index.shards[number]
    try:
        content = storage.read_bytes(storage.join(url, shard.name))
    except FileNotFoundError:
        return f"{shard.name}: missing; pack again, complete shards are kept"
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        return f"{shard.name}: content differs from what the index recorded; delete it and pack again"
    for row in np.flatnonzero(labels.shard == number):
        values = np.frombuffer(content, np.float16, features[row].size, int(labels.offset[row]))
        features[row] = values.reshape(features.shape[1:])
    return None
