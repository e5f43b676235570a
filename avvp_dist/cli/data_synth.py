"""The command ``avvp data synth``: generates a synthetic data set."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

import typer

from avvp_dist.cli.data_options import DEFAULT_STREAMS, MOST_VIDEOS, SHARD_VIDEOS, STREAMS, WORKERS, Streams
from avvp_dist.cli.output import echo, valid_url
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.config import LARGEST
from avvp_dist.errors import ConfigError
from avvp_dist.storage.probe import refuse_unwritable


class SyntheticDataset(StrEnum):
    """Data sets that ``synth`` can imitate."""

    llp = "llp"
    ave = "ave"


class Layout(StrEnum):
    """File layouts that ``synth`` can write."""

    official = "official"
    shards = "shards"


_OUT = Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL to write to.", callback=valid_url)]
_VIDEOS = Annotated[
    int | None,
    typer.Option(
        max=MOST_VIDEOS,
        help="Total number of videos, divided among the splits as in the data set; default the size of LLP; for AVE 400, "
        "60 and 60.",
    ),
]
_DATASET = Annotated[SyntheticDataset, typer.Option(help="Data set to imitate.")]
_BACKGROUND = Annotated[
    int | None,
    typer.Option(
        metavar="N", max=MOST_VIDEOS, help="AVE: number of background videos; default as many per training video as in AVE."
    ),
]
_SEED = Annotated[int, typer.Option(max=LARGEST, help="Random seed; the same seed generates the same data.")]
_ANNOTATIONS = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Use the videos and labels of these annotation files instead of synthetic ones.",
        callback=valid_url,
    ),
]
_LAYOUT = Annotated[
    Layout, typer.Option(help="official: files in the layout of the authors, to be packed; shards: packed shards.")
]
_VERSION = Annotated[
    int | None,
    typer.Option(
        "--version",
        metavar="N",
        help="LLP: version of the features, 1 or 2 (see docs/methods.md); default the newest. A version never changes.",
    ),
]
_SPLITS = Annotated[
    str | None,
    typer.Option(metavar="TRAIN,VAL,TEST", help="Number of videos of each split, instead of --videos, e.g. 2500,649,1200."),
]


def synth(
    out: _OUT,
    dataset: _DATASET = SyntheticDataset.llp,
    videos: _VIDEOS = None,
    seed: _SEED = 0,
    annotations: _ANNOTATIONS = None,
    layout: _LAYOUT = Layout.official,
    streams: STREAMS = DEFAULT_STREAMS,
    splits: _SPLITS = None,
    version: _VERSION = None,
    background: _BACKGROUND = None,
    workers: WORKERS = None,
    shard_videos: SHARD_VIDEOS = None,
    storage_settings: STORAGE = None,
) -> None:
    """Generate a synthetic data set that resembles LLP or AVE, with known ground truth."""
    from avvp_dist.datasets import synthetic, synthetic_ave, synthetic_evidence

    _refuse_foreign_options(dataset, streams, version, background)
    refuse_unwritable(folders={"OUT": out})
    options: dict[str, Any] = {
        "videos": videos,
        "seed": seed,
        "annotations": annotations,
        "layout": layout.value,
        "splits": _split_counts(splits),
        "workers": workers,
        "shard_videos": shard_videos,
    }
    if dataset is SyntheticDataset.ave:
        summary = synthetic_ave.write(out, **options, background=background)
    else:
        evidence = synthetic_evidence.of_version(version)
        summary = synthetic.write(out, **options, streams=streams.value, evidence=evidence)
    counts = ", ".join(f"{split} {count}" for split, count in summary["videos"].items())
    for name, value in {**summary, "videos": counts, "notes": "; ".join(summary["notes"])}.items():
        if value != "":
            echo(f"{name}: {value}")


def _refuse_foreign_options(
    dataset: SyntheticDataset, streams: Streams, version: int | None, background: int | None
) -> None:
    """Refuse options of another data set.

    Raises:
        ConfigError: lists them.
    """
    problems = []
    if dataset is SyntheticDataset.ave and streams != DEFAULT_STREAMS:
        problems.append(f"--streams {streams.value}: selects features of LLP only")
    if dataset is SyntheticDataset.ave and version is not None:
        problems.append("--version: only the synthetic LLP has several versions")
    if dataset is SyntheticDataset.llp and background is not None:
        problems.append("--background: only AVE has background videos")
    if problems:
        raise ConfigError(problems, f"these options do not apply to --dataset {dataset.value}")


def _split_counts(splits: str | None) -> tuple[int, int, int] | None:
    if splits is None:
        return None
    if not re.fullmatch(r"-?\d{1,9}(,-?\d{1,9}){2}", splits.replace(" ", ""), re.ASCII):
        raise ConfigError(f"--splits {splits[:100]!r}: expected three integers, e.g. 2500,649,1200")
    train, val, test = (int(part) for part in splits.split(","))
    return train, val, test
