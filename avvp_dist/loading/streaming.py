"""A split that is read from its shards while training goes on: memory for a window of it, whatever its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from avvp_dist.errors import DataError
from avvp_dist.loading.batches import BatchBuilder
from avvp_dist.loading.loader import Loader
from avvp_dist.loading.partners import draw_nearby_partners
from avvp_dist.loading.plan import Plan, StreamPlan, shard_schedule
from avvp_dist.loading.reader_process import Task
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.index import Index, Labels
from avvp_dist.shards.reading import REMEDY, ShardStore
from avvp_dist.shards.reference import ShardRef
from avvp_dist.types import Batch


@dataclass(frozen=True)
class StreamSettings:
    """How a split is streamed; see `source.DataConfig`. Only ``streams`` and ``window`` change what is seen."""

    streams: int
    window: int
    workers: int
    prefetch: int

    @property
    def order(self) -> Mapping[str, Any]:
        """What order and partners depend on besides seed and epoch; goes into the keys of stages."""
        return {"mode": "streaming", "streams": self.streams, "window": self.window}


class StreamingSplit:
    """One split read from its shards: a `SplitReader` in the order of `plan.StreamPlan`.

    Each reader has neighbouring streams of its own, so that one reader of one rank reads a shard, and gets its part of every
    batch in turn: nothing depends on how many readers there are or how fast they are.

    Args:
        store: where the shards are.
        index: of the data set.
        builder: the split's labels, on the device that trains.
        settings: streams, window, readers.
    """

    def __init__(self, store: ShardStore, index: Index, builder: BatchBuilder, settings: StreamSettings) -> None:
        self._store = store
        self._index = index
        self._builder = builder
        self._settings = settings
        self._readers = _Readers(store)

    @property
    def labels(self) -> Labels:
        """See `SplitReader`."""
        return self._builder.labels

    def __len__(self) -> int:
        return len(self.labels.ids)

    def with_refined(self, labels: RefinedLabels, classes: Sequence[str], source: str) -> StreamingSplit:
        """See `SplitReader`; both share their readers."""
        other = copy(self)
        other._builder = self._builder.with_refined(labels, classes, source)
        return other

    def plan(self, batch_size: int, seed: int, epoch: int) -> StreamPlan:
        """See `SplitReader`."""
        return StreamPlan(self.labels.shard, batch_size, self._settings.streams, self._settings.window, seed, epoch)

    def epoch(self, plan: Plan, first_step: int, rank: int, world: int, partners: int = 0) -> Generator[Batch, None, None]:
        """See `SplitReader`. Shards that the steps before ``first_step`` used up are not read.

        Raises:
            DataError: a shard that is missing or not what the index says.
            AvvpError: a reader died.
        """
        assert isinstance(plan, StreamPlan)
        place = _RankLayout(rank, world, min(self._settings.workers, math.ceil(plan.streams / world)))
        share = _RankReads(self._index, self.labels, plan, first_step, place, partners)
        rows = math.ceil(plan.batch_size / world)
        shape = (self._settings.prefetch, 1 + partners, rows, self._index.segments, self._index.width)
        slots = self._readers.run(shape, place.readers, share.tasks, first_step, plan.steps)
        try:
            with closing(slots):
                for step, slot in enumerate(slots, start=first_step):
                    yield self._batch(slot, share.videos(step), plan.total(step))
        except DataError as error:
            raise DataError(error.problems, f"{self._store.url}: {self.labels.split} cannot be read; {REMEDY}") from None

    def iter_all(
        self, batch_size: int, rank: int, world: int, partners: int = 0, seed: int = 0
    ) -> Generator[Batch, None, None]:
        """See `SplitReader`; in the order of an epoch."""
        share = max(1, batch_size * world // self._settings.streams)
        return self.epoch(self.plan(share * self._settings.streams, seed, 0), 0, rank, world, partners)

    def close(self) -> None:
        """See `SplitReader`."""
        self._readers.close()

    def _batch(self, slot: NDArray[np.float16], videos: NDArray[np.int64], total: int) -> Batch:
        """A batch out of a slot [1+K, rows, T, width]; copies, since the slot is filled again."""
        device, batches = self._builder.weak.device, []
        for draw in range(1 + len(slot[1:])):
            rows = torch.from_numpy(slot[draw, : len(videos)]).to(device).to(self._builder.dtype)
            batches.append(self._builder.batch(rows, torch.from_numpy(videos[:, draw].copy()).to(device), total))
        return replace(batches[0], partners=tuple(batches[1:]))


class _Readers:
    """The loader of a split and of all that differ from it by their labels; started when first needed."""

    def __init__(self, store: ShardStore) -> None:
        self._store = store
        self._loader: Loader | None = None

    def run(
        self, shape: tuple[int, ...], readers: int, tasks: Callable[[int, int], list[Task]], first: int, steps: int
    ) -> Generator[NDArray[np.float16], None, None]:
        """See `Loader.run`."""
        if self._loader is None or self._loader.shape != shape:
            self.close()
            self._loader = Loader(self._store, shape, readers)
        finished = False
        try:
            yield from self._loader.run(tasks, first, steps)
            finished = True
        finally:
            if not finished:  # they are in the midst of batches that nobody will take
                self.close()

    def close(self) -> None:
        """Ends the loader, if there is one."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None


