"""Figures of a run's losses and scores by epoch, and of its final scores by class."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle, groupby, product
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from avvp_dist.report.canvas import BLUE, DARK, GREEN, ORANGE, PURPLE, RED, SKY, new_figure
from avvp_dist.report.runs import TaskInfo
from avvp_dist.text.escape import mathtext

LOSS_COLORS = {"loss/total": DARK, "loss/audio": BLUE, "loss/visual": ORANGE, "loss/video": GREEN}
LOSS_NAMES = {"event": "windows of event"}
"""Names of losses that are called otherwise in the history, after the track that the loss is of."""

COLORS = (BLUE, ORANGE, GREEN, PURPLE, DARK, RED, SKY, "#A0A000", "#888888")
"""Colors of a panel's curves or bars, in their order."""
LINE_STYLES = ("-", "--", ":", "-.")
"""Line styles of a panel's curves: of the first ones, one of each color, then of those with the same colors again."""


def loss_and_scores(history: Sequence[Mapping[str, Any]], task: TaskInfo, path: Path, title: str, synthetic: bool) -> None:
    """Plot losses and validation scores by epoch, with the stages of the run as bands.

    Args:
        history: one row per epoch, in order: ``stage``, ``epoch``, ``loss/<name>`` and ``val/<metric>``. A row can lack any
            of the numbers.
        task: names of the metrics; those of a group share a panel.
        path: PNG to write.
        title: title of the figure.
        synthetic: whether the data are synthetic, which the figure then states.
    """
    losses = {key: key.removeprefix("loss/") for key in _loss_keys(history)}
    panels = [("Training loss", "loss", {key: LOSS_NAMES.get(name, name) for key, name in losses.items()})]
    for group in task.groups:
        metrics = task.in_group(group)
        names = {f"val/{metric.name}": metric.title for metric in metrics}
        title_of_group = f"Validation, {group} level" if group else "Validation"
        panels.append((title_of_group, metrics[0].unit, names))
    present = [panel for panel in panels if any(row.get(key) is not None for row in history for key in panel[2])]
    with new_figure(path, 10, 1.0 + 2.9 * max(1, len(present)), title, synthetic) as figure:
        axes = figure.subplots(max(1, len(present)), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (heading, unit, names) in zip(axes, present, strict=False):
            axis.set_title(heading, loc="left")
            axis.set_ylabel(unit)
            _curves(
                axis, history, names, curve_styles(names, LOSS_COLORS), strong=("loss/total", f"val/{task.default_metric}")
            )
        for axis in axes:
            _stage_bands(axis, history, named=axis is axes[0])
            axis.grid(axis="y")
        figure.align_ylabels(axes)
        axes[-1].set_xlabel("epoch, over all stages")
        axes[-1].set_xlim(0.5, len(history) + 0.5)
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))


def _loss_keys(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of losses in order of first appearance; ``total`` first, so that it is drawn below the others."""
    keys = dict.fromkeys(key for row in history for key in row if key.startswith("loss/") and row[key] is not None)
    return sorted(keys, key=lambda key: key != "loss/total")


def _curves(
    axis: Axes,
    history: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    styles: Mapping[str, tuple[str, str]],
    strong: Collection[str],
) -> None:
    for key, name in names.items():
        x, y = _points(history, key)
        color, line_style = styles[key]
        if x:
            axis.plot(
                x, y, color=color, linestyle=line_style, label=name, linewidth=2.4 if key in strong else 1.4,
                marker="o", markersize=3.5 if len(history) < 60 else 0,
            )  # fmt: skip
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def curve_styles(keys: Collection[str], fixed: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return color and line style of the curves of one panel; all different unless these are more than all combinations.

    Args:
        keys: of the curves, in order.
        fixed: solid colors of some of them, all different. In a panel with one of these, no other curve has them.
    """
    styles = {key: (color, LINE_STYLES[0]) for key, color in fixed.items()}
    taken = set(styles.values()) if styles.keys() & set(keys) else set()
    free = cycle((color, style) for style, color in product(LINE_STYLES, COLORS) if (color, style) not in taken)
    return {key: styles.get(key) or next(free) for key in keys}


def _points(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return epochs and values of one key, with a gap where a new stage begins."""
    x: list[float] = []
    y: list[float] = []
    for number, row in enumerate(history, start=1):
        if number > 1 and row["stage"] != history[number - 2]["stage"]:
            x.append(number - 0.5)
            y.append(math.nan)
        if row.get(key) is not None:
            x.append(number)
            y.append(row[key])
    return x, y


def _stage_bands(axis: Axes, history: Sequence[Mapping[str, Any]], named: bool) -> None:
    low, high = axis.get_ylim()
    if named:
        axis.set_ylim(low, high + 0.12 * (high - low))  # space for the stage names
    first = 1
    for number, (stage, rows) in enumerate(groupby(history, key=lambda row: row["stage"])):
        last = first + len(list(rows)) - 1
        axis.axvspan(first - 0.5, last + 0.5, color="#EEF3F7" if number % 2 == 0 else "#FFFFFF", zorder=-2)
        if number:
            axis.axvline(first - 0.5, color="#999999", linewidth=1, linestyle=":")
        if named:
            axis.text(
                (first + last) / 2,
                0.97,
                mathtext(stage),
                transform=axis.get_xaxis_transform(),
                ha="center",
                va="top",
                color="#555555",
            )
        first = last + 1


def class_bars(
    per_class: Mapping[str, Mapping[str, float | None]], task: TaskInfo, path: Path, title: str, synthetic: bool
) -> None:
    """Plot the metrics of each class as bars, one panel per group of metrics.

    Args:
        per_class: class -> name of a class metric -> value; None if the class does not occur and has no score.
        task: names of the class metrics.
        path: PNG to write.
        title: title of the figure.
        synthetic: whether the data are synthetic, which the figure then states.
    """
    names = list(per_class)
    groups = tuple(dict.fromkeys(metric.group for metric in task.class_metrics.values()))
    with new_figure(path, 10, 1.6 + 0.42 * len(names), title, synthetic) as figure:
        axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axis, group in zip(axes, groups, strict=True):
            metrics = task.of_classes(group)
            height = 0.81 / len(metrics)
            for number, metric in enumerate(metrics):
                offset = (number - (len(metrics) - 1) / 2) * height
                values = [per_class[name].get(metric.name) for name in names]
                rows = [row + offset for row in range(len(names))]
                bars = [value or 0 for value in values]
                axis.barh(rows, bars, height=height, color=COLORS[number], label=metric.title)
                absent = [row for row, value in zip(rows, values, strict=True) if value is None]
                axis.scatter([1.2] * len(absent), absent, marker="x", s=14, linewidths=1, color="#777777")
            axis.set_title(f"{group} level" if group else "", loc="left")
            axis.set_xlabel(metrics[0].unit)
            axis.set_xlim(0, 100)
            axis.grid(axis="x")
        axes[0].set_yticks(range(len(names)), [readable(name) for name in names])
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        handles, labels = axes[0].get_legend_handles_labels()
        handles.append(axes[0].scatter([], [], marker="x", s=14, color="#777777"))
        labels.append("not defined: no such event in this split, or never predicted")
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def readable(name: str) -> str:
    """Return a class name with spaces, escaped for matplotlib."""
    return mathtext(name.replace("_", " "))
