"""The plan of an epoch: which video is seen at which step by which rank. Integers in, integers out.

The order of videos is a property of (seed, epoch) alone, never of the number of ranks. Every video comes exactly once an
epoch; the last batch may be short and is neither padded nor dropped; every rank takes every step.

Shape letters: N videos, S streams, R videos that one rank reads, K partners of each.
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
    """Refuses numbers that cannot be planned. What works for ``world`` ranks works for fewer.

    Args:
        videos: of the split.
        batch_size: videos in a global batch.
        world: ranks, at most.
        streams: where the split is streamed.

    Raises:
        ConfigError: no videos, ranks without a video in every batch, or without a stream, or a batch size that does not
            divide evenly over the streams; every problem, with numbers nearby that work.
    """
    problems = []
    if videos < 1:
        problems.append("the split has no videos")
    if batch_size < world:
        problems.append(
            f"batch_size {batch_size} is the global batch: some of {world} workers would never see a video; use {world} "
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
            f"batch_size {batch_size}: takes as many videos of each of data.streams={streams} streams; use a batch_size of "
            f"{near}, or data.streams={_streams_near(streams, batch_size, world)}"
        )
    if problems:
        raise ConfigError(problems, "the training plan does not work out")


def _streams_near(streams: int, batch_size: int, world: int) -> str:
    """Numbers of streams near ``streams`` that suit the ranks and, where any does, the batch."""
    fitting = [count for count in range(world, batch_size + 1) if batch_size % count == 0] or [world]
    nearest = sorted(sorted(fitting, key=lambda count: abs(count - streams))[:2])
    return " or ".join(map(str, nearest))


class Plan(Protocol):
    """One epoch in global batches: which videos, in which order, and who of the ranks sees which."""

    @property
    def batch_size(self) -> int:
        """Videos of every global batch but the last."""
        ...

    @property
    def seed(self) -> int:
        """Root of the order."""
        ...

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""
        ...

    @property
    def steps(self) -> int:
        """Steps every rank takes in this epoch."""
        ...

    def order(self) -> NDArray[np.int64]:
        """Numbers of all videos in the order of this epoch, int64 [N]: global batch after global batch."""
        ...

    def total(self, step: int) -> int:
        """Videos in the global batch of ``step``."""
        ...

    def rank_slice(self, step: int, rank: int, world: int) -> slice:
        """The part of `order` that ``rank`` of ``world`` sees at ``step``; may be empty in a short last batch."""
        ...


@dataclass(frozen=True)
class EpochPlan:
    """One epoch over ``videos`` videos in global batches of ``batch_size``, in any order (all are in memory)."""

    videos: int
    batch_size: int
    seed: int
    epoch: int

    @property
    def steps(self) -> int:
        """Steps every rank takes in this epoch."""
        return -(-self.videos // self.batch_size)

    def order(self) -> NDArray[np.int64]:
        """Numbers of all videos in the order of this epoch, int64 [N]."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.videos)

    def total(self, step: int) -> int:
        """Videos in the global batch of ``step``."""
        return min(self.batch_size, self.videos - step * self.batch_size)

    def rank_slice(self, step: int, rank: int, world: int) -> slice:
        """The part of `order` that ``rank`` of ``world`` sees at ``step``; may be empty in a short last batch."""
        sizes = split_sizes(self.total(step), world)
        start = step * self.batch_size + sum(sizes[:rank])
        return slice(start, start + sizes[rank])


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """One epoch over shards that are read as S streams side by side, so that a rank reads few shards at a time.

    Shards are put in an order drawn from (seed, epoch), laid end to end and cut into S streams of equal length (to one
    video). Each stream is shuffled so that a video leaves fewer than ``window`` places from where it lies; a reader
    therefore holds at most ``window`` videos of a stream. A global batch takes ``batch_size / S`` videos of every stream,
    stream after stream; the last takes all that is left, which is less than a batch. Of each batch the ``W`` ranks take
    `split_sizes`: S/W neighbouring streams each where W divides S; else, and in the last batch, the stream at the border of
    two ranks is read by both.

    Attributes:
        shards: number of the shard that holds each video, int [N].
        batch_size: videos of every global batch but the last; a multiple of ``streams``.
        streams: S.
        window: 1 leaves the streams in the order of the shards.
        seed, epoch: roots of the order.
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
        """What a second plan of the same epoch, with an order of shards of its own, brings near each video of `order`."""
        stream = self.stream_of()
        return PartnerCandidates(self._laid_out(2), self._places, self._bounds[stream], self._bounds[stream + 1])

    @cached_property
    def _bounds(self) -> NDArray[np.int64]:
        """Where the streams begin in the line of all videos, and its end; int64 [S+1]."""
        return np.arange(self.streams + 1) * self.videos // self.streams

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """For each video of the epoch, in the order of batches, its place in the line of shuffled streams."""
        share = self.batch_size // self.streams
        whole = (self.videos // self.streams) // share * share  # of each stream, in full batches
        starts = self._bounds[:-1]
        full = (starts[:, None] + np.arange(whole)).reshape(self.streams, -1, share).transpose(1, 0, 2)
        rest = [np.arange(start + whole, stop) for start, stop in zip(starts, self._bounds[1:], strict=True)]
        return np.concatenate([full.ravel(), *rest])

    @cached_property
    def _shuffled(self) -> NDArray[np.int64]:
        """Numbers of the videos, stream after stream, each shuffled inside the window."""
        line = self._laid_out(1)
        # what lies a window behind always has the smaller key, so nothing moves further than that
        keys = np.random.default_rng([self.seed, self.epoch, 3]).random(self.videos) * self.window + np.arange(self.videos)
        for start, stop in zip(self._bounds[:-1], self._bounds[1:], strict=True):
            line[start:stop] = line[start:stop][np.argsort(keys[start:stop], kind="stable")]
        return line

    def _laid_out(self, which: int) -> NDArray[np.int64]:
        """Numbers of all videos, shard after shard in an order drawn anew for each ``which``."""
        by_shard = np.argsort(self.shards, kind="stable")
        _, starts, counts = np.unique(self.shards[by_shard], return_index=True, return_counts=True)
        drawn = np.random.default_rng([self.seed, self.epoch, which]).permutation(len(starts))
        starts, counts = starts[drawn], counts[drawn]
        shift = np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return by_shard[shift + np.arange(self.videos)]


class PartnerCandidates(NamedTuple):
    """Candidates for partners.

    Attributes:
        line: numbers of all videos in the order of the second plan, stream after stream; [N].
        at: where in ``line`` each video of the epoch stands, [N].
        begin, end: the stream of each in ``line``, [N].
    """

    line: NDArray[np.int64]
    at: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]

    def within(self, reach: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Candidates of ``rows`` up to ``reach`` places away are ``line[first:stop]``: both ends, for each row."""
        return (
            np.maximum(self.begin[rows], self.at[rows] - reach),
            np.minimum(self.end[rows], self.at[rows] + reach + 1),
        )


class ShardSchedule(NamedTuple):
    """When a rank opens and closes the shards it reads: one row for each shard of each stream, in order of opening."""

    stream: NDArray[np.int64]
    shard: NDArray[np.int64]
    opens: NDArray[np.int64]
    closes: NDArray[np.int64]


def shard_schedule(stream: NDArray[np.int64], shard: NDArray[np.int64], step: NDArray[np.int64]) -> ShardSchedule:
    """A shard is opened when the one before it in its stream is first read, and closed after the step that last reads it.

    A shard that lies in two streams is opened for each: one reads its head at the end of the epoch, the other its tail at
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
