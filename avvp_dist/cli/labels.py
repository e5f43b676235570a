"""The commands ``avvp data labels`` and ``noisy-labels``: import refined labels, or derive them from ground truth."""

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
from avvp_dist.text.plural import plural

if TYPE_CHECKING:  # importing pyarrow and torch takes seconds
    from avvp_dist.loading.refined import RefinedLabels


class LabelFormat(StrEnum):
    """Formats that ``labels`` reads."""

    segments = "segments"
    arrays = "arrays"
    need_to_change = "need-to-change"


class Aliasing(StrEnum):
    """Whether clearing a video's audio label, as MA does, clears its video-level label too."""

    published = "published"
    fixed = "fixed"


_PACKED = Annotated[
    str,
    typer.Option("--data", metavar="URL", help="Packed data set that contains the labeled videos.", callback=valid_url),
]
_OUT = Annotated[
    str,
    typer.Option(metavar="FILE", help="File to write (refined.npz), to be used as data.refined.", callback=valid_url),
]
_SPLIT = Annotated[str, typer.Option(help="Split of the videos; training uses the labels of train.")]
_AUDIO = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|FILE",
        help="Audio labels. segments: folder of <id>.npy; arrays: .npy or .npz file.",
        callback=valid_url,
    ),
]
_VISUAL = Annotated[
    str | None, typer.Option(metavar="FOLDER|FILE", help="Visual labels, in the same form.", callback=valid_url)
]
_FORMAT = Annotated[
    LabelFormat,
    typer.Option(
        "--format",
        help="segments: one file per video, as published by VALOR's authors; arrays: rows x classes, or "
        "rows x segments x classes, in the order of AVVP_train.csv; need-to-change: MA's lists of labels to clear.",
    ),
]
_FILE = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="need_to_change.pkl, or an .npz file with both arrays, audio and visual.",
        callback=valid_url,
    ),
]
_ANNOTATIONS = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of the annotation files to whose rows arrays and need-to-change refer.",
        callback=valid_url,
    ),
]
_ALIASING = Annotated[
    Aliasing,
    typer.Option(
        help="need-to-change: published: clearing an audio label also clears the video-level label, as in MA's code; "
        "fixed: it does not."
    ),
]
_KEEP_OUTSIDE_WEAK = Annotated[
    bool, typer.Option("--keep-outside-weak", help="arrays: keep labels that are not in the video's weak label.")
]


def labels(
    packed: _PACKED,
    out: _OUT,
    audio: _AUDIO = None,
    visual: _VISUAL = None,
    kind: _FORMAT = LabelFormat.segments,
    file: _FILE = None,
    annotations: _ANNOTATIONS = None,
    aliasing: _ALIASING = Aliasing.published,
    keep_outside_weak: _KEEP_OUTSIDE_WEAK = False,
    split: _SPLIT = "train",
    storage_settings: STORAGE = None,
) -> None:
    """Import another tool's refined labels, at the level of segments or of whole videos.

    All files are checked first; nothing is written if one is missing or bad. Pickles are read without running code.
    """
    from avvp_dist.datasets import external, row_labels

    given = {"--audio": audio, "--visual": visual, "--file": file, "--annotations": annotations}
    _check_options(kind, given, aliasing, keep_outside_weak)
    refuse_unwritable(files={"--out": out})
    if kind is LabelFormat.segments:
        refined = external.import_segment_labels(packed, audio or "", visual or "", split)
    elif kind is LabelFormat.arrays:
        refined = row_labels.import_arrays(
            packed, audio or file or "", visual or file or "", annotations or "", keep_outside_weak, split
        )
    else:
        refined = row_labels.import_need_to_change(packed, file or "", annotations or "", aliasing.value, split)
    _write_labels(out, refined)


def _check_options(kind: LabelFormat, given: dict[str, str | None], aliasing: Aliasing, keep_outside_weak: bool) -> None:
    """Refuse options that a format needs and does not have, or has and does not use.

    Raises:
        ConfigError: all of them.
    """
    required = {
        LabelFormat.segments: {"--audio", "--visual"},
        LabelFormat.arrays: {"--annotations"} | ({"--file"} if given["--file"] else {"--audio", "--visual"}),
        LabelFormat.need_to_change: {"--annotations", "--file"},
    }[kind]
    present = {name for name, value in given.items() if value}
    problems = [f"{name}: missing" for name in sorted(required - present)]
    if kind is LabelFormat.arrays and not given["--file"] and problems:
        problems.append("or --file with an .npz file that holds both arrays")
    present |= {"--aliasing"} if aliasing is not Aliasing.published else set()
    present |= {"--keep-outside-weak"} if keep_outside_weak else set()
    optional = {LabelFormat.arrays: {"--keep-outside-weak"}, LabelFormat.need_to_change: {"--aliasing"}}
    problems += [f"{name}: not used here" for name in sorted(present - required - optional.get(kind, set()))]
    if problems:
        raise ConfigError(problems, f"--format {kind.value}:")


def noisy_labels(
    packed: _PACKED,
    out: _OUT,
    flip: Annotated[float, typer.Option(help="Probability with which each segment-level label is flipped.")] = 0.1,
    seed: Annotated[int, typer.Option(max=LARGEST, help="Random seed; the same seed generates the same labels.")] = 0,
    split: _SPLIT = "train",
    storage_settings: STORAGE = None,
) -> None:
    """Derive segment-level labels with random noise from the ground truth of an annotated split; for synthetic data."""
    from avvp_dist.datasets import external

    refuse_unwritable(files={"--out": out})
    _write_labels(out, external.noisy_segment_labels(packed, flip, seed, split))


def _write_labels(out: str, refined: RefinedLabels) -> None:
    storage.write_bytes(out, refined.to_bytes())
    if refined.provenance["synthetic"]:
        echo("SYNTHETIC data: scores on them say nothing about real videos")
    if refined.provenance["outside_weak"]:
        echo(f"{refined.provenance['outside_weak']} labels are not in their video's weak label; they were kept")
    if "cleared" in refined.provenance:
        cleared = refined.provenance["cleared"]
        echo(f"cleared {cleared['audio']} audio and {cleared['visual']} visual labels")
    audio, visual = ((values > 0).mean() if values.size else 0 for values in (refined.audio, refined.visual))
    unit = "segments and classes" if refined.has_segment_labels else "classes"
    videos = f"{len(refined.ids)} {plural(len(refined.ids), 'video')}"
    echo(f"{out}: {videos}, labeled audio {audio:.2%}, visual {visual:.2%} of {unit}")
