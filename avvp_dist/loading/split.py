"""Where the batches of a split come from: one door for training, for stages that collect, and for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, field_validator

from avvp_dist.config import Section, Url
from avvp_dist.loading import plan, resident
from avvp_dist.loading.batches import BatchBuilder
from avvp_dist.loading.plan import Plan
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.loading.streaming import StreamingSplit, StreamSettings
from avvp_dist.shards.cache import DEFAULT_GB, GB, ShardCache
from avvp_dist.shards.index import Index, Labels
from avvp_dist.shards.quarantine import check_files
from avvp_dist.shards.reading import ShardStore
from avvp_dist.types import Batch

LOGGER = logging.getLogger(__name__)


class DataConfig(Section):
    """Which data, and how they are read."""

    url: Url | None = None
    """Folder or URL of a packed data set, made by ``avvp data pack`` or ``avvp data synth --layout shards``."""
    dataset: str | None = None
    """What the packed data set must be, by the name that ``avvp data inspect`` shows; null for any."""
    refined: Url | None = None
    """Path or URL of refined labels (a refining stage's refined.npz) that every training stage takes for the weak ones."""
    mode: Literal["auto", "resident", "streaming"] = "auto"
    """resident: the training split lies in memory; streaming: it is read from its shards all the time; auto: resident where
    its features take up to memory_gb. Other splits are resident up to memory_gb, or always where mode is resident."""
    memory_gb: float = Field(8.0, gt=0)
    """Gigabytes (of 10^9 bytes) that a split's features may take in the memory of each worker."""
    streams: int = Field(16, ge=1, le=1_000_000)
    """Streams that are read side by side; divides the batch size, and is best divided by the workers. Changes the order."""
    window: int = Field(256, ge=1)
    """Places within which a stream is shuffled and partners are found; a shard's videos or more. Changes the order."""
    workers: int = Field(2, ge=0, le=1000)
    """Processes of each worker that read shards; 0 for a thread."""
    prefetch: int = Field(4, ge=1, le=100_000)
    """Batches read ahead."""
    on_bad: Literal["fail", "skip"] = "fail"
    """Bad shards and videos end the run, or are left out: everything is read and checked before training then."""
    cache: Url | None = None
    """Folder, on each node, for shards of a remote URL; null for $AVVP_CACHE or avvp_dist in the user's cache directory."""
    cache_gb: float = Field(DEFAULT_GB, gt=0)
    """Gigabytes (of 10^9 bytes) in that folder; shards used longest ago make room."""
    share: bool = True
    """Whether a node's processes read features on CPU from its page cache, one copy for all; false: a copy in each."""

    @field_validator("cache")
    @classmethod
    def _on_this_machine(cls, folder: str | None) -> str | None:
        if folder and "://" in folder:
            raise ValueError("must be a folder on the machine that trains, not a URL")
        return folder

    def store(self) -> ShardStore:
        """Where the shards are, and the cache through which they come."""
        return ShardStore(self.url or "", ShardCache(self.cache, int(self.cache_gb * GB)))


class SplitReader(Protocol):
    """The videos of one split, in batches; what a global batch holds is the same for any number of ranks."""

    @property
    def labels(self) -> Labels:
        """Ids, weak labels and truth by number of the video."""
        ...

    def __len__(self) -> int:
        """Videos of the split."""
        ...

    def with_refined(self, labels: RefinedLabels, classes: Sequence[str], source: str) -> SplitReader:
        """The same videos with refined labels; ``source`` names them in errors.

        Raises:
            DataError: they do not fit.
        """
        ...

    def plan(self, batch_size: int, seed: int, epoch: int) -> Plan:
        """An epoch's plan in global batches of ``batch_size``."""
        ...

    def epoch(self, plan: Plan, first_step: int, rank: int, world: int, partners: int = 0) -> Generator[Batch, None, None]:
        """What ``rank`` of ``world`` sees of each global batch from ``first_step`` on; perhaps nothing of the last.

        Args:
            plan: one that `plan` gave.
            first_step: where a resumed epoch goes on.
            rank, world: who asks, of how many.
            partners: for each video, others without a common label, a choice by (seed, epoch, id); in ``batch.partners``.
        """
        ...

    def iter_all(
        self, batch_size: int, rank: int, world: int, partners: int = 0, seed: int = 0
    ) -> Generator[Batch, None, None]:
        """Every video once, in whatever order: the share of ``rank``, in at least one batch, perhaps an empty one.

        ``batch.index`` says which videos they are; ``batch.total`` means nothing here.

        Args:
            batch_size: videos in a batch of this rank, about.
            rank, world: who asks, of how many.
            partners: as in `epoch`, drawn by (``seed``, id).
            seed: root of that choice.
        """
        ...

    def close(self) -> None:
        """Lets go of files and processes; a later call of `epoch` opens them again."""
        ...


def streams_from_shards(config: DataConfig, index: Index, labels: Labels) -> tuple[bool, str]:
    """Whether a split is streamed, and why; the same on all ranks, since it depends on config and index alone."""
    size = len(labels.ids) * index.segments * index.width * 2 / 1e9
    budget = f"{size:.3g} GB of features, data.memory_gb={config.memory_gb:g}"
    if config.mode == "resident" or (config.mode == "streaming" and labels.split == "train"):
        return config.mode == "streaming", f"data.mode={config.mode}; {budget}"
    return size > config.memory_gb, budget


def order_settings(config: DataConfig, index: Index, labels: Labels) -> Mapping[str, Any]:
    """What order and partners of a split depend on besides seed and epoch; nothing where it lies in memory."""
    if not streams_from_shards(config, index, labels)[0]:
        return {}
    return StreamSettings(config.streams, config.window, config.workers, config.prefetch).order


def check_plan(config: DataConfig, index: Index, labels: Mapping[str, Labels], batch_size: int, world: int) -> None:
    """Refuses numbers that cannot be planned for ``world`` ranks or fewer, before anything is read.

    Raises:
        ConfigError: see `plan.check`.
    """
    streamed = any(streams_from_shards(config, index, of_split)[0] for of_split in labels.values())
    plan.check(len(labels["train"].ids), batch_size, world, config.streams if streamed else None)


def open_split(config: DataConfig, index: Index, labels: Labels, device: torch.device, dtype: torch.dtype) -> SplitReader:
    """A split of the data set at ``config.url``, in memory or streamed.

    Raises:
        DataError: shards that are missing or not what the index says; where the split is streamed, only their sizes are
            looked at here, the rest when they are read.
    """
    streamed, why = streams_from_shards(config, index, labels)
    LOGGER.info("%s: %s (%s)", labels.split, "streamed from its shards" if streamed else "in memory", why)
    if not streamed:
        return resident.load(config.store(), index, labels, device, dtype, config.share)
    check_files(config.url or "", index, labels)
    settings = StreamSettings(config.streams, config.window, config.workers, config.prefetch)
    return StreamingSplit(config.store(), index, BatchBuilder.for_split(index, labels, device, dtype), settings)
