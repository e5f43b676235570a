"""The commands below ``avvp data``: check, pack, inspect and make up data sets."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field

from avvp_dist import storage
from avvp_dist.cli.data_findings import MEND, print_edition, print_odd_files
from avvp_dist.cli.data_view import describe, flaw_counts, print_flaws, print_inspection, print_left_out
from avvp_dist.cli.labels import labels, noisy_labels, ratios
from avvp_dist.cli.output import console, echo, valid_url
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.config import LARGEST, Section, merge, parse_overrides, validate
from avvp_dist.datasets.catalog import DATASETS, FEATURE_SETS, LLP
from avvp_dist.errors import ConfigError, DataError, Preempted
from avvp_dist.launch import ray_job
from avvp_dist.launch.signals import interrupt_on_signals
from avvp_dist.shards.spec import Dataset
from avvp_dist.storage.probe import refuse_unwritable
from avvp_dist.text.suggest import did_you_mean

if TYPE_CHECKING:  # the commands import what they run, since torch and pyarrow take seconds to load
    from avvp_dist.shards.feature_source import OddFile
    from avvp_dist.shards.index import LeftOut

data = typer.Typer(
    name="data",
    help="Check, pack, inspect and make up data sets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_DATASET = Annotated[str, typer.Argument(metavar="DATASET", help=f"Data set: {', '.join(DATASETS)}.")]
_ANNOTATIONS = Annotated[
    str, typer.Option(metavar="DIR", help="Folder of the official annotation files (AVVP_*.csv).", callback=valid_url)
]
_WORKERS = Annotated[
    int | None, typer.Option(min=1, max=10_000, help="Processes at work; default one a core, 1 stays in this process.")
]
_PACK_OVERRIDES = Annotated[
    list[str] | None,
    typer.Argument(metavar="[launch=ray]", help="Pack with tasks on a Ray cluster; --workers is then the most at once."),
]
_MOST = 10**9  # videos of a data set
_SHARD_VIDEOS = Annotated[int, typer.Option(min=1, max=_MOST, help="Videos in one shard.")]
_FEATURES = "feats/{vggish,res152,r2plus1d_18}/<id>.npy, and CLAP/ and CLIP/ for those features"


class Layout(StrEnum):
    """What ``synth`` writes."""

    official = "official"
    shards = "shards"


class Streams(StrEnum):
    """The keys of `FEATURE_SETS`."""

    vggish_resnet = "vggish-resnet"
    clip_clap = "clip-clap"


class _PackLaunch(Section):
    name: Literal["local", "ray"] = "local"
    wait: float = Field(1800.0, ge=0)
    """Seconds that a Ray cluster has to make room for a task."""


class _PackConfig(Section):
    """What ``pack`` takes as KEY=VALUE, written as for a training."""

    launch: _PackLaunch = _PackLaunch()


_URL = Annotated[
    str, typer.Argument(metavar="URL", help="A packed data set: local folder or object-store URL.", callback=valid_url)
]
_WIDTH = 160  # of tables where there is no terminal
_STREAMS = Annotated[
    Streams,
    typer.Option(help="Features: VGGish and ResNet-152, or CLAP and CLIP as VALOR's authors publish them; R(2+1)D in both."),
]


@data.command()
def pack(
    dataset: _DATASET,
    annotations: _ANNOTATIONS,
    features: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help=f"Folder or URL with {_FEATURES}. With launch=ray all nodes must see it under this name.",
            callback=valid_url,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(metavar="URL", help="Where the shards go: a local folder or s3://bucket/folder.", callback=valid_url),
    ],
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out videos with bad features, and record them.")
    ] = False,
    overrides: _PACK_OVERRIDES = None,
    mend: MEND = False,
    streams: _STREAMS = Streams.vggish_resnet,
    workers: _WORKERS = None,
    shard_videos: _SHARD_VIDEOS = 256,
    storage_settings: STORAGE = None,
) -> None:
    """Pack annotations and features into WebDataset shards.

    Every feature file is checked first; nothing is packed while one is bad. The command may be killed and run again: it goes
    on where it stopped, and does nothing to a data set that is complete.

    launch=ray does the same, byte for byte, in tasks on the cluster of RAY_ADDRESS, or of a Ray on this machine. All its
    nodes must see the feature files under the same name: a URL, a folder that they share, or copies. So with --out, but
    for copies.
    """
    from avvp_dist.datasets import llp
    from avvp_dist.launch.start import pack_pool
    from avvp_dist.shards import pack as packing

    how = validate(_PackConfig, merge({}, parse_overrides(overrides or []), {"launch": "name"}), "data pack")
    ray_job.refuse_own_folder({"--out": out})
    chosen = _dataset(dataset, streams)
    refuse_unwritable(folders={"--out": out})
    annotated = llp.read_annotations(annotations, mend)
    source = llp.OfficialFeatures(features, chosen)
    provenance = {
        "importer": chosen.name,
        "version": _version(),
        "annotations": storage.absolute(annotations),
        "features": storage.absolute(features),
        "streams": {stream.name: stream.folder for stream in chosen.streams},
        "flaws": flaw_counts(annotated),
        **_synthetic_marker(annotations, features),
    }
    try:
        with interrupt_on_signals("shards under way are given up, finished ones are kept"):
            index = packing.pack(
                chosen,
                annotated.records,
                source,
                storage.absolute(out) if how.launch.name == "ray" else out,  # tasks run in other folders
                provenance=provenance,
                workers=workers,
                shard_videos=shard_videos,
                skip_bad=skip_bad,
                open_pool=pack_pool(how.launch.name, how.launch.wait),
            )
    except KeyboardInterrupt:
        raise Preempted(f"{out}: asked to stop: finished shards are safe, the same command goes on from there") from None
    if index.synthetic:
        typer.echo("SYNTHETIC data: scores on them echo nothing about real videos")
    print_edition(annotated.flaws)
    if annotated.flaws:
        typer.echo(f"{len(annotated.flaws)} known flaws of the annotations; `avvp data check {dataset}` lists them")
    if index.left_out:
        print_left_out(console(_WIDTH), index.left_out, "left out")
    videos = sum(shard.samples for shard in index.shards)
    echo(f"{out}: {videos} videos in {len(index.shards)} shards, fingerprint {index.fingerprint[:16]}")


@data.command()
def check(
    dataset: _DATASET,
    annotations: _ANNOTATIONS,
    features: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Also check every feature file below this folder.", callback=valid_url),
    ] = None,
    mend: MEND = False,
    streams: _STREAMS = Streams.vggish_resnet,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all findings to this file.", callback=valid_url)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help="Show at most so many flaws, bad features and other problems; the JSON holds all."),
    ] = None,
    workers: _WORKERS = None,
    storage_settings: STORAGE = None,
) -> None:
    """List the known flaws of annotations, and bad and odd feature files. Exit code 2 if a feature file is bad."""
    from avvp_dist.datasets import llp
    from avvp_dist.shards import pack as packing

    chosen = _dataset(dataset, streams)
    refuse_unwritable(files={"--json": json_file})
    try:
        annotated = llp.read_annotations(annotations, mend)
    except DataError as error:
        error.limit = limit
        raise
    bad: tuple[LeftOut, ...] = ()
    odd: tuple[OddFile, ...] = ()
    if features is not None:
        bad, odd = packing.check_features(annotated.records, llp.OfficialFeatures(features, chosen), workers)
    if json_file is not None:
        report = {
            "dataset": chosen.name,
            "annotations": annotations,
            "features": features,
            "counts": flaw_counts(annotated),
            "flaws": [asdict(flaw) for flaw in annotated.flaws],
            "bad_features": [asdict(video) for video in bad],
            "odd_features": [asdict(file) for file in odd],
        }
        storage.write_text(json_file, json.dumps(report, indent=1) + "\n")
    stdout = console(_WIDTH)
    print_flaws(stdout, annotated, limit)
    print_edition(annotated.flaws)
    print_odd_files(stdout, odd)
    if bad:
        print_left_out(stdout, bad, "bad features", limit)
        raise typer.Exit(2)
    if features is not None:
        stdout.print(f"features of {len(annotated.records)} videos: {'none bad' if odd else 'all good'}")


@data.command()
def inspect(
    url: _URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
    storage_settings: STORAGE = None,
) -> None:
    """Show what a packed data set holds: splits, streams, labels, what was left out, where it comes from."""
    from avvp_dist.shards.index import Index, read_labels

    index = Index.load(url)
    content = describe(url, index, read_labels(url, index))
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        print_inspection(console(_WIDTH), index, content)


@data.command()
def verify(
    url: _URL,
    record: Annotated[
        bool, typer.Option("--record", help="If all is good, add the checksums that a data set of an earlier version lacks.")
    ] = False,
    workers: _WORKERS = None,
    storage_settings: STORAGE = None,
) -> None:
    """Read all of a packed data set: every hash, every video, and whether labels and shards echo the same.

    Exit code 2 where anything is bad; data.on_bad=skip trains without bad videos, packing again mends them. --record changes
    the fingerprint of the data set: stages of earlier runs on it are not used again.
    """
    from avvp_dist.shards.verify import verify as read_all

    found = read_all(url, workers, record)
    if found.problems:
        bad = f"; {found.bad_videos} of {found.videos} videos are bad" if found.bad_videos else ""
        count = f"{len(found.problems)} problem{'s' if len(found.problems) > 1 else ''}"
        raise DataError(found.problems, f"{url}: {count}{bad}")
    what = f"{found.shards} shards, {found.videos} videos, {found.bytes / 1e9:.3g} GB, fingerprint {found.fingerprint[:16]}"
    echo(f"{url}: {what}: all as the index says")


@data.command()
def synth(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL to write to.", callback=valid_url)],
    videos: Annotated[
        int | None, typer.Option(max=_MOST, help="Videos in all, shared out over the splits as in LLP; default all.")
    ] = None,
    seed: Annotated[int, typer.Option(max=LARGEST, help="Seed: the same one makes the same data.")] = 0,
    annotations: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Take videos and labels from these annotation files, not made-up ones.", callback=valid_url
        ),
    ] = None,
    layout: Annotated[
        Layout, typer.Option(help="Files as LLP's authors lay them out, to be packed; or packed shards at once.")
    ] = Layout.official,
    streams: _STREAMS = Streams.vggish_resnet,
    splits: Annotated[
        str | None, typer.Option(metavar="TRAIN,VAL,TEST", help="Videos of each split, in place of --videos: 2500,649,1200.")
    ] = None,
    workers: _WORKERS = None,
    shard_videos: _SHARD_VIDEOS = 256,
    storage_settings: STORAGE = None,
) -> None:
    """Make up a data set that looks like LLP, with planted truth."""
    from avvp_dist.datasets import synthetic

    refuse_unwritable(folders={"OUT": out})
    summary = synthetic.write(
        out,
        videos=videos,
        seed=seed,
        annotations=annotations,
        layout=layout.value,
        streams=streams.value,
        splits=_counts(splits),
        workers=workers,
        shard_videos=shard_videos,
    )
    for name, value in summary.items():
        echo(f"{name}: {value}")


data.command()(labels)
data.command()(noisy_labels)
data.command()(ratios)


def _dataset(name: str, streams: Streams) -> Dataset:
    if name in DATASETS:
        return FEATURE_SETS[streams.value] if name == LLP.name else DATASETS[name]
    hint = did_you_mean(name, DATASETS)
    raise ConfigError(f"unknown data set {name!r}{hint} Valid names: {', '.join(DATASETS)}")


def _counts(splits: str | None) -> tuple[int, int, int] | None:
    if splits is None:
        return None
    if not re.fullmatch(r"-?\d{1,9}(,-?\d{1,9}){2}", splits.replace(" ", ""), re.ASCII):
        raise ConfigError(f"--splits {splits[:100]!r}: expected three whole numbers, e.g. 2500,649,1200")
    train, val, test = (int(part) for part in splits.split(","))
    return train, val, test


def _synthetic_marker(annotations: str, features: str) -> dict[str, Any]:
    """What the generator of synthetic data left beside its files; packed data must go on saying that they are made up."""
    from avvp_dist.datasets.synthetic import MARKER

    above = storage.absolute(features).rstrip("/").rpartition("/")[0]
    for folder in (annotations, features, above):
        try:
            return {"synthetic": True, "generator": json.loads(storage.read_bytes(storage.join(folder, MARKER)))}
        except FileNotFoundError:
            continue
        except ValueError:
            raise DataError(f"{storage.join(folder, MARKER)}: not valid JSON; make the synthetic data again") from None
    return {"synthetic": False}


def _version() -> str:
    try:
        return version("avvp_dist")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
