"""Options that commands below ``avvp data`` share."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from avvp_dist.cli.output import valid_url
from avvp_dist.datasets.catalog import DATASETS, FEATURE_SETS
from avvp_dist.errors import ConfigError
from avvp_dist.text.suggest import did_you_mean

if TYPE_CHECKING:  # importing numpy and h5py takes tenths of a second
    from avvp_dist.datasets.importers import Importer

WIDTH = 160  # of tables on a stdout that is not a terminal
MOST_VIDEOS = 10**9  # of a data set


# The keys of FEATURE_SETS; an enum, because Typer lists its values in the help and in the message about an invalid one.
Streams = StrEnum("Streams", {name: name for name in FEATURE_SETS})  # type: ignore[misc]  # mypy expects a literal
DEFAULT_STREAMS = Streams("vggish-resnet")
_FOLDERS = "; ".join(f"{name}: {', '.join(stream.folder for stream in FEATURE_SETS[name].streams)}" for name in FEATURE_SETS)

DATASET = Annotated[str, typer.Argument(metavar="DATASET", help=f"Data set: {', '.join(DATASETS)}.")]
ANNOTATIONS = Annotated[
    str,
    typer.Option(
        metavar="FOLDER",
        help="Folder of the official annotation files (LLP: AVVP_*.csv; AVE: Annotations.txt and *_order.h5).",
        callback=valid_url,
    ),
]
WORKERS = Annotated[
    int | None,
    typer.Option(min=1, max=10_000, help="Number of worker processes; default one per core, 1 uses only this process."),
]
SHARD_VIDEOS = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_VIDEOS, help="Number of videos in a shard; default 256, or as many as 16 MB hold."),
]
STREAMS = Annotated[
    Streams,
    typer.Option(help=f"Feature set of LLP's videos. Folders of its files: {_FOLDERS}."),
]
URL = Annotated[
    str, typer.Argument(metavar="URL", help="Packed data set: a local folder or object-store URL.", callback=valid_url)
]
MEND = Annotated[
    bool,
    typer.Option(
        "--mend", help="LLP: correct the rows of the older AVVP_eval_audio.csv that LLP's authors corrected in 2024."
    ),
]


def find_importer(name: str, streams: Streams, mend: bool) -> Importer:
    """Return the importer of a data set, with the chosen features if it is LLP.

    Raises:
        ConfigError: there is no such data set, or it does not have these options.
    """
    from avvp_dist.datasets import importers

    if name in DATASETS:
        return importers.find(name, streams.value, mend)
    hint = did_you_mean(name, DATASETS)
    raise ConfigError(f"unknown data set {name!r}{hint} Valid names: {', '.join(DATASETS)}")
