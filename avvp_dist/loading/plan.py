"""Plans an epoch: which rank processes which video at which step. Pure functions from integers to integers.

The order of videos depends only on (seed, epoch), never on the number of ranks. Every video occurs exactly once per epoch.
The last batch may be short, and is neither padded nor dropped. Every rank executes every step.

Dimensions: N videos, S streams, R videos read by one rank, K partners of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from avvp_dist.dist.partition import split_sizes
from avvp_dist.errors import ConfigError


def check(videos: int, batch_size: int, world: int, streams: int | None = None) -> None:
    """Refuse numbers for which no plan exists; a plan for ``world`` ranks also works for fewer.

    Args:
        videos: number of videos of the split.
        batch_size: videos in a global batch.
        world: maximum number of ranks.
        streams: number of streams if the split is streamed.

    Raises:
        ConfigError: no videos, ranks without a video in every batch or without a stream, or a batch size that is not
            divisible by the number of streams; lists every problem, with similar numbers that work.
    """
    problems = []
    if videos < 1:
        problems.append("the split has no videos")
    if batch_size < world:
        problems.append(
            f"batch_size {batch_size} is the global batch: some of {world} workers would never get a video; use {world} "
            "or more"
        )
    if streams is not None and streams < world:
        problems.append(
            f"data.streams={streams}: some of {world} workers would have no stream to read; use "
            f"{_streams_near(streams, batch_size, world)}"
        )
    if streams is not None and batch_size % streams:
        least = math.ceil(max(world, streams) / streams)
        near = max(least, round(batch_size / streams)) * streams
        problems.append(
            f"batch_size {batch_size} is not divisible by data.streams={streams}; use a batch_size of "
            f"{near}, or data.streams={_streams_near(streams, batch_size, world)}"
        )
    if problems:
        raise ConfigError(problems, "no training plan is possible")


def _streams_near(streams: int, batch_size: int, world: int) -> str:
    """Numbers of streams close to ``streams`` that suit the number of ranks and, if possible, the batch size."""
    fitting = [count for count in range(world, batch_size + 1) if batch_size % count == 0] or [world]
    nearest = sorted(sorted(fitting, key=lambda count: abs(count - streams))[:2])
    return " or ".join(map(str, nearest))


class Plan(Protocol):
    """One epoch in global batches: which videos, in which order, and which rank processes which."""

    @property
    def batch_size(self) -> int:
        """Number of videos in every global batch except the last."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the order."""
        ...

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""
        ...

    @property
    def steps(self) -> int:
        """Number of steps of this epoch, the same for every rank."""
        ...

    def order(self) -> NDArray[np.int64]:
        """Numbers of all videos in the order of this epoch, int64 [N], one global batch after the other."""
        ...

    def total(self, step: int) -> int:
        """Number of videos in the global batch of ``step``."""
        ...

    def rank_slice(self, step: int, rank: int, world: int) -> slice:
        """The part of `order` for ``rank`` of ``world`` at ``step``; may be empty in a short last batch."""
        ...


class EpochOrder(NamedTuple):
    """Order of an epoch of a split in memory: random or that of the split; with or without an incomplete last batch."""

    shuffle: bool = True
    drop_last: bool = False


RANDOM_ORDER = EpochOrder()


