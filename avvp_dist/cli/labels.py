"""The commands ``avvp data labels``, ``noisy-labels`` and ``ratios``: labels and noise ratios from and for elsewhere."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from avvp_dist import storage
from avvp_dist.cli.output import echo, valid_url
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.config import LARGEST
from avvp_dist.errors import ConfigError
from avvp_dist.storage.probe import refuse_unwritable

if TYPE_CHECKING:  # the commands import what they run, since torch and pyarrow take seconds to load
    from avvp_dist.loading.refined import RefinedLabels

_PACKED = Annotated[
    str, typer.Option("--data", metavar="URL", help="The packed data set whose videos are labelled.", callback=valid_url)
]
_REFINED = Annotated[
    str,
    typer.Option(metavar="FILE", help="Where the labels go: refined.npz, to be given as data.refined.", callback=valid_url),
]
_SPLIT = Annotated[str, typer.Option(help="Whose videos; a training takes those of train.")]


class LabelFormat(StrEnum):
    """What ``labels`` reads."""

    segments = "segments"
    arrays = "arrays"
    need_to_change = "need-to-change"


class Aliasing(StrEnum):
    """What becomes of a video's label whose audio label MA clears."""

    published = "published"
    fixed = "fixed"


def labels(
    packed: _PACKED,
    out: _REFINED,
    audio: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE",
            help="What is heard. segments: folder of <id>.npy; arrays: .npy or .npz file.",
            callback=valid_url,
        ),
    ] = None,
    visual: Annotated[
        str | None, typer.Option(metavar="DIR|FILE", help="What is seen, likewise.", callback=valid_url)
    ] = None,
    kind: Annotated[
        LabelFormat,
        typer.Option(
            "--format",
            help="segments: a file a video, as VALOR publishes them; arrays: rows by classes, or by segments and classes, "
            "in the order of AVVP_train.csv; need-to-change: MA's lists of labels to clear.",
        ),
    ] = LabelFormat.segments,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="need_to_change.pkl; or the .npz with both arrays, audio and visual.",
            callback=valid_url,
        ),
    ] = None,
    annotations: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the annotation files whose rows arrays and need-to-change number.",
            callback=valid_url,
        ),
    ] = None,
    aliasing: Annotated[
        Aliasing,
        typer.Option(
            help="published: clearing an audio label clears the video's label too, as in MA's code; fixed: it does not."
        ),
    ] = Aliasing.published,
    keep_outside_weak: Annotated[
        bool, typer.Option("--keep-outside-weak", help="arrays: keep labels that the video's weak label lacks.")
    ] = False,
    split: _SPLIT = "train",
    storage_settings: STORAGE = None,
) -> None:
    """Import another tool's refined labels: of segments or of whole videos.

    Every file is checked first; nothing is written while one is missing or bad. Pickles are read without running code.
    """
    from avvp_dist.datasets import external, row_labels

    given = {"--audio": audio, "--visual": visual, "--file": file, "--annotations": annotations}
    _check_options(kind, given, aliasing, keep_outside_weak)
    refuse_unwritable(files={"--out": out})
    if kind is LabelFormat.segments:
        found = external.import_labels(packed, audio or "", visual or "", split)
    elif kind is LabelFormat.arrays:
        found = row_labels.import_arrays(
            packed, audio or file or "", visual or file or "", annotations or "", keep_outside_weak, split
        )
    else:
        found = row_labels.import_need_to_change(packed, file or "", annotations or "", aliasing.value, split)
    _write_labels(out, found)


def _check_options(kind: LabelFormat, given: dict[str, str | None], aliasing: Aliasing, keep_outside_weak: bool) -> None:
    """Refuses options that a format lacks or does not have.

    Raises:
        ConfigError: all of them.
    """
    wanted = {
        LabelFormat.segments: {"--audio", "--visual"},
        LabelFormat.arrays: {"--annotations"} | ({"--file"} if given["--file"] else {"--audio", "--visual"}),
        LabelFormat.need_to_change: {"--annotations", "--file"},
    }[kind]
    have = {name for name, value in given.items() if value}
    problems = [f"{name}: missing" for name in sorted(wanted - have)]
    if kind is LabelFormat.arrays and not given["--file"] and problems:
        problems.append("or --file with an .npz that holds both arrays")
    have |= {"--aliasing"} if aliasing is not Aliasing.published else set()
    have |= {"--keep-outside-weak"} if keep_outside_weak else set()
    own = {LabelFormat.arrays: {"--keep-outside-weak"}, LabelFormat.need_to_change: {"--aliasing"}}
    problems += [f"{name}: of no use here" for name in sorted(have - wanted - own.get(kind, set()))]
    if problems:
        raise ConfigError(problems, f"--format {kind.value}:")


def noisy_labels(
    packed: _PACKED,
    out: _REFINED,
    flip: Annotated[float, typer.Option(help="Probability with which a segment's label is turned over.")] = 0.1,
    seed: Annotated[int, typer.Option(max=LARGEST, help="Seed: the same one makes the same labels.")] = 0,
    split: _SPLIT = "train",
    storage_settings: STORAGE = None,
) -> None:
    """Make labels of segments from the truth of an annotated split, with noise put in; for synthetic data."""
    from avvp_dist.datasets import external

    refuse_unwritable(files={"--out": out})
    _write_labels(out, external.noisy_labels(packed, flip, seed, split))


def ratios(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE",
            help="Folder or URL of a JoMoLD run, or the ratios.json of one of its stages.",
            callback=valid_url,
        ),
    ],
    out: Annotated[str, typer.Option(metavar="FILE", help="Where the .npz goes.", callback=valid_url)],
    storage_settings: STORAGE = None,
) -> None:
    """Export noise ratios as the .npz that the authors of JoMoLD write and its successors read.

    It holds the arrays audio and visual, one ratio a class in LLP's official order; method.ratios takes it as well.
    """
    from avvp_dist.methods import ratio_files
    from avvp_dist.methods.jomold import read_ratios

    refuse_unwritable(files={"--out": out})
    url = ratio_files.find(source)
    found = read_ratios(url, ratio_files.class_names(url))
    storage.write_bytes(out, ratio_files.to_npz(found))
    echo(f"{out}: noise ratios of {len(found['audio'])} classes, from {url}")


def _write_labels(out: str, refined: RefinedLabels) -> None:
    storage.write_bytes(out, refined.to_bytes())
    if refined.provenance["synthetic"]:
        echo("SYNTHETIC data: scores on them echo nothing about real videos")
    if refined.provenance["outside_weak"]:
        echo(f"{refined.provenance['outside_weak']} labels lie outside their video's weak label; kept")
    if "cleared" in refined.provenance:
        cleared = refined.provenance["cleared"]
        echo(f"cleared {cleared['audio']} audio and {cleared['visual']} visual labels")
    heard, seen = ((values > 0).mean() if values.size else 0 for values in (refined.audio, refined.visual))
    of = "segments and classes" if refined.of_segments else "classes"
    echo(f"{out}: {len(refined.ids)} videos, labelled audio {heard:.2%}, visual {seen:.2%} of {of}")
