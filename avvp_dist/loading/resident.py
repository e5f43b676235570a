"""A whole split in memory: GPU memory if it fits there, else the page cache, which the processes of a node share.

Features are read directly from the shards: those of a video are raw float16 in its tar, at an offset given by the index.
Hence there is no second copy on disk, nothing to build before the first step, and the memory used is the system's page
cache, of which a node has one copy for all processes. Shards stay open for the lifetime of the split: a file that is
replaced or deleted does not affect this run, and one that is overwritten in place ends it with the shard's name
(`checked_file.py`).
"""

from __future__ import annotations

import logging
import math
import os
import resource
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.dist.partition import split_sizes
from avvp_dist.errors import DataError
from avvp_dist.loading.batches import BatchBuilder
from avvp_dist.loading.partners import PartnerRule, draw_partners, labels_to_match
from avvp_dist.loading.plan import RANDOM_ORDER, EpochOrder, EpochPlan, Plan
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.cache import GB
from avvp_dist.shards.checked_file import OpenShard, ShardInMemory, read_consistently
from avvp_dist.shards.index import Index, Labels
from avvp_dist.shards.reading import REMEDY, ShardStore
from avvp_dist.types import Batch

LOGGER = logging.getLogger(__name__)


class ShardRows:
    """Features of a split, read from its shards.

    Args:
        shards: each open shard, by its number.
        labels: location of each of the N videos.
        shape: N, T, width.
        title: of error messages.
    """

    def __init__(
        self, shards: Mapping[int, OpenShard], labels: Labels, shape: tuple[int, int, int], title: str = ""
    ) -> None:
        self._shards = shards
        self._title = title
        self._shard = labels.shard
        self._offset = labels.offset
        self.shape = shape

    def take(self, numbers: NDArray[np.int64]) -> Tensor:
        """Copy the features of the videos ``numbers``, float16 [B,T,width].

        Raises:
            DataError: a shard was overwritten or truncated since it was opened.
        """
        rows = torch.empty((len(numbers), *self.shape[1:]), dtype=torch.float16)
        target = rows.numpy().reshape(len(numbers), self.shape[1] * self.shape[2]).view(np.uint8)
        shards, offsets = self._shard[numbers].tolist(), self._offset[numbers].tolist()

        def read() -> None:
            for row, shard, offset in zip(target, shards, offsets, strict=True):
                self._shards[shard].read_into([row.data], offset)

        try:
            read_consistently(read, [self._shards[shard] for shard in set(shards)])
        except DataError as error:
            raise DataError(error.problems, self._title) from None
        return rows

    def to(self, device: torch.device) -> Tensor:
        """Copy all features to the memory of ``device``, float16 [N,T,width]."""
        features = torch.empty(self.shape, dtype=torch.float16, device=device)
        for numbers in np.array_split(np.arange(self.shape[0]), 1 + self.shape[0] // 256):
            if len(numbers):
                features[numbers[0] : numbers[-1] + 1] = self.take(numbers)
        return features


@dataclass(frozen=True)
class ResidentSplit:
    """Features and labels of one split in memory: a `SplitReader` whose order is a permutation of all videos.

    Attributes:
        builder: contains the labels.
        features: float16 [N,T,width], the streams concatenated; in the shards, or on the training device.
        partners: int64 [N,K] numbers of each video's partners; None if not requested.
        order: order of an epoch.
    """

    builder: BatchBuilder
    features: Tensor | ShardRows
    partners: NDArray[np.int64] | None = None
    order: EpochOrder = RANDOM_ORDER

    @property
    def labels(self) -> Labels:
        """See `SplitReader`."""
        return self.builder.labels

    def __len__(self) -> int:
        return len(self.labels.ids)

    def plan(self, batch_size: int, seed: int, epoch: int) -> EpochPlan:
        """See `SplitReader`."""
        return EpochPlan(len(self), batch_size, seed, epoch, self.order.shuffle, self.order.drop_last)

    def epoch(
        self, plan: Plan, first_step: int, rank: int, world: int, partners: int = 0, rule: PartnerRule = "disjoint"
    ) -> Generator[Batch, None, None]:
        """See `SplitReader`."""
        order, split = plan.order(), self._with_partners(partners, rule, plan.seed, plan.epoch)
        for step in range(first_step, plan.steps):
            yield split.batch(order[plan.rank_slice(step, rank, world)], plan.total(step))

    def iter_all(
        self,
        batch_size: int,
        rank: int,
        world: int,
        partners: int = 0,
        seed: int = 0,
        rule: PartnerRule = "disjoint",
    ) -> Generator[Batch, None, None]:
        """See `SplitReader`; in the order of the split."""
        sizes, split = split_sizes(len(self), world), self._with_partners(partners, rule, seed, 0)
        numbers = np.arange(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for start in range(0, max(len(numbers), 1), batch_size):
            yield split.batch(numbers[start : start + batch_size], len(numbers))

    def close(self) -> None:
        """See `SplitReader`; there is nothing to release."""

    def batch(self, numbers: np.ndarray, total: int) -> Batch:
        """Assemble the videos ``numbers`` (int64 [B], may be empty) of a global batch of ``total`` videos."""
        index = torch.from_numpy(numbers).to(self.builder.weak.device)
        if isinstance(self.features, ShardRows):
            rows = self.features.take(numbers).to(index.device).to(self.builder.dtype)
        else:
            rows = self.features.index_select(0, index).to(self.builder.dtype)
        draws = () if self.partners is None else tuple(self.partners[numbers].T.copy())
        without_partners = replace(self, partners=None)
        return self.builder.build(rows, index, total, tuple(without_partners.batch(draw, total) for draw in draws))

    def with_refined(self, labels: RefinedLabels, classes: Sequence[str], source: str) -> ResidentSplit:
        """See `SplitReader`."""
        return replace(self, builder=self.builder.with_refined(labels, classes, source))

    def _with_partners(self, draws: int, rule: PartnerRule, seed: int, epoch: int) -> ResidentSplit:
        if not draws:
            return self
        labels = labels_to_match(self.labels.weak, rule)
        return replace(self, partners=draw_partners(self.labels.ids, labels, seed, draws, epoch))


def load(
    store: ShardStore,
    index: Index,
    labels: Labels,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    share: bool = True,
) -> ResidentSplit:
    """Open a split's shards, several at a time, and verify the hash of each and every video in it.

    Args:
        store: location of the shards.
        index: of the data set.
        labels: of the split.
        device: on which training runs; a GPU holds the features in its own memory if they leave half of the free memory.
        dtype: of a batch's features.
        share: whether features on CPU are read from the page cache, which the processes of a node share; else from a copy
            in this process.

    Raises:
        DataError: lists every shard that is missing or differs from the index, and every bad video in the others.
    """
    device = device or torch.device("cpu")
    # each process starts with another shard, so that the processes of a node fetch different shards at the same time
    numbers = np.roll(np.unique(labels.shard), os.getpid()).tolist()
    share = share and _can_keep_open(len(numbers), labels.split)
    title = f"{store.url}: {labels.split} cannot be read; {REMEDY}"

    def opened(number: int) -> OpenShard | DataError:
        try:
            return _open(store, index, labels, number, share)
        except DataError as error:
            return error

    with ThreadPoolExecutor(max_workers=4) as pool:
        shards = dict(zip(numbers, pool.map(opened, numbers), strict=True))
    problems = [line for found in shards.values() if isinstance(found, DataError) for line in found.problems]
    if problems:
        raise DataError(sorted(problems), title)
    found = {number: shard for number, shard in shards.items() if not isinstance(shard, DataError)}
    rows = ShardRows(found, labels, (len(labels.ids), index.segments, index.width), title)
    builder = BatchBuilder.for_split(index, labels, device, dtype)
    return ResidentSplit(builder, rows.to(device) if _fits(rows, device) else rows)


def _open(store: ShardStore, index: Index, labels: Labels, number: int, share: bool) -> OpenShard:
    """Open one shard after checking its videos.

    Raises:
        DataError: the shard is bad, or lists all its bad videos.
    """
    shard, shape = index.shards[number], (index.segments, index.width)
    scratch, problems = np.empty(shape, np.float16), []
    with store.open(shard, shape) as file:
        for row in np.flatnonzero(labels.shard == number):
            try:
                file.read(labels.ids[row], int(labels.offset[row]), scratch)
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(problems)
    opened = store.cache.open(store.url, shard)
    if share:
        return opened
    content = b""

    def read() -> None:
        nonlocal content
        opened.seek(0)
        content = opened.read()

    with opened:
        read_consistently(read, [opened])
    return ShardInMemory(content, shard)


def _can_keep_open(shards: int, split: str) -> bool:
    """Whether this process can keep so many files open and still have some left for other purposes."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or shards <= limit // 4:
        return True
    LOGGER.warning(
        "%s: %d shards are too many to keep open with %d open files; this process keeps its own copy of them. Raise "
        "`ulimit -n`, or pack more videos in a shard",
        split,
        shards,
        limit,
    )
    return False


def _fits(rows: ShardRows, device: torch.device) -> bool:
    """Whether ``device`` is a GPU with enough memory for all features and as much again for the network."""
    if device.type != "cuda":
        return False
    needed, free = 2 * math.prod(rows.shape), torch.cuda.mem_get_info(device)[0]
    if 2 * needed > free:
        LOGGER.info("%.1f GB of features stay in the CPU's memory: %.1f GB are free on the GPU", needed / GB, free / GB)
    return 2 * needed <= free
