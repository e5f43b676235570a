"""Synthetic data sets by the name of the data set that they stand in for, as shards that are ready for training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from avvp_dist.datasets import synthetic, synthetic_ave
from avvp_dist.datasets.catalog import AVE, FEATURE_SETS, LLP

DEFAULT = LLP.name
"""Data set of recipes that require none."""
SPLITS = {dataset.name: (2500, 649, 1200) for dataset in FEATURE_SETS.values()} | {AVE.name: (400, 60, 60)}
"""Default numbers of training, validation and test videos of each data set that can be generated. LLP: its val and test, and
a quarter of its train; AVE: an eighth of its train, since a video takes half a megabyte."""
_WRITERS: dict[str, Callable[..., Any]] = {
    **{dataset.name: partial(synthetic.write, streams=streams) for streams, dataset in FEATURE_SETS.items()},
    AVE.name: synthetic_ave.write,
}


def write(dataset: str, out: str, videos: int | tuple[int, int, int] | None = None, annotations: str | None = None) -> None:
    """Write a synthetic data set as shards, with seed 0; one that exists with the same arguments is kept.

    Args:
        dataset: name of the data set, a key of `SPLITS`.
        out: folder or URL.
        videos: total number of videos, divided among the splits as in the real data set; or the numbers of train, val and
            test; None for those in `SPLITS`.
        annotations: folder of the real data set's annotation files, to use their labels.

    Raises:
        ConfigError, DataError: invalid arguments, or ``out`` contains other shards.
    """
    counts = SPLITS[dataset] if videos is None else videos
    splits = None if isinstance(counts, int) else counts
    total = counts if isinstance(counts, int) else None
    _WRITERS[dataset](out, videos=total, splits=splits, seed=0, annotations=annotations, layout="shards")
