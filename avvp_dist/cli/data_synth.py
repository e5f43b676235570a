"""The command ``avvp data synth``: generates a synthetic data set."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

import typer

from avvp_dist.cli.data_options import DEFAULT_STREAMS, MOST_VIDEOS, SHARD_VIDEOS, STREAMS, WORKERS
from avvp_dist.cli.output import echo, valid_url
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.config import LARGEST
from avvp_dist.errors import ConfigError
from avvp_dist.storage.probe import refuse_unwritable


class Layout(StrEnum):
    """File layouts that ``synth`` can write."""

    official = "official"
    shards = "shards"


_OUT = Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL to write to.", callback=valid_url)]
_VIDEOS = Annotated[
    int | None,
    typer.Option(
        max=MOST_VIDEOS, help="Total number of videos, divided among the splits as in LLP; default the size of LLP."
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
    Layout, typer.Option(help="official: files in the layout of LLP's authors, to be packed; shards: packed shards.")
]
_SPLITS = Annotated[
    str | None,
    typer.Option(metavar="TRAIN,VAL,TEST", help="Number of videos of each split, instead of --videos, e.g. 2500,649,1200."),
]


def synth(
    out: _OUT,
    videos: _VIDEOS = None,
    seed: _SEED = 0,
    annotations: _ANNOTATIONS = None,
    layout: _LAYOUT = Layout.official,
    streams: STREAMS = DEFAULT_STREAMS,
    splits: _SPLITS = None,
    workers: WORKERS = None,
    shard_videos: SHARD_VIDEOS = None,
    storage_settings: STORAGE = None,
) -> None:
    """Generate a synthetic data set that resembles LLP, with known ground truth."""
    from avvp_dist.datasets import synthetic

    refuse_unwritable(folders={"OUT": out})
    summary = synthetic.write(
        out,
        videos=videos,
        seed=seed,
        annotations=annotations,
        layout=layout.value,
        streams=streams.value,
        splits=_split_counts(splits),
        workers=workers,
        shard_videos=shard_videos,
    )
    counts = ", ".join(f"{split} {count}" for split, count in summary["videos"].items())
    for name, value in {**summary, "videos": counts, "notes": "; ".join(summary["notes"])}.items():
        if value != "":
            echo(f"{name}: {value}")


def _split_counts(splits: str | None) -> tuple[int, int, int] | None:
    if splits is None:
        return None
    if not re.fullmatch(r"-?\d{1,9}(,-?\d{1,9}){2}", splits.replace(" ", ""), re.ASCII):
        raise ConfigError(f"--splits {splits[:100]!r}: expected three integers, e.g. 2500,649,1200")
    train, val, test = (int(part) for part in splits.split(","))
    return train, val, test
