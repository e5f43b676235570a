"""Figures of a run's losses and scores by epoch, and of its final scores by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from avvp_dist.metrics.names import KINDS, LEVELS, METRIC_TITLES
from avvp_dist.report.canvas import BLUE, COLORS, DARK, GREEN, ORANGE, PURPLE, RED, SKY, new_figure
from avvp_dist.text.escape import mathtext

LOSS_COLORS = {"total": DARK, "audio": BLUE, "visual": ORANGE, "video": GREEN}
OTHER_COLORS = (PURPLE, RED, SKY, "#A0A000", "#888888")


def loss_and_scores(history: Sequence[Mapping[str, Any]], path: Path, title: str, synthetic: bool) -> None:
    """Plot losses and validation scores by epoch, with the stages of the run as bands.

    Args:
        history: one row per epoch, in order: ``stage``, ``epoch``, ``loss/<name>``, ``val/segment.<metric>`` and
            ``val/event.<metric>`` in percent. A row can lack any of the numbers.
        path: PNG to write.
        title: title of the figure.
        synthetic: whether the data are synthetic, which the figure then states.
    """
    panels = [
        ("Training loss", "loss", "loss/", LOSS_COLORS, {}),
        *((f"Validation, {level} level", "F, %", f"val/{level}.", COLORS, METRIC_TITLES) for level in LEVELS),
    ]
    present = [panel for panel in panels if _keys(history, panel[2])]
    with new_figure(path, 10, 1.0 + 2.9 * max(1, len(present)), title, synthetic) as figure:
        axes = figure.subplots(max(1, len(present)), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (title, unit, prefix, colors, names) in zip(axes, present, strict=False):
            axis.set_title(title, loc="left")
            axis.set_ylabel(unit)
            _curves(axis, history, prefix, colors, names)
        for axis in axes:
            _stage_bands(axis, history, named=axis is axes[0])
            axis.grid(axis="y")
        figure.align_ylabels(axes)
        axes[-1].set_xlabel("epoch, over all stages")
        axes[-1].set_xlim(0.5, len(history) + 0.5)
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))


def _keys(history: Sequence[Mapping[str, Any]], prefix: str) -> list[str]:
    """Return keys with ``prefix`` in order of first appearance; ``total`` first, so that it is drawn below the others."""
    keys = dict.fromkeys(key for row in history for key in row if key.startswith(prefix) and row[key] is not None)
    return sorted(keys, key=lambda key: key != f"{prefix}total")


def _curves(axis: Axes, history: Sequence[Mapping[str, Any]], prefix: str, colors: Mapping, names: Mapping) -> None:
    others = cycle(OTHER_COLORS)
    for key in _keys(history, prefix):
        name = key.removeprefix(prefix)
        strong = name in ("total", "type", "event")
        x, y = _points(history, key)
        axis.plot(
            x, y, color=colors.get(name) or next(others), label=names.get(name, name), linewidth=2.2 if strong else 1.4,
            linestyle="--" if name == "event" else "-", marker="o", markersize=3.5 if len(history) < 60 else 0,
        )  # fmt: skip
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


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
    per_class: Mapping[str, Mapping[str, Mapping[str, float | None]]], path: Path, title: str, synthetic: bool
) -> None:
    """Plot per-class F-scores as bars: segment level at the left, event level at the right.

    Args:
        per_class: class -> ``segment`` and ``event`` -> ``audio``, ``visual``, ``audio_visual`` in percent; None if the
            class does not occur and has no score.
        path: PNG to write.
        title: title of the figure.
        synthetic: whether the data are synthetic, which the figure then states.
    """
    names = list(per_class)
    with new_figure(path, 10, 1.6 + 0.42 * len(names), title, synthetic) as figure:
        axes = figure.subplots(1, 2, sharey=True, squeeze=False)[0]
        for axis, level in zip(axes, LEVELS, strict=True):
            for offset, kind in zip((-0.27, 0.0, 0.27), KINDS, strict=True):
                values = [per_class[name][level][kind] for name in names]
                rows = [number + offset for number in range(len(names))]
                axis.barh(rows, [value or 0 for value in values], height=0.27, color=COLORS[kind], label=METRIC_TITLES[kind])
                absent = [row for row, value in zip(rows, values, strict=True) if value is None]
                axis.scatter([1.2] * len(absent), absent, marker="x", s=14, linewidths=1, color="#777777")
            axis.set_title(f"{level} level", loc="left")
            axis.set_xlabel("F, %")
            axis.set_xlim(0, 100)
            axis.grid(axis="x")
        axes[0].set_yticks(range(len(names)), [readable(name) for name in names])
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        handles = [*axes[0].get_legend_handles_labels()[0], axes[0].scatter([], [], marker="x", s=14, color="#777777")]
        labels = [*(METRIC_TITLES[kind] for kind in KINDS), "no such event in this split"]
        figure.legend(handles, labels, loc="outside lower center", ncols=4)


def readable(name: str) -> str:
    """Return a class name with spaces, escaped for matplotlib."""
    return mathtext(name.replace("_", " "))
