"""The commands below ``avvp data``: check, pack, inspect and make up data sets."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from avvp_dist import ray_job, storage
from avvp_dist.cli_findings import MEND, flaw_counts, print_odd_files, tell_edition
from avvp_dist.cli_labels import labels, noisy_labels, ratios
from avvp_dist.cli_storage import STORAGE
from avvp_dist.config import Section, merge, parse_overrides, validate
from avvp_dist.data.catalog import DATASETS, FEATURE_SETS, LLP, Dataset
from avvp_dist.errors import ConfigError, DataError

if TYPE_CHECKING:  # the commands import what they run, since torch and pyarrow take seconds to load
    from avvp_dist.data.feature_files import OddFile
    from avvp_dist.data.index import Index, Labels, LeftOut
    from avvp_dist.data.llp import Annotations

data = typer.Typer(
    name="data",
    help="Check, pack, inspect and make up data sets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_DATASET = Annotated[str, typer.Argument(metavar="DATASET", help=f"Data set: {', '.join(DATASETS)}.")]
_ANNOTATIONS = Annotated[str, typer.Option(metavar="DIR", help="Folder of the official annotation files (AVVP_*.csv).")]
_WORKERS = Annotated[int | None, typer.Option(min=1, help="Processes at work; default one a core, 1 stays in this process.")]
_PACK_OVERRIDES = Annotated[
    list[str] | None,
    typer.Argument(metavar="[launch=ray]", help="Pack with tasks on a Ray cluster; --workers is then the most at once."),
]
_SHARD_VIDEOS = Annotated[int, typer.Option(min=1, help="Videos in one shard.")]
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


class _PackConfig(Section):
    """What ``pack`` takes as KEY=VALUE, written as for a training."""

    launch: _PackLaunch = _PackLaunch()


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
            metavar="URL", help=f"Folder or URL with {_FEATURES}. With launch=ray all nodes must see it under this name."
        ),
    ],
    out: Annotated[str, typer.Option(metavar="URL", help="Where the shards go: a local folder or s3://bucket/folder.")],
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
    from avvp_dist.data import llp, shards
    from avvp_dist.launch import pack_pool

    how = validate(_PackConfig, merge({}, parse_overrides(overrides or []), {"launch": "name"}), "data pack")
    ray_job.refuse_own_folder({"--out": out})
    chosen = _dataset(dataset, streams)
    annotated = llp.read_annotations(annotations, mend)
    source = llp.OfficialFeatures(features, chosen)
    provenance = {
        "importer": chosen.name,
        "version": _version(),
        "annotations": storage.absolute(annotations),
        "features": storage.absolute(features),
        "streams": {stream.name: stream.folder for stream in chosen.streams},
        "flaws": flaw_counts(annotated),
        **_made_up(annotations, features),
    }
    index = shards.pack(
        chosen,
        annotated.records,
        source,
        storage.absolute(out) if how.launch.name == "ray" else out,  # tasks run in other folders
        provenance=provenance,
        workers=workers,
        shard_videos=shard_videos,
        skip_bad=skip_bad,
        open_pool=pack_pool(how.launch.name),
    )
    if index.synthetic:
        typer.echo("SYNTHETIC data: scores on them say nothing about real videos")
    tell_edition(annotated.flaws)
    if annotated.flaws:
        typer.echo(f"{len(annotated.flaws)} known flaws of the annotations; `avvp data check {dataset}` lists them")
    if index.left_out:
        _print_left_out(_console(), index.left_out, "left out")
    videos = sum(shard.samples for shard in index.shards)
    typer.echo(f"{out}: {videos} videos in {len(index.shards)} shards, fingerprint {index.fingerprint[:16]}")


@data.command()
def check(
    dataset: _DATASET,
    annotations: _ANNOTATIONS,
    features: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also check every feature file below this folder.")
    ] = None,
    mend: MEND = False,
    streams: _STREAMS = Streams.vggish_resnet,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write all findings to this file.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Show at most so many flaws; the JSON holds all.")] = None,
    workers: _WORKERS = None,
    storage_settings: STORAGE = None,
) -> None:
    """List the known flaws of annotations, and bad and odd feature files. Exit code 2 if a feature file is bad."""
    from avvp_dist.data import llp, shards

    chosen = _dataset(dataset, streams)
    annotated = llp.read_annotations(annotations, mend)
    bad: tuple[LeftOut, ...] = ()
    odd: tuple[OddFile, ...] = ()
    if features is not None:
        bad, odd = shards.check_features(annotated.records, llp.OfficialFeatures(features, chosen), workers)
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
    console = _console()
    _print_flaws(console, annotated, limit)
    tell_edition(annotated.flaws)
    print_odd_files(console, odd)
    if bad:
        _print_left_out(console, bad, "bad features")
        raise typer.Exit(2)
    if features is not None:
        console.print(f"features of {len(annotated.records)} videos: {'none bad' if odd else 'all good'}")


@data.command()
def inspect(
    url: Annotated[str, typer.Argument(metavar="URL", help="A packed data set: local folder or object-store URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
    storage_settings: STORAGE = None,
) -> None:
    """Show what a packed data set holds: splits, streams, labels, what was left out, where it comes from."""
    from avvp_dist.data.index import Index, read_labels

    index = Index.load(url)
    content = _describe(url, index, read_labels(url, index))
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        _print_inspection(_console(), index, content)


@data.command()
def verify(
    url: Annotated[str, typer.Argument(metavar="URL", help="A packed data set: local folder or object-store URL.")],
    workers: _WORKERS = None,
    storage_settings: STORAGE = None,
) -> None:
    """Read all of a packed data set and compare it with its index: every hash, every video.

    Exit code 2 where anything is bad; data.on_bad=skip trains without it, packing again mends it.
    """
    from avvp_dist.data.verify import verify as read_all

    found = read_all(url, workers)
    if found.bad:
        raise DataError(
            [f"{bad.split} {bad.id}: {bad.reason}" for bad in found.bad],
            f"{url}: {len(found.bad)} of {found.videos} videos are bad",
        )
    typer.echo(f"{url}: {found.shards} shards, {found.videos} videos, {found.bytes / 1e9:.3g} GB: all as the index says")


@data.command()
def synth(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL to write to.")],
    videos: Annotated[
        int | None, typer.Option(help="Videos in all, shared out over the splits as in LLP; default all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed: the same one makes the same data.")] = 0,
    annotations: Annotated[
        str | None, typer.Option(metavar="DIR", help="Take videos and labels from these annotation files, not made-up ones.")
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
    from avvp_dist.data import synthetic

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
        typer.echo(f"{name}: {value}")


data.command()(labels)
data.command()(noisy_labels)
data.command()(ratios)


def _dataset(name: str, streams: Streams) -> Dataset:
    if name in DATASETS:
        return FEATURE_SETS[streams.value] if name == LLP.name else DATASETS[name]
    close = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"unknown data set {name!r}{hint} Valid names: {', '.join(DATASETS)}")


def _counts(splits: str | None) -> tuple[int, int, int] | None:
    if splits is None:
        return None
    try:
        train, val, test = (int(part) for part in splits.split(","))
    except ValueError:
        raise ConfigError(f"--splits {splits!r}: expected three whole numbers, e.g. 2500,649,1200") from None
    return train, val, test


def _made_up(annotations: str, features: str) -> dict[str, Any]:
    """What the generator of synthetic data left beside its files; packed data must go on saying that they are made up."""
    from avvp_dist.data.synthetic import MARKER

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


def _describe(url: str, index: Index, labels: dict[str, Labels]) -> dict[str, Any]:
    """What ``inspect`` tells, as JSON would have it."""
    splits = {}
    for name, split in labels.items():
        mine = [shard for shard in index.shards if shard.split == name]
        known = split.audio is not None and split.visual is not None
        splits[name] = {
            "videos": len(split.ids),
            "shards": len(mine),
            "bytes": sum(shard.bytes for shard in mine),
            "segments_with_truth": len(split.ids) * index.segments if known else 0,
        }
    return {
        "url": url,
        "dataset": index.dataset,
        "fingerprint": index.fingerprint,
        "synthetic": index.synthetic,
        "segments": index.segments,
        "splits": splits,
        "streams": [asdict(stream) for stream in index.streams],
        "weak_labels": {
            label: {name: int(split.weak[:, number].sum()) for name, split in labels.items()}
            for number, label in enumerate(index.classes)
        },
        "left_out": [asdict(video) for video in index.left_out],
        "provenance": index.provenance,
    }


def _console() -> Console:
    return Console(file=sys.stdout) if sys.stdout.isatty() else Console(file=sys.stdout, width=160)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else escape(str(cell)) for cell in row))
    return table


def _print_flaws(console: Console, annotated: Annotations, limit: int | None) -> None:
    from avvp_dist.data.llp import FLAWS

    counts = annotated.count()
    rows = [(kind, file, counts[kind, file], FLAWS[kind]) for kind, file in sorted(counts)]
    console.print(_table("flaws by kind", ("kind", "file", "rows", "meaning"), rows, numbers=("rows",)))
    shown = annotated.flaws[:limit]
    if shown:
        lines = ((flaw.file, str(flaw.row), flaw.kind, flaw.detail) for flaw in shown)
        console.print(_table("flaws", ("file", "row", "kind", "detail"), lines, numbers=("row",)))
    if len(shown) < len(annotated.flaws):
        console.print(f"{len(annotated.flaws) - len(shown)} more flaws not shown")
    console.print(f"{len(annotated.records)} videos, {len(annotated.flaws)} known flaws")


def _print_left_out(console: Console, videos: Sequence[LeftOut], title: str) -> None:
    rows = ((video.split, video.id, video.reason) for video in videos)
    console.print(_table(f"{title}: {len(videos)} videos", ("split", "id", "reason"), rows))


def _print_inspection(console: Console, index: Index, content: dict[str, Any]) -> None:
    splits = content["splits"]
    columns = ["split", "videos", "shards", "bytes", "segments with truth"]
    rows = [[name, *split.values()] for name, split in splits.items()]
    console.print(_table(f"{content['url']}: {index.dataset}", columns, rows, numbers=columns[1:]))
    columns = ["stream", "dim", "offset"]
    rows = [[*stream.values()] for stream in content["streams"]]
    console.print(_table(f"streams of {index.dataset}", columns, rows, numbers=columns[1:]))
    columns = ["class", *splits]
    rows = [[label, *counts.values()] for label, counts in content["weak_labels"].items()]
    console.print(_table("weak labels", columns, rows, numbers=columns[1:]))
    if index.left_out:
        _print_left_out(console, index.left_out, "left out")
    rows = [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in index.provenance.items()]
    console.print(_table("provenance", ["key", "value"], rows))
    console.print(f"fingerprint {index.fingerprint}")
