"""A split that is read from its shards during training: it needs memory for a window of videos, whatever its size."""

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
from avvp_dist.loading.partners import PartnerRule, draw_nearby_partners, labels_to_match
from avvp_dist.loading.plan import Plan, StreamPlan, shard_schedule
from avvp_dist.loading.reader_process import Task
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.index import Index, Labels
from avvp_dist.shards.reading import REMEDY, ShardStore
from avvp_dist.shards.reference import ShardRef
from avvp_dist.types import Batch


@dataclass(frozen=True)
class StreamSettings:
    """How a split is streamed; see `split.DataConfig`. Only ``streams`` and ``window`` change the order of videos."""

    streams: int
    window: int
    workers: int
    prefetch: int

    @property
    def order(self) -> Mapping[str, Any]:
        """Settings besides seed and epoch that affect order and partners; part of the cache keys of stages."""
        return {"mode": "streaming", "streams": self.streams, "window": self.window}


class StreamingSplit:
    """One split read from its shards: a `SplitReader` in the order of `plan.StreamPlan`.

    Each reader has adjacent streams of its own, so that a shard is read by one reader of one rank, and reads its part of
    every batch in turn. Hence nothing depends on the number of readers or their speed.

    Args:
        store: location of the shards.
        index: of the data set.
        builder: contains the split's labels, on the training device.
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

    def epoch(
        self, plan: Plan, first_step: int, rank: int, world: int, partners: int = 0, rule: PartnerRule = "disjoint"
    ) -> Generator[Batch, None, None]:
        """See `SplitReader`. Shards that only steps before ``first_step`` need are not read.

        Raises:
            DataError: a shard is missing or differs from the index.
            AvvpError: a reader died.
        """
        assert isinstance(plan, StreamPlan)
        layout = _RankLayout(rank, world, min(self._settings.workers, math.ceil(plan.streams / world)))
        reads = _RankReads(self._index, self.labels, plan, first_step, layout, partners, rule)
        rows = math.ceil(plan.batch_size / world)
        shape = (self._settings.prefetch, 1 + partners, rows, self._index.segments, self._index.width)
        slots = self._readers.run(shape, layout.readers, reads.tasks, first_step, plan.steps)
        try:
            with closing(slots):
                for step, slot in enumerate(slots, start=first_step):
                    yield self._batch(slot, reads.videos(step), plan.total(step))
        except DataError as error:
            raise DataError(error.problems, f"{self._store.url}: {self.labels.split} cannot be read; {REMEDY}") from None

    def iter_all(
        self,
        batch_size: int,
        rank: int,
        world: int,
        partners: int = 0,
        seed: int = 0,
        rule: PartnerRule = "disjoint",
    ) -> Generator[Batch, None, None]:
        """See `SplitReader`; in the order of an epoch."""
        share = max(1, batch_size * world // self._settings.streams)
        return self.epoch(self.plan(share * self._settings.streams, seed, 0), 0, rank, world, partners, rule)

    def close(self) -> None:
        """See `SplitReader`."""
        self._readers.close()

    def _batch(self, slot: NDArray[np.float16], videos: NDArray[np.int64], total: int) -> Batch:
        """Copy a batch from a slot [1+K, rows, T, width], which will be overwritten."""
        device, batches = self._builder.weak.device, []
        for draw in range(1 + len(slot[1:])):
            rows = torch.from_numpy(slot[draw, : len(videos)]).to(device).to(self._builder.dtype)
            batches.append(self._builder.build(rows, torch.from_numpy(videos[:, draw].copy()).to(device), total))
        return replace(batches[0], partners=tuple(batches[1:]))


class _Readers:
    """The loader of a split, shared with copies that have other labels; started when first needed."""

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
            if not finished:  # the readers have started batches that will not be consumed
                self.close()

    def close(self) -> None:
        """End the loader, if there is one."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None


class _RankLayout(NamedTuple):
    """One rank and its number of reader processes (0 for one thread)."""

    rank: int
    world: int
    readers: int

    def reader_of(self, streams: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The reader that reads each of ``streams``, of ``count`` in all; those of an adjacent rank go to the nearest."""
        readers = max(1, self.readers)
        return ((streams * self.world - self.rank * count) * readers // count).clip(0, readers - 1)


class _RankReads:
    """The reads of one rank in an epoch, divided into tasks for its readers.

    Partners form streams of their own, numbered S to 2S - 1.
    """

    def __init__(
        self,
        index: Index,
        labels: Labels,
        plan: StreamPlan,
        first_step: int,
        layout: _RankLayout,
        partners: int,
        rule: PartnerRule = "disjoint",
    ) -> None:
        slices = [plan.rank_slice(step, layout.rank, layout.world) for step in range(first_step, plan.steps)]
        positions = np.concatenate([np.arange(part.start, part.stop) for part in slices])
        sizes = [part.stop - part.start for part in slices]
        self._first_step = first_step
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        steps = np.repeat(np.arange(first_step, plan.steps), sizes)
        rows = np.arange(len(positions)) - np.repeat(self._starts[:-1], sizes)
        self._videos = plan.order()[positions][:, None]
        streams = plan.stream_of()[positions]
        reader = layout.reader_of(streams, plan.streams)
        streams = np.repeat(streams[:, None], 1 + partners, axis=1)
        if partners:
            drawn = draw_nearby_partners(labels.ids, labels_to_match(labels.weak, rule), plan, positions, partners)
            self._videos = np.hstack([self._videos, drawn])
            streams[:, 1:] += plan.streams
        chosen = [np.flatnonzero(reader == number) for number in range(max(1, layout.readers))]
        self._readers = [_ReaderReads(index, labels, self._videos[at], streams[at], steps[at], rows[at]) for at in chosen]

    def videos(self, step: int) -> NDArray[np.int64]:
        """Numbers of the videos of a step and of their partners, [rows, 1+K]."""
        at = step - self._first_step
        return self._videos[self._starts[at] : self._starts[at + 1]]

    def tasks(self, step: int, slot: int) -> list[Task]:
        """The task of each reader for a step, whose batch goes into ``slot``."""
        return [reader.task(step, slot) for reader in self._readers]


class _ReaderReads:
    """The reads of one reader: R rows of batches, ascending by step.

    Args:
        videos, streams: number and stream of each video and of its partners, [R,1+K].
        steps, rows: step of each row, and its position in the batch, [R].
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
