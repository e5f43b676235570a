"""A whole split in memory, in the memory of the device that trains where it fits."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.data.index import Index, Labels
from avvp_dist.data.partners import disjoint
from avvp_dist.data.plan import EpochPlan, Plan, split_sizes
from avvp_dist.data.reading import REMEDY, ShardRef, open_shard
from avvp_dist.data.refined import RefinedLabels
from avvp_dist.data.table import Table
from avvp_dist.errors import DataError
from avvp_dist.types import Batch


@dataclass(frozen=True)
class ResidentSplit:
    """Features and labels of one split in memory: a `Source` whose order is one permutation of all videos.

    Attributes:
        table: the labels.
        features: float16 [N,T,width], the streams side by side.
        partners: int64 [N,K] numbers of each video's partners; None where nobody asks for them.
    """

    table: Table
    features: Tensor
    partners: NDArray[np.int64] | None = None

    @property
    def labels(self) -> Labels:
        """See `Source`."""
        return self.table.labels

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

    def once(self, batch_size: int, rank: int, world: int, partners: int = 0, seed: int = 0) -> Generator[Batch, None, None]:
        """See `Source`; in the split's order."""
        sizes, split = split_sizes(len(self), world), self._with_partners(partners, seed, 0)
        mine = np.arange(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for start in range(0, max(len(mine), 1), batch_size):
            yield split.batch(mine[start : start + batch_size], len(mine))

    def close(self) -> None:
        """See `Source`; nothing to let go of."""

    def batch(self, numbers: np.ndarray, total: int) -> Batch:
        """The videos ``numbers`` (int64 [B], may be empty) of a global batch of ``total`` videos."""
        index = torch.from_numpy(numbers).to(self.features.device)
        rows = self.features.index_select(0, index).to(self.table.dtype)
        draws = () if self.partners is None else tuple(self.partners[numbers].T.copy())
        alone = replace(self, partners=None)
        return self.table.batch(rows, index, total, tuple(alone.batch(draw, total) for draw in draws))

    def with_refined(self, labels: RefinedLabels, classes: Sequence[str], source: str) -> ResidentSplit:
        """See `Source`."""
        return replace(self, table=self.table.with_refined(labels, classes, source))

    def _with_partners(self, draws: int, seed: int, epoch: int) -> ResidentSplit:
        if not draws:
            return self
        return replace(self, partners=disjoint(self.labels.ids, self.labels.weak, seed, draws, epoch))


def load(
    url: str, index: Index, labels: Labels, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> ResidentSplit:
    """Reads a split's shards, several at a time, and checks each against its hash and every video in it.

    Raises:
        DataError: every shard that is missing or is not what the index says, and every bad video in the others.
    """
    features = np.empty((len(labels.ids), index.segments, index.width), np.float16)
    numbers = np.unique(labels.shard)

    def fill(number: int) -> list[str]:
        return _fill(features, url, index, labels, number)

    with ThreadPoolExecutor(max_workers=4) as pool:
        problems = [problem for found in pool.map(fill, numbers.tolist()) for problem in found]
    if problems:
        raise DataError(problems, f"{url}: {labels.split} cannot be read; {REMEDY}")
    return ResidentSplit(Table.of(index, labels, device, dtype), torch.from_numpy(features).to(device or "cpu"))


def _fill(features: np.ndarray, url: str, index: Index, labels: Labels, number: int) -> list[str]:
    """Reads one shard; returns what is wrong with it."""
    info = index.shards[number]
    try:
        shard = open_shard(url, ShardRef(info.name, info.bytes, info.sha256), features.shape[1:])
    except DataError as error:
        return error.problems
    problems = []
    for row in np.flatnonzero(labels.shard == number):
        try:
            shard.read(labels.ids[row], int(labels.offset[row]), features[row])
        except DataError as error:
            problems += error.problems
    shard.close()
    return problems
