"""Where the batches of a split come from: one door for training, for stages that collect, and for evaluation."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

from pydantic import Field, field_validator

from avvp_dist.config import Section
from avvp_dist.data.cache import DEFAULT_GB, GB, ShardCache
from avvp_dist.data.index import Labels
from avvp_dist.data.plan import Plan
from avvp_dist.data.refined import RefinedLabels
from avvp_dist.types import Batch


class DataConfig(Section):
    """Which data."""

    url: str | None = None
    """Folder or URL of a packed data set, made by ``avvp data pack`` or ``avvp data synth --layout shards``."""
    dataset: str | None = None
    """What the packed data set must be, by the name that ``avvp data inspect`` shows; null for any."""
    refined: str | None = None
    """Path or URL of refined labels (a refining stage's refined.npz) that every training stage takes for the weak ones."""
    cache: str | None = None
    """Folder, on each node, for shards of a remote URL; null for $AVVP_CACHE or avvp_dist in the user's cache directory."""
    cache_gb: float = Field(DEFAULT_GB, gt=0)
    """Gigabytes (of 10^9 bytes) in that folder; shards used longest ago make room."""
    share: bool = True
    """Whether a node's processes read features on CPU from one memory map of the shards; false: each from its own copy."""

    @field_validator("cache")
    @classmethod
    def _on_this_machine(cls, folder: str | None) -> str | None:
        if folder and "://" in folder:
            raise ValueError("must be a folder on the machine that trains, not a URL")
        return folder

    def shard_cache(self) -> ShardCache:
        """The cache these settings describe."""
        return ShardCache(self.cache, int(self.cache_gb * GB))


class Source(Protocol):
    """The videos of one split, in batches; what a global batch holds is the same for any number of ranks."""

    @property
    def labels(self) -> Labels:
        """Ids, weak labels and truth by number of the video."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What order and partners depend on besides seed and epoch; goes into the keys of stages. Empty in memory."""
        ...

    def __len__(self) -> int:
        """Videos of the split."""
        ...

    def with_refined(self, labels: RefinedLabels, classes: Sequence[str], source: str) -> Source:
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

    def ordered(
        self, batch_size: int, rank: int, world: int, partners: int = 0, seed: int = 0
    ) -> Generator[Batch, None, None]:
        """Every video once, without shuffling: the share of ``rank`` in at least one batch of at most ``batch_size``.

        ``batch.index`` says which videos they are; ``batch.total`` means nothing here. ``partners`` as in `epoch`, drawn
        by (``seed``, id).
        """
        ...

    def close(self) -> None:
        """Lets go of files and processes; a later call of `epoch` opens them again."""
        ...
