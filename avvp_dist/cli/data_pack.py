"""The command ``avvp data pack``: packs annotations and features into shards."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field

from avvp_dist import storage
from avvp_dist.cli.data_findings import print_edition
from avvp_dist.cli.data_options import (
    ANNOTATIONS,
    DATASET,
    DEFAULT_STREAMS,
    MEND,
    SHARD_VIDEOS,
    STREAMS,
    WIDTH,
    WORKERS,
    find_importer,
)
from avvp_dist.cli.data_view import flaw_counts, print_left_out
from avvp_dist.cli.output import console, echo, valid_url
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.config import Section, merge, parse_overrides, validate
from avvp_dist.errors import DataError, Preempted
from avvp_dist.launch import ray_job
from avvp_dist.launch.signals import interrupt_on_signals
from avvp_dist.storage.probe import refuse_unwritable
from avvp_dist.text.plural import plural

if TYPE_CHECKING:
    from avvp_dist.datasets.flaws import Annotations
    from avvp_dist.shards.index import Index
    from avvp_dist.shards.spec import Dataset


class _LaunchSection(Section):
    name: Literal["local", "ray"] = "local"
    wait: float = Field(1800.0, ge=0)
    """Seconds to wait until the Ray cluster can run a task."""


class _PackConfig(Section):
    """The KEY=VALUE arguments of ``pack``, with the same keys as for training."""

    launch: _LaunchSection = _LaunchSection()


_FEATURE_FILES = (
    "the official feature files (LLP: feats/{vggish,res152,r2plus1d_18}/<id>.npy, and CLAP/ and CLIP/ for those features; "
    "AVE: audio_feature.h5, visual_feature.h5 and, of the background videos, *_noisy.h5)"
)
_FEATURES = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help=f"Folder or URL with {_FEATURE_FILES}. With launch=ray, all nodes must be able to read it under this name.",
        callback=valid_url,
    ),
]
_OUT = Annotated[
    str,
    typer.Option(metavar="URL", help="Destination of the shards: a local folder or s3://bucket/folder.", callback=valid_url),
]
_SKIP_BAD = Annotated[bool, typer.Option("--skip-bad", help="Leave out videos with bad features, and record them.")]
_OVERRIDES = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="launch=ray",
        help="Pack in tasks on a Ray cluster; --workers is then the maximum number of concurrent tasks.",
    ),
]


def pack(
    dataset: DATASET,
    annotations: ANNOTATIONS,
    features: _FEATURES,
    out: _OUT,
    skip_bad: _SKIP_BAD = False,
    overrides: _OVERRIDES = None,
    mend: MEND = False,
    streams: STREAMS = DEFAULT_STREAMS,
    workers: WORKERS = None,
    shard_videos: SHARD_VIDEOS = None,
    storage_settings: STORAGE = None,
) -> None:
    """Pack annotations and features into WebDataset shards.

    All feature files are checked first; nothing is packed if one is bad. An interrupted command can be run again: it
    resumes, and it leaves a complete data set unchanged.

    With launch=ray, tasks on the cluster of RAY_ADDRESS, or on a Ray instance on this machine, write the same shards byte
    for byte. All nodes must be able to read the feature files under the same name (a URL, a shared folder, or copies) and
    to write to --out (a URL or a shared folder).
    """
    from avvp_dist.launch.start import pack_pool
    from avvp_dist.shards import pack as packing

    launch = validate(_PackConfig, merge({}, parse_overrides(overrides or []), {"launch": "name"}), "data pack").launch
    ray_job.refuse_own_folder({"--out": out})
    importer = find_importer(dataset, streams, mend)
    refuse_unwritable(folders={"--out": out})
    annotated = importer.annotations(annotations, features)
    source = importer.features(features, annotated)
    try:
        with interrupt_on_signals("unfinished shards are discarded, finished ones are kept"):
            index = packing.pack(
                importer.dataset,
                annotated.records,
                source,
                storage.absolute(out) if launch.name == "ray" else out,  # tasks run in other folders
                provenance=_provenance(annotated, importer.dataset, annotations, features),
                workers=workers,
                shard_videos=shard_videos,
                skip_bad=skip_bad,
                open_pool=pack_pool(launch.name, launch.wait),
            )
    except KeyboardInterrupt:
        raise Preempted(f"{out}: stopped on request; finished shards are kept, the same command resumes") from None
    _print_result(dataset, annotated, index, out)


def _print_result(dataset: str, annotated: Annotations, index: Index, out: str) -> None:
    if index.synthetic:
        typer.echo("SYNTHETIC data: scores on them say nothing about real videos")
    print_edition(annotated.flaws)
    if flaws := len(annotated.flaws):
        them = plural(flaws, "it", "them")
        typer.echo(f"{flaws} known {plural(flaws, 'flaw')} of the annotations; `avvp data check {dataset}` lists {them}")
    if index.left_out:
        print_left_out(console(WIDTH), index.left_out, "left out")
    videos, shards = sum(shard.samples for shard in index.shards), len(index.shards)
    content = f"{videos} {plural(videos, 'video')} in {shards} {plural(shards, 'shard')}"
    echo(f"{out}: {content}, fingerprint {index.fingerprint[:16]}")


def _provenance(annotated: Annotations, dataset: Dataset, annotations: str, features: str) -> dict[str, Any]:
    """The ``provenance`` of the data set's index."""
    return {
        "importer": dataset.name,
        "version": _version(),
        "annotations": storage.absolute(annotations),
        "features": storage.absolute(features),
        "streams": {stream.name: stream.folder for stream in dataset.streams},
        "flaws": flaw_counts(annotated),
        **_synthetic_marker(annotations, features),
    }


def _synthetic_marker(annotations: str, features: str) -> dict[str, Any]:
    """Read the marker file that the generator writes beside synthetic data: packed data must stay marked as synthetic."""
    from avvp_dist.datasets.synthetic import MARKER

    parent = storage.absolute(features).rstrip("/").rpartition("/")[0]
    for folder in (annotations, features, parent):
        try:
            return {"synthetic": True, "generator": json.loads(storage.read_bytes(storage.join(folder, MARKER)))}
        except FileNotFoundError:
            continue
        except ValueError:
            raise DataError(f"{storage.join(folder, MARKER)}: not valid JSON; generate the synthetic data again") from None
    return {"synthetic": False}


def _version() -> str:
    try:
        return version("avvp_dist")
    except PackageNotFoundError:  # running from a checkout
        return "unknown"