class _RankLayout(NamedTuple):
    """Who reads: one rank with its readers (0 processes are one thread)."""

    rank: int
    world: int
    readers: int

    def reader_of(self, streams: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Which reader of this rank reads each of ``streams``, of ``count`` in all; a neighbour's go to the nearest."""
        readers = max(1, self.readers)
        return ((streams * self.world - self.rank * count) * readers // count).clip(0, readers - 1)


class _RankReads:
    """What one rank reads of an epoch, cut into tasks for its readers.

    Partners come in streams of their own, S to 2S - 1.
    """

    def __init__(
        self, index: Index, labels: Labels, plan: StreamPlan, first_step: int, place: _RankLayout, partners: int
    ) -> None:
        parts = [plan.rank_slice(step, place.rank, place.world) for step in range(first_step, plan.steps)]
        mine = np.concatenate([np.arange(part.start, part.stop) for part in parts])
        sizes = [part.stop - part.start for part in parts]
        self._first_step = first_step
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        steps = np.repeat(np.arange(first_step, plan.steps), sizes)
        rows = np.arange(len(mine)) - np.repeat(self._starts[:-1], sizes)
        self._videos = plan.order()[mine][:, None]
        streams = plan.stream_of()[mine]
        reader = place.reader_of(streams, plan.streams)
        streams = np.repeat(streams[:, None], 1 + partners, axis=1)
        if partners:
            self._videos = np.hstack([self._videos, draw_nearby_partners(labels.ids, labels.weak, plan, mine, partners)])
            streams[:, 1:] += plan.streams
        readers = range(max(1, place.readers))
        chosen = [np.flatnonzero(reader == number) for number in readers]
        self._parts = [_ReaderReads(index, labels, self._videos[at], streams[at], steps[at], rows[at]) for at in chosen]

    def videos(self, step: int) -> NDArray[np.int64]:
        """Numbers of the videos of a step and of their partners, [rows, 1+K]."""
        at = step - self._first_step
        return self._videos[self._starts[at] : self._starts[at + 1]]

    def tasks(self, step: int, slot: int) -> list[Task]:
        """What each reader does for a step, whose batch goes into ``slot``."""
        return [part.task(step, slot) for part in self._parts]


class _ReaderReads:
    """What one reader reads: R rows of batches, ascending in their steps.

    Args:
        videos, streams: number and stream of each video and of its partners, [R,1+K].
        steps, rows: where in the epoch and where in the batch, [R].
    """

    def __init__(
        self,
        index: Index,
        labels: Labels,
        videos: NDArray[np.int64],
        streams: NDArray[np.int64],
        steps: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> None:
        self._shards = index.shards
        self._labels = labels
        self._videos, self._steps, self._rows = videos, steps, rows
        shards = labels.shard[videos].astype(np.int64)
        self._keys = self._key(streams, shards)
        self._opened = shard_schedule(streams.ravel(), shards.ravel(), np.repeat(steps, videos.shape[1]))
        self._closing = np.argsort(self._opened.closes, kind="stable")
        self._closes = self._opened.closes[self._closing]

    def task(self, step: int, slot: int) -> Task:
        """See `_RankReads.tasks`."""
        opened, labels = self._opened, self._labels
        first, stop = np.searchsorted(self._steps, [step, step + 1])
        videos, draws = self._videos[first:stop], np.arange(self._videos.shape[1])
        opens = range(*np.searchsorted(opened.opens, [step, step + 1]))
        closes = self._closing[slice(*np.searchsorted(self._closes, [step, step + 1]))]
        return Task(
            slot=slot,
            opens=[(int(self._key(opened.stream[at], opened.shard[at])), self._shard(at)) for at in opens],
            shards=self._keys[first:stop].ravel().tolist(),
            ids=[labels.ids[number] for number in videos.ravel()],
            offsets=labels.offset[videos].ravel().tolist(),
            draws=np.tile(draws, stop - first).tolist(),
            rows=np.repeat(self._rows[first:stop], len(draws)).tolist(),
            closes=self._key(opened.stream[closes], opened.shard[closes]).tolist(),
        )

    def _key(self, stream: NDArray[np.int64], shard: NDArray[np.int64]) -> NDArray[np.int64]:
        return stream * len(self._shards) + shard

    def _shard(self, at: int) -> ShardRef:
        info = self._shards[self._opened.shard[at]]
        return ShardRef(info.name, info.bytes, info.sha256)