@dataclass(frozen=True)
class EpochPlan:
    """An epoch over ``videos`` videos in global batches of ``batch_size``, in an arbitrary order (all are in memory).

    Attributes:
        shuffle: whether the order is random; otherwise it is that of the split.
        drop_last: whether an incomplete last batch is left out, unless it is the only one.
    """

    videos: int
    batch_size: int
    seed: int
    epoch: int
    shuffle: bool = True
    drop_last: bool = False

    @property
    def steps(self) -> int:
        """Number of steps of this epoch, the same for every rank."""
        return max(1, self.videos // self.batch_size) if self.drop_last else -(-self.videos // self.batch_size)

    def order(self) -> NDArray[np.int64]:
        """Numbers of all videos in the order of this epoch, int64 [N]."""
        if not self.shuffle:
            return np.arange(self.videos)
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.videos)

    def total(self, step: int) -> int:
        """Number of videos in the global batch of ``step``."""
        return min(self.batch_size, self.videos - step * self.batch_size)

    def rank_slice(self, step: int, rank: int, world: int) -> slice:
        """The part of `order` for ``rank`` of ``world`` at ``step``; may be empty in a short last batch."""
        sizes = split_sizes(self.total(step), world)
        start = step * self.batch_size + sum(sizes[:rank])
        return slice(start, start + sizes[rank])


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """An epoch over shards that are read as S parallel streams, so that a rank reads few shards at a time.

    The shards are ordered randomly by (seed, epoch), concatenated, and cut into S streams of equal length (to within one
    video). Each stream is shuffled such that a video moves by fewer than ``window`` positions; hence a reader holds at most
    ``window`` videos of a stream. A global batch takes ``batch_size / S`` videos from every stream, one stream after the
    other; the last batch takes the remaining videos, which are fewer than a batch. The ``W`` ranks divide each batch by
    `split_sizes`: S/W adjacent streams each if S is divisible by W. Otherwise, and in the last batch, a stream at the border
    between two ranks is read by both.

    Attributes:
        shards: number of the shard that contains each video, int [N].
        batch_size: number of videos in every global batch except the last; a multiple of ``streams``.
        streams: S.
        window: range of the shuffle; with 1, the streams keep the order of the shards.
        seed, epoch: seeds of the order.
    """

    shards: NDArray[np.integer]
    batch_size: int
    streams: int
    window: int
    seed: int
    epoch: int

    @property
    def videos(self) -> int:
        """N."""
        return len(self.shards)

    @property
    def steps(self) -> int:
        """See `Plan`."""
        return -(-self.videos // self.batch_size)

    def order(self) -> NDArray[np.int64]:
        """See `Plan`."""
        return self._shuffled[self._places]

    def total(self, step: int) -> int:
        """See `Plan`."""
        return min(self.batch_size, self.videos - step * self.batch_size)

    def rank_slice(self, step: int, rank: int, world: int) -> slice:
        """See `Plan`."""
        sizes = split_sizes(self.total(step), world)
        start = step * self.batch_size + sum(sizes[:rank])
        return slice(start, start + sizes[rank])

    def stream_of(self) -> NDArray[np.int64]:
        """The stream of each video of `order`, int64 [N]."""
        return np.searchsorted(self._bounds, self._places, side="right") - 1

    def partner_candidates(self) -> PartnerCandidates:
        """The videos that are close to each video of `order` in a second, independent order of the shards."""
        stream = self.stream_of()
        return PartnerCandidates(self._in_shard_order(2), self._places, self._bounds[stream], self._bounds[stream + 1])

    @cached_property
    def _bounds(self) -> NDArray[np.int64]:
        """Start of each stream in the concatenated shards, and the end of the last; int64 [S+1]."""
        return np.arange(self.streams + 1) * self.videos // self.streams

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Position of each video of the epoch, in batch order, in the concatenated shuffled streams."""
        share = self.batch_size // self.streams
        whole = (self.videos // self.streams) // share * share  # videos of each stream in full batches
        starts = self._bounds[:-1]
        full = (starts[:, None] + np.arange(whole)).reshape(self.streams, -1, share).transpose(1, 0, 2)
        rest = [np.arange(start + whole, stop) for start, stop in zip(starts, self._bounds[1:], strict=True)]
        return np.concatenate([full.ravel(), *rest])

    @cached_property
    def _shuffled(self) -> NDArray[np.int64]:
        """Numbers of the videos, one stream after the other, each shuffled within the window."""
        line = self._in_shard_order(1)
        # a video that is a window further behind always has the smaller key, so no video moves further than that
        keys = np.random.default_rng([self.seed, self.epoch, 3]).random(self.videos) * self.window + np.arange(self.videos)
        for start, stop in zip(self._bounds[:-1], self._bounds[1:], strict=True):
            line[start:stop] = line[start:stop][np.argsort(keys[start:stop], kind="stable")]
        return line

    def _in_shard_order(self, draw: int) -> NDArray[np.int64]:
        """Numbers of all videos, one shard after the other, in a shard order that is drawn independently per ``draw``."""
        by_shard = np.argsort(self.shards, kind="stable")
        _, starts, counts = np.unique(self.shards[by_shard], return_index=True, return_counts=True)
        shard_order = np.random.default_rng([self.seed, self.epoch, draw]).permutation(len(starts))
        starts, counts = starts[shard_order], counts[shard_order]
        shift = np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return by_shard[shift + np.arange(self.videos)]


class PartnerCandidates(NamedTuple):
    """Candidates for the partners of each video.

    Attributes:
        line: numbers of all videos in the second shard order, one stream after the other; [N].
        at: position in ``line`` of each video of the epoch, [N].
        begin, end: bounds of the stream of each video in ``line``, [N].
    """

    line: NDArray[np.int64]
    at: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]

    def within(self, reach: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bounds such that ``line[first:stop]`` are the candidates within ``reach`` positions, for each of ``rows``."""
        return (
            np.maximum(self.begin[rows], self.at[rows] - reach),
            np.minimum(self.end[rows], self.at[rows] + reach + 1),
        )


class ShardSchedule(NamedTuple):
    """Steps at which a rank opens and closes its shards: one row per shard and stream, in order of opening."""

    stream: NDArray[np.int64]
    shard: NDArray[np.int64]
    opens: NDArray[np.int64]
    closes: NDArray[np.int64]


def shard_schedule(stream: NDArray[np.int64], shard: NDArray[np.int64], step: NDArray[np.int64]) -> ShardSchedule:
    """Plan when shards are opened and closed.

    A shard is opened when the previous one of its stream is first read, and closed after the step that last reads it. A
    shard that belongs to two streams is opened for each: one reads its start at the end of the epoch, the other its end at
    the beginning.

    Args:
        stream, shard, step: of each read of a rank, [R], ascending in ``step``.
    """
    if not len(step):
        empty = np.empty(0, np.int64)
        return ShardSchedule(empty, empty, empty, empty)
    shards = int(shard.max()) + 1
    keys, first = np.unique(stream * shards + shard, return_index=True)
    _, backwards = np.unique((stream * shards + shard)[::-1], return_index=True)
    closes = step[len(step) - 1 - backwards]
    by_stream = np.lexsort((first, keys // shards))
    keys, first, closes = keys[by_stream], first[by_stream], closes[by_stream]
    opens = np.concatenate([[step[0]], step[first[:-1]]])
    opens[np.flatnonzero(np.diff(keys // shards, prepend=-1))] = step[0]  # the first of each stream
    order = np.lexsort((first, opens))
    keys = keys[order]
    return ShardSchedule(keys // shards, keys % shards, opens[order], closes[order])
