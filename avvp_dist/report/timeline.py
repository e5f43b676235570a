"""Figure of predictions, second by second, below the annotations; one column per track."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from avvp_dist.report.canvas import BLUE, DARK, RED, new_figure
from avvp_dist.report.curves import readable
from avvp_dist.text.escape import mathtext

BoolArray = NDArray[np.bool_]

_HEADLINE = 0.9  # height, in rows


@dataclass(frozen=True)
class TimelineVideo:
    """A video: its id and the names of its weak labels."""

    id: str
    weak: tuple[str, ...]


def events(
    videos: Sequence[TimelineVideo],
    classes: Sequence[str],
    truth: Mapping[str, BoolArray] | None,
    predicted: Mapping[str, BoolArray],
    path: Path,
    title: str,
    synthetic: bool,
    background: bool = False,
) -> None:
    """Plot a few videos: one panel per track, one row per true or predicted class, annotation above prediction.

    Args:
        videos: the n videos; five or six fill a screen.
        classes: the C class names.
        truth: annotated seconds by track, [n,T,C] each; None if there are no annotations.
        predicted: predicted seconds by track, [n,T,C] each.
        path: PNG to write.
        title: title of the figure.
        synthetic: whether the data are synthetic, which the figure then states.
        background: whether seconds without an event are a class of their own. It is not drawn, which the figure then states.
    """
    pairs = [(None if truth is None else truth[track], predicted[track]) for track in predicted]
    shown = [_classes_of(number, pairs) for number in range(len(videos))]
    heights = [max(1, len(rows)) for rows in shown]
    # one axis per track with all videos in it: one axis per video and track takes 1.6 times as long to draw
    tops = [sum(heights[:number]) + _HEADLINE * (number + 1) for number in range(len(videos))]
    with new_figure(path, 10, 1.6 + 0.4 * (tops[-1] + heights[-1]), title, synthetic) as figure:
        axes = figure.subplots(1, len(pairs), sharex=True, sharey=True, squeeze=False)[0]
        for axis, name, (true, prediction) in zip(axes, predicted, pairs, strict=True):
            for number, top in enumerate(tops):
                _panel(axis, top, None if true is None else true[number], prediction[number], shown[number])
            axis.set_title(name)
            axis.set_xlabel("seconds")
            axis.grid(axis="x")
            axis.spines[:].set_visible(False)
            axis.tick_params(left=False, bottom=False)
        names = {
            top + row: readable(classes[c]) for top, rows in zip(tops, shown, strict=True) for row, c in enumerate(rows)
        }
        axes[0].set_yticks(list(names), list(names.values()))
        axes[0].set_ylim(tops[-1] + heights[-1] - 0.5, -0.2)  # less space above the first headline than between videos
        seconds = pairs[0][1].shape[1]
        axes[0].set_xlim(0, seconds)
        axes[0].set_xticks(range(0, seconds + 1, max(1, seconds // 10)))
        axes[0].set_zorder(1)  # headlines extend over the other axis
        axes[0].patch.set_visible(False)
        for video, top in zip(videos, tops, strict=True):
            axes[0].text(0, top - 0.58, _headline(video), fontsize=11, fontweight="bold", va="bottom").set_in_layout(False)
        labels = {"ground truth": DARK} if truth is not None else {}
        handles = [Patch(color=color, label=name) for name, color in labels.items()]
        handles.append(Patch(color=BLUE, label="predicted, correct" if labels else "predicted"))
        if labels:
            handles.append(Patch(facecolor=RED, edgecolor="white", hatch="////", label="predicted, incorrect"))
        note = "background, annotated or predicted, is not drawn" if labels else "predicted background is not drawn"
        figure.legend(handles=handles, loc="outside lower center", ncols=3, title=note if background else None)


def _classes_of(number: int, pairs: Sequence[tuple[BoolArray | None, BoolArray]]) -> list[int]:
    """Return the classes that are true or predicted in any track of one video."""
    found = [array[number].any(axis=0) for pair in pairs for array in pair if array is not None]
    return [int(c) for c in np.flatnonzero(np.any(found, axis=0))]


def _headline(video: TimelineVideo) -> str:
    weak = ", ".join(readable(name) for name in video.weak) or "none"
    text = f"{mathtext(video.id)}   weak labels: {weak}"
    return text if len(text) <= 90 else f"{text[:88]}…"  # as wide as both panels


def _panel(axis: Axes, top: float, truth: BoolArray | None, prediction: BoolArray, rows: Sequence[int]) -> None:
    """Draw one video and modality, with its first row at ``top``."""
    seconds = prediction.shape[0]
    for number, c in enumerate(rows):
        y = top + number
        right = prediction[:, c] if truth is None else prediction[:, c] & truth[:, c]
        wrong = np.zeros_like(right) if truth is None else prediction[:, c] & ~truth[:, c]
        if truth is not None:
            axis.broken_barh(_runs(truth[:, c]), (y - 0.36, 0.34), color=DARK)
        below = y - 0.17 if truth is None else y + 0.02
        axis.broken_barh(_runs(right), (below, 0.34), color=BLUE)
        axis.broken_barh(_runs(wrong), (below, 0.34), facecolor=RED, edgecolor="white", hatch="////", linewidth=0)
        if number:
            axis.axhline(y - 0.5, color="#CCCCCC", linewidth=0.8)
    axis.broken_barh([(0, seconds)], (top - 0.5 - _HEADLINE, _HEADLINE), color="white", linewidth=2)  # hides the grid
    axis.hlines(top + max(1, len(rows)) - 0.5, 0, seconds, color=DARK, linewidth=1, clip_on=False)
    if not rows:
        text = "nothing predicted" if truth is None else "nothing annotated, nothing predicted"
        axis.text(seconds / 2, top, text, ha="center", va="center", color="#777777")


def _runs(active: BoolArray) -> list[tuple[int, int]]:
    """Return runs of True as (start, length)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], active, [False])).astype(np.int8)))
    return [(int(start), int(end - start)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
