"""What the network hears and sees, second by second, below what the annotators did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from avvp_dist.report.canvas import BLUE, DARK, RED, picture
from avvp_dist.report.curves import readable
from avvp_dist.types import MODALITIES

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class TimelineVideo:
    """A video to show: its id and the names of its weak labels."""

    id: str
    weak: tuple[str, ...]


def parsing(
    videos: Sequence[TimelineVideo],
    classes: Sequence[str],
    true_audio: BoolArray | None,
    true_visual: BoolArray | None,
    pred_audio: BoolArray,
    pred_visual: BoolArray,
    path: Path,
    synthetic: bool,
) -> None:
    """A few videos; each has a panel a modality and a row a class that is there or was found: truth above, prediction below.

    Args:
        videos: the n videos; five or six fill a screen.
        classes: the C class names.
        true_audio, true_visual: [n,T,C] annotated seconds; None where nobody annotated them.
        pred_audio, pred_visual: [n,T,C] predicted seconds.
        path: PNG to write.
        synthetic: whether the data is made up; said in the picture.
    """
    pairs = ((true_audio, pred_audio), (true_visual, pred_visual))
    shown = [_classes_of(number, pairs) for number in range(len(videos))]
    heights = [max(1, len(rows)) for rows in shown]
    with picture(path, 10, 1.9 + 0.45 * len(videos) + 0.36 * sum(heights), "Parsing", synthetic) as figure:
        grid = figure.subplots(len(videos), 2, sharex=True, squeeze=False, height_ratios=heights)
        for number, video in enumerate(videos):
            for axis, (truth, prediction) in zip(grid[number], pairs, strict=True):
                _panel(axis, None if truth is None else truth[number], prediction[number], shown[number])
            grid[number][0].set_yticks(range(len(shown[number])), [readable(classes[c]) for c in shown[number]])
            grid[number][0].set_title(_headline(video), loc="left", fontsize=11)
        for column, name in enumerate(MODALITIES):
            grid[0][column].set_title(f"{name}\n", loc="center")  # the first headline runs below it
            grid[-1][column].set_xlabel(f"{name}, seconds")
        labels = {"true": DARK} if true_audio is not None else {}
        handles = [Patch(color=colour, label=name) for name, colour in labels.items()]
        handles.append(Patch(color=BLUE, label="predicted, rightly" if labels else "predicted"))
        if labels:
            handles.append(Patch(facecolor=RED, edgecolor="white", hatch="////", label="predicted, wrongly"))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)


def _classes_of(number: int, pairs: Sequence[tuple[BoolArray | None, BoolArray]]) -> list[int]:
    """Classes that are true or predicted in either modality of one video."""
    found = [array[number].any(axis=0) for pair in pairs for array in pair if array is not None]
    return [int(c) for c in np.flatnonzero(np.any(found, axis=0))]


def _headline(video: TimelineVideo) -> str:
    weak = ", ".join(readable(name) for name in video.weak) or "none"
    text = f"{video.id}   weak: {weak}"
    return text if len(text) <= 90 else f"{text[:88]}…"  # as wide as both panels


def _panel(axis: Axes, truth: BoolArray | None, prediction: BoolArray, rows: Sequence[int]) -> None:
    seconds = prediction.shape[0]
    for row, c in enumerate(rows):
        right = prediction[:, c] if truth is None else prediction[:, c] & truth[:, c]
        wrong = np.zeros_like(right) if truth is None else prediction[:, c] & ~truth[:, c]
        if truth is not None:
            axis.broken_barh(_runs(truth[:, c]), (row - 0.36, 0.34), color=DARK)
        below = row - 0.17 if truth is None else row + 0.02
        axis.broken_barh(_runs(right), (below, 0.34), color=BLUE)
        axis.broken_barh(_runs(wrong), (below, 0.34), facecolor=RED, edgecolor="white", hatch="////", linewidth=0)
        axis.axhline(row + 0.5, color="#CCCCCC", linewidth=0.8)
    axis.set_xlim(0, seconds)
    axis.set_xticks(range(0, seconds + 1, max(1, seconds // 10)))
    axis.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    axis.set_yticks([])
    axis.grid(axis="x")
    if not rows:
        text = "nothing predicted" if truth is None else "nothing there, nothing predicted"
        axis.text(seconds / 2, 0, text, ha="center", va="center", color="#777777")


def _runs(active: BoolArray) -> list[tuple[int, int]]:
    """Stretches of True as (start, length)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], active, [False])).astype(np.int8)))
    return [(int(start), int(end - start)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
