"""The interface to the batches of a split, for training, for stages that collect, and for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, field_validator

from avvp_dist.config import Section, Url
from avvp_dist.errors import ConfigError
from avvp_dist.loading import plan, resident
from avvp_dist.loading.batches import BatchBuilder
from avvp_dist.loading.partners import PartnerRule
from avvp_dist.loading.plan import EpochOrder, Plan
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.loading.streaming import StreamingSplit, StreamSettings
from avvp_dist.shards.cache import DEFAULT_GB, GB, ShardCache
from avvp_dist.shards.index import Index, Labels
from avvp_dist.shards.quarantine import check_files
from avvp_dist.shards.reading import ShardStore
from avvp_dist.types import Batch

LOGGER = logging.getLogger(__name__)


class DataConfig(Section):
    """The data set, and how it is read."""

    url: Url | None = None
    """Folder or URL of a packed data set, made by ``avvp data pack`` or ``avvp data synth --layout shards``."""
    dataset: str | None = None
    """Required name of the packed data set, as ``avvp data inspect`` shows it; null for any."""
    refined: Url | None = None
    """Path or URL of refined labels (a refining stage's refined.npz) that replace the weak ones in every training stage."""
    video_labels: Literal["weak", "durations"] = "weak"
    """weak: the weak labels; durations: the share of a video's segments that contain each class, which needs the truth
    of the training videos and reveals more than weak labels do (published code of PSP)."""
    mode: Literal["auto", "resident", "streaming"] = "auto"
    """resident: the training split is in memory; streaming: it is read from its shards in every epoch; auto: resident if its
    features take up to memory_gb. Other splits are resident up to memory_gb, and always if mode is resident."""
    memory_gb: float = Field(8.0, gt=0)
    """Gigabytes (10^9 bytes) that a split's features may take in the memory of each worker."""
    streams: int = Field(16, ge=1, le=1_000_000)
    """Streams read in parallel; must divide the batch size, and should be a multiple of the workers. Changes the order."""
    window: int = Field(256, ge=1)
    """Range in which a stream is shuffled and partners are drawn; at least a shard's videos. Changes the order."""
    workers: int = Field(2, ge=0, le=1000)
    """Reader processes of each worker; 0 for a thread."""
    shuffle: bool = True
    """Whether an epoch has a random order; false: that of the data set, only for a training split in memory."""
    drop_last: bool = False
    """Whether an epoch leaves out an incomplete last batch; true only for a training split in memory."""
    prefetch: int = Field(4, ge=1, le=100_000)
    """Number of prefetched batches."""
    on_bad: Literal["fail", "skip"] = "fail"
    """fail: bad shards and videos end the run; skip: they are left out, for which all data are checked before training."""
    cache: Url | None = None
    """Folder on each node for shards of a remote URL; null for $AVVP_CACHE or avvp_dist in the user's cache directory."""
    cache_gb: float = Field(DEFAULT_GB, gt=0)
    """Gigabytes (10^9 bytes) in that folder; the least recently used shards are evicted."""
    share: bool = True
    """true: the processes of a node read features on CPU from its page cache, one copy for all; false: each has a copy."""

    @field_validator("cache")
    @classmethod
    def _on_this_machine(cls, folder: str | None) -> str | None:
        if folder and "://" in folder:
            raise ValueError("must be a folder on the machine that trains, not a URL")
        return folder

    def store(self) -> ShardStore:
        """Location of the shards, and the cache through which they are read."""
        return ShardStore(self.url or "", ShardCache(self.cache, int(self.cache_gb * GB)))


class SplitReader(Protocol):
    """The videos of one split in batches; the content of a global batch does not depend on the number of ranks."""

    @property
    def labels(self) -> Labels:
        """Ids, weak labels and ground truth by number of the video."""
        ...

    def __len__(self) -> int:
        """Number of videos in the split."""
        ...

    def with_refined(self, labels: RefinedLabels, classes: Sequence[str], source: str) -> SplitReader:
        """Return the same videos with refined labels; ``source`` names these in errors.

        Raises:
            DataError: they do not match the data.
        """
        ...

    def plan(self, batch_size: int, seed: int, epoch: int) -> Plan:
        """Plan an epoch in global batches of ``batch_size``."""
        ...

    def epoch(
        self, plan: Plan, first_step: int, rank: int, world: int, partners: int = 0, rule: PartnerRule = "disjoint"
    ) -> Generator[Batch, None, None]:
        """Yield the part of ``rank`` of each global batch from ``first_step`` on; the last one may be empty.

        Args:
            plan: result of `plan`.
            first_step: at which a resumed epoch continues.
            rank, world: rank of this process, and number of ranks.
            partners: number of videos without a common label to draw for each video, by (seed, epoch, id); they are in
                ``batch.partners``.
            rule: which videos can be partners.
        """
        ...

    def iter_all(
        self,
        batch_size: int,
        rank: int,
        world: int,
        partners: int = 0,
        seed: int = 0,
        rule: PartnerRule = "disjoint",
    ) -> Generator[Batch, None, None]:
        """Yield every video once, in any order: the share of ``rank``, in at least one batch, which may be empty.

        ``batch.index`` contains the numbers of the videos; ``batch.total`` has no meaning here.

        Args:
            batch_size: approximate number of videos in a batch of this rank.
            rank, world: rank of this process, and number of ranks.
            partners: as in `epoch`, drawn by (``seed``, id).
            rule: which videos can be partners.
            seed: of that choice.
        """
        ...

    def close(self) -> None:
        """Release files and processes; a later call of `epoch` opens them again."""
        ...


def streams_from_shards(config: DataConfig, index: Index, labels: Labels) -> tuple[bool, str]:
    """Whether a split is streamed, and why; the same on all ranks, since it depends only on config and index."""
    size = len(labels.ids) * index.segments * index.width * 2 / 1e9
    budget = f"{size:.3g} GB of features, data.memory_gb={config.memory_gb:g}"
    if config.mode == "resident" or (config.mode == "streaming" and labels.split == "train"):
        return config.mode == "streaming", f"data.mode={config.mode}; {budget}"
    return size > config.memory_gb, budget


def order_settings(config: DataConfig, index: Index, labels: Labels) -> Mapping[str, Any]:
    """Settings besides seed and epoch that affect order and partners of a split; empty if it is in memory."""
    if not streams_from_shards(config, index, labels)[0]:
        return {}
    return StreamSettings(config.streams, config.window, config.workers, config.prefetch).order


def check_plan(config: DataConfig, index: Index, labels: Mapping[str, Labels], batch_size: int, world: int) -> None:
    """Refuse numbers for which there is no plan with ``world`` ranks or fewer, before anything is read.

    Raises:
        ConfigError: see `plan.check`; or settings that a streamed split does not support.
    """
    streamed = any(streams_from_shards(config, index, of_split)[0] for of_split in labels.values())
    if streams_from_shards(config, index, labels["train"])[0] and (config.drop_last or not config.shuffle):
        raise ConfigError("data.shuffle=false and data.drop_last=true need data.mode=resident: the split is streamed")
    plan.check(len(labels["train"].ids), batch_size, world, config.streams if streamed else None)


def open_split(config: DataConfig, index: Index, labels: Labels, device: torch.device, dtype: torch.dtype) -> SplitReader:
    """Open a split of the data set at ``config.url``, in memory or streamed.

    Raises:
        DataError: shards are missing or differ from the index; if the split is streamed, only their sizes are checked here,
            and their content when they are read.
    """
    streamed, why = streams_from_shards(config, index, labels)
    LOGGER.info("%s: %s (%s)", labels.split, "streamed from its shards" if streamed else "in memory", why)
    if not streamed:
        found = resident.load(config.store(), index, labels, device, dtype, config.share)
        return replace(found, order=EpochOrder(config.shuffle, config.drop_last)) if labels.split == "train" else found
    check_files(config.url or "", index, labels)
    settings = StreamSettings(config.streams, config.window, config.workers, config.prefetch)
    return StreamingSplit(config.store(), index, BatchBuilder.for_split(index, labels, device, dtype), settings)
