"""Figure of the labels that were removed as noise, and how many of them were noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from avvp_dist.metrics.denoising import SEGMENTS, WHOLE, WINDOWS, Levels
from avvp_dist.report.canvas import BLUE, DARK, RED, new_figure
from avvp_dist.report.curves import readable

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

_TITLES = {
    WHOLE: "Labels removed as noise",
    WINDOWS: "Window-level labels removed as noise",
    SEGMENTS: "Segment-level labels removed as noise",
}


class Counts(NamedTuple):
    """Per class [C]: labels, removed labels, removed noise, all noise; the last two only if the ground truth is known."""

    labels: IntArray
    removed: IntArray
    right: IntArray | None = None
    noise: IntArray | None = None


def removed_labels(classes: Sequence[str], levels: Levels, path: Path, synthetic: bool) -> None:
    """Plot the share of each class's labels that were removed, with counts; correct or not if the ground truth is known.

    Args:
        classes: names of the C classes.
        levels: removed labels, as `metrics.denoising.compare_labels` returns them; the finest level that all tracks
            have is drawn.
        path: the PNG to write.
        synthetic: whether the data are synthetic, which the figure then states.
    """
    tracks = max(levels.values(), key=len).keys()
    level = [name for name, of_level in levels.items() if of_level.keys() == tracks][-1]
    counts = [_count(*levels[level][track]) for track in tracks]
    known = all(count.noise is not None for count in counts)
    with new_figure(path, 12, 1.9 + 0.34 * len(classes), _TITLES[level], synthetic) as figure:
        axes = figure.subplots(1, 2 * len(tracks), sharey=True, width_ratios=((3, 2) if known else (3, 1)) * len(tracks))
        shares = [100 * part / np.maximum(of.labels, 1) for of in counts for part in of[1:] if part is not None]
        limit = min(100.0, max(5.0, 1.05 * float(np.max(shares))))
        for number, name in enumerate(tracks):
            _bars(axes[2 * number], name, counts[number])
            _numbers(axes[2 * number + 1], counts[number])
            axes[2 * number].set_xlim(0, limit)
        axes[0].set_yticks(range(len(classes)), [readable(name) for name in classes])
        axes[0].set_ylim(len(classes) - 0.4, -1.6)
        for axis in axes[2::2]:
            axis.tick_params(left=False)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _count(weak: BoolArray, removed: BoolArray, true: BoolArray | None) -> Counts:
    weak, removed = (np.asarray(labels, dtype=bool).reshape(-1, weak.shape[-1]) for labels in (weak, removed))
    count = (weak & removed).sum(axis=0)
    if true is None:
        return Counts(weak.sum(axis=0), count)
    noise = weak & ~np.asarray(true, dtype=bool).reshape(weak.shape)
    return Counts(weak.sum(axis=0), count, (noise & removed).sum(axis=0), noise.sum(axis=0))


def _bars(axis: Axes, name: str, counts: Counts) -> None:
    rows = np.arange(len(counts.labels))
    percent = 100 / np.maximum(counts.labels, 1)
    title = f"{name}: {counts.removed.sum()} of {counts.labels.sum()} removed"
    if counts.right is None or counts.noise is None:
        axis.barh(rows, counts.removed * percent, height=0.7, color=BLUE, label="removed (ground truth unknown)")
    else:
        right, wrong = counts.right * percent, (counts.removed - counts.right) * percent
        axis.barh(rows, right, height=0.7, color=BLUE, label="removed correctly")
        axis.barh(
            rows, wrong, left=right, height=0.7, color=RED, edgecolor="white", linewidth=0, hatch="////",
            label="removed incorrectly",
        )  # fmt: skip
        axis.scatter(counts.noise * percent, rows, marker="|", s=170, linewidths=2, color=DARK, label="all noise", zorder=3)
        right_sum, noise_sum = counts.right.sum(), counts.noise.sum()
        precision = f"precision {_share(right_sum, counts.removed.sum())} %"
        at_random = f"(at random {_share(noise_sum, counts.labels.sum())} %)"
        title += f"\n{precision} {at_random}, recall {_share(right_sum, noise_sum)} %"
    axis.set_title(title, loc="left")
    axis.set_xlabel("share of the class's labels, %")
    axis.grid(axis="x")


def _numbers(axis: Axes, counts: Counts) -> None:
    """Write the numbers behind the bars: removed/all labels, and precision and recall of each class in percent."""
    columns = [("removed", [f"{removed}/{labels}" for removed, labels in zip(counts.removed, counts.labels, strict=True)])]
    if counts.right is not None and counts.noise is not None:
        columns.append(("prec.", [_share(*pair) for pair in zip(counts.right, counts.removed, strict=True)]))
        columns.append(("recall", [_share(*pair) for pair in zip(counts.right, counts.noise, strict=True)]))
    axis.set_axis_off()
    for (head, cells), x in zip(columns, (0.42, 0.67, 0.93) if len(columns) > 1 else (0.85,), strict=True):
        for row, text in [(-1, head), *enumerate(cells)]:
            cell = axis.text(x, row, text, transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=10)
            cell.set_in_layout(False)  # it is inside its axis; layout of so many texts is slow


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}" if whole else "-"
