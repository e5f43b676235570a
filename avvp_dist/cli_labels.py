"""The commands ``avvp data labels`` and ``noisy-labels``: labels of segments from elsewhere, for `data.refined`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from avvp_dist import storage
from avvp_dist.cli_output import say, usable
from avvp_dist.cli_storage import STORAGE
from avvp_dist.config import LARGEST
from avvp_dist.storage_probe import refuse_unwritable

if TYPE_CHECKING:  # the commands import what they run, since torch and pyarrow take seconds to load
    from avvp_dist.data.refined import RefinedLabels

_PACKED = Annotated[
    str, typer.Option("--data", metavar="URL", help="The packed data set whose videos are labelled.", callback=usable)
]
_REFINED = Annotated[
    str,
    typer.Option(metavar="FILE", help="Where the labels go: refined.npz, to be given as data.refined.", callback=usable),
]
_SPLIT = Annotated[str, typer.Option(help="Whose videos; a training takes those of train.")]


def labels(
    packed: _PACKED,
    audio: Annotated[
        str, typer.Option(metavar="DIR", help="Folder of <id>.npy, segments by classes: what is heard.", callback=usable)
    ],
    visual: Annotated[str, typer.Option(metavar="DIR", help="Folder of <id>.npy, likewise: what is seen.", callback=usable)],
    out: _REFINED,
    split: _SPLIT = "train",
    storage_settings: STORAGE = None,
) -> None:
    """Import another tool's labels of segments, in the layout that VALOR publishes.

    Every file is checked first; nothing is written while one is missing or bad.
    """
    from avvp_dist.data.external import import_labels

    refuse_unwritable(files={"--out": out})
    _write_labels(out, import_labels(packed, audio, visual, split))


def noisy_labels(
    packed: _PACKED,
    out: _REFINED,
    flip: Annotated[float, typer.Option(help="Probability with which a segment's label is turned over.")] = 0.1,
    seed: Annotated[int, typer.Option(max=LARGEST, help="Seed: the same one makes the same labels.")] = 0,
    split: _SPLIT = "train",
    storage_settings: STORAGE = None,
) -> None:
    """Make labels of segments from the truth of an annotated split, with noise put in; for synthetic data."""
    from avvp_dist.data import external

    refuse_unwritable(files={"--out": out})
    _write_labels(out, external.noisy_labels(packed, flip, seed, split))


def _write_labels(out: str, refined: RefinedLabels) -> None:
    storage.write_bytes(out, refined.to_bytes())
    if refined.provenance["synthetic"]:
        say("SYNTHETIC data: scores on them say nothing about real videos")
    if refined.provenance["outside_weak"]:
        say(f"{refined.provenance['outside_weak']} labels of segments lie outside their video's weak label; kept")
    heard, seen = ((values > 0).mean() if values.size else 0 for values in (refined.audio, refined.visual))
    say(f"{out}: {len(refined.ids)} videos, labelled audio {heard:.2%}, visual {seen:.2%} of segments and classes")
