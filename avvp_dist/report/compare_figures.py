"""Figures of a comparison: every setting with its interval, the score against swept values, and the importance of keys."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from avvp_dist.metrics.significance import explained, t_interval
from avvp_dist.report.canvas import BLUE, DARK, ORANGE, new_figure
from avvp_dist.report.compare import Comparison
from avvp_dist.report.runs import RunGroup, metric_title
from avvp_dist.text.escape import mathtext

SPLIT_COLORS = {"val": BLUE, "test": ORANGE}
_MARKERS = {"val": "o", "test": "D"}
_MAX_SETTINGS = 40  # in one figure
_MAX_PANELS = 9  # keys plotted against the score
_BINS = 4  # for numbers of which nearly every run has a different value


def draw(folder: Path, comparison: Comparison) -> list[Path]:
    """Draw the figures that the comparison has data for.

    ``settings.png``: every setting; ``against.png``: the score against each swept value; for two keys ``heatmap.png``; for
    two or more ``importance.png``: the variance of the val score that each explains. All use the first view. Test scores
    appear only if the comparison shows them.

    Returns:
        the files, of which there are none if no run has scores.
    """
    keys = swept(comparison.groups)
    figures = {"settings": _settings} if _scored_splits(comparison) else {}
    if keys and figures:
        figures["against"] = _against
    if len(keys) == 2 and _points(comparison, "val"):
        figures["heatmap"] = _heatmap
    if len(keys) >= 2 and _points(comparison, "val"):
        figures["importance"] = _importance
    paths = []
    for name, draw_figure in figures.items():
        paths.append(folder / f"{name}.png")
        draw_figure(comparison, paths[-1])
    return paths


def swept(groups: Sequence[RunGroup]) -> list[str]:
    """Return the keys in which settings differ."""
    keys = dict.fromkeys(key for group in groups for key in group.keys)
    return [key for key in keys if len({_value(group, key) for group in groups}) > 1]


def importance(comparison: Comparison) -> tuple[dict[str, float | None], float | None]:
    """Return the share of the variance of the val score that each key explains alone, and the share left to seeds.

    Over all runs. A number with many values is binned into quarters. None if these runs do not determine the share.
    """
    options = comparison.options
    scores: list[float] = []
    group_of_run: list[RunGroup] = []
    for group in comparison.groups:
        values = group.values("val", options.views[0], options.metric)
        scores += values
        group_of_run += [group] * len(values)
    shares = {
        key: explained(scores, _binned([_value(group, key) for group in group_of_run])) for key in swept(comparison.groups)
    }
    by_setting = explained(scores, group_of_run)
    return shares, None if by_setting is None else 1 - by_setting


def _binned(values: Sequence[Hashable]) -> list[Hashable]:
    """Return values as groups; numbers that are mostly unique are put into bins of about equal size."""
    if not _all_numbers(values) or 2 * len(set(values)) <= len(values) or len(set(values)) <= _BINS:
        return list(values)
    numbers = np.array(values, dtype=float)
    return np.searchsorted(np.quantile(numbers, np.arange(1, _BINS) / _BINS), numbers).tolist()


def _settings(comparison: Comparison, path: Path) -> None:
    """Draw one row per setting: seeds as small markers, their mean and interval."""
    shown = comparison.groups[:_MAX_SETTINGS]
    rows = {group: row for row, group in enumerate(shown)}
    title = f"{_score(comparison)} of each setting"
    if len(shown) < len(comparison.groups):
        title += f" ({'best' if comparison.chosen else 'first'} {_MAX_SETTINGS} of {len(comparison.groups)})"
    names = [_wrapped(f"★ {group.label}" if group is comparison.chosen else group.label, 46) for group in shown]
    lines = max(name.count("\n") + 1 for name in names)
    with new_figure(path, 10, 1.9 + max(0.5, 0.2 + 0.19 * lines) * len(shown), title, comparison.synthetic) as figure:
        axis = figure.subplots()
        for split in _scored_splits(comparison):
            for group, values in _points(comparison, split):
                if group in rows:
                    _draw_group(axis, values, rows[group], split, across=True)
            _add_legend_entry(axis, comparison, split)
        axis.set_yticks(range(len(shown)), names, fontsize=9 if lines > 2 else None)
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.set_xlabel(_axis_label(comparison))
        axis.grid(axis="x")
        _legend(figure, axis, comparison)


def _against(comparison: Comparison, path: Path) -> None:
    """Draw one panel per key: every setting's mean score at its value of that key; with intervals for a single key."""
    keys = swept(comparison.groups)[:_MAX_PANELS]
    columns = min(len(keys), 3)
    rows = math.ceil(len(keys) / columns)
    title = f"{_score(comparison)} against {keys[0]}" if len(keys) == 1 else f"{_score(comparison)} against each key"
    with new_figure(path, 10, 1.4 + (4.2 if columns == 1 else 3.4) * rows, title, comparison.synthetic) as figure:
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axis in axes.ravel()[len(keys) :]:
            axis.remove()
        for axis, key in zip(axes.ravel(), keys, strict=False):
            _panel(axis, comparison, key, joined=len(keys) == 1)
            axis.set_xlabel(mathtext(key))
        for axis in axes[:, 0]:
            axis.set_ylabel(_axis_label(comparison))
        _legend(figure, axes[0, 0], comparison if len(keys) == 1 else None)


def _panel(axis: Axes, comparison: Comparison, key: str, joined: bool) -> None:
    values = list(dict.fromkeys(_value(group, key) for group in comparison.groups))
    numbers = _all_numbers(values)
    if numbers:
        values.sort()
        if min(values) > 0 and max(values) / min(values) >= 10:
            axis.set_xscale("log")
        if len(values) <= 6:
            axis.set_xticks(values, [f"{value:g}" for value in values])
            axis.minorticks_off()
    else:
        axis.set_xticks(range(len(values)), [_wrapped(str(value), 14) for value in values])
        axis.set_xlim(-0.5, len(values) - 0.5)
    for split in _scored_splits(comparison):
        points = _points(comparison, split)
        at = [_value(group, key) if numbers else values.index(_value(group, key)) for group, _ in points]
        for position, (_, scores) in zip(at, points, strict=True):
            _draw_group(axis, scores if joined else [statistics.fmean(scores)], position, split)
        if joined and numbers:
            means = dict(zip(at, (statistics.fmean(scores) for _, scores in points), strict=True))
            _plot(axis, sorted(means), [means[value] for value in sorted(means)], split, linewidth=1.2)
        _add_legend_entry(axis, comparison, split)
    axis.grid(axis="y")


def _heatmap(comparison: Comparison, path: Path) -> None:
    """Draw the mean val score of each combination of two keys, with half of its interval if there are several seeds."""
    across, down = swept(comparison.groups)
    columns, rows = (_sorted_values({_value(group, key) for group in comparison.groups}) for key in (across, down))
    scores = {(_value(s, down), _value(s, across)): values for s, values in _points(comparison, "val")}
    means = np.full((len(rows), len(columns)), np.nan)
    for (row, column), values in scores.items():
        means[rows.index(row), columns.index(column)] = statistics.fmean(values)
    size = max(5.5, 2.6 + 1.1 * len(columns)), 2.2 + 0.75 * len(rows)
    with new_figure(path, *size, f"{_score(comparison)} on val", comparison.synthetic) as figure:
        axis = figure.subplots()
        image = axis.imshow(means, cmap="cividis", aspect="auto")
        middle = (np.nanmin(means) + np.nanmax(means)) / 2
        for row, column in np.ndindex(means.shape):
            found = scores.get((rows[row], columns[column]))
            text = _cell_text(found) if found else "not run"
            color = "#777777" if not found else "white" if means[row, column] < middle else "black"
            axis.text(column, row, text, ha="center", va="center", color=color)
        axis.set_xticks(range(len(columns)), [_wrapped(_value_text(value), 14) for value in columns])
        axis.set_yticks(range(len(rows)), [_wrapped(_value_text(value), 20) for value in rows])
        axis.set_xlabel(mathtext(across))
        axis.set_ylabel(mathtext(down))
        axis.spines[:].set_visible(False)
        figure.colorbar(image, ax=axis, label=_axis_label(comparison))
        figure.supxlabel("mean over seeds ± half of its 95 % interval", fontsize=9, color="#555555")


def _importance(comparison: Comparison, path: Path) -> None:
    """Draw one bar per key: the share of the variance of val scores that it explains alone; and the share of seeds."""
    shares, seeds = importance(comparison)
    known = sorted(((key, share) for key, share in shares.items() if share is not None), key=lambda item: -item[1])
    bars = [(key, share, BLUE) for key, share in known]
    bars += [("seeds", seeds, "#999999")] if seeds is not None else []
    unknown = [key for key, share in shares.items() if share is None]
    runs = sum(len(group.runs) for group in comparison.groups)
    title = f"Importance of keys for the val score: {_score(comparison)}, {runs} runs"
    with new_figure(path, 10, 2.2 + 0.45 * max(1, len(bars) + len(unknown)), title, comparison.synthetic) as figure:
        axis = figure.subplots()
        for row, (_, share, color) in enumerate(bars):
            axis.barh(row, 100 * share, color=color, height=0.6)
            axis.text(100 * share + 1, row, f"{100 * share:.0f} %", va="center")
        for row, _ in enumerate(unknown, start=len(bars)):
            axis.text(1, row, "not determined by these runs", va="center", color="#777777")
        names = [name for name, _, _ in bars] + unknown
        axis.set_yticks(range(len(names)), [mathtext(name) for name in names])
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xlim(0, 110)
        axis.set_xticks(range(0, 101, 20))
        axis.set_xlabel("variance explained by each key alone, % (need not add up to 100: keys interact, runs are few)")
        axis.grid(axis="x")


def _draw_group(axis: Axes, values: Sequence[float], position: Any, split: str, across: bool = False) -> None:
    """Draw one setting on one split: seeds as faint markers, the interval as a bar, the mean as a strong marker."""
    interval, marker = t_interval(values), _MARKERS[split]
    if interval:
        _plot(axis, [position] * 2, interval, split, across, linewidth=1.8)
        _plot(
            axis, [position] * len(values), values, split, across, linestyle="none", marker=marker, markersize=3.5, alpha=0.5
        )
    edge = {"markeredgecolor": DARK, "markeredgewidth": 0.6}
    _plot(axis, [position], [statistics.fmean(values)], split, across, marker=marker, markersize=7, **edge)


def _plot(
    axis: Axes, positions: Sequence[Any], scores: Sequence[float], split: str, across: bool = False, **style: Any
) -> None:
    """Draw a line slightly offset from its data, so that val and test do not overlap."""
    x, y = (scores, positions) if across else (positions, scores)
    points = (-4 if split == "val" else 4) / 72
    assert axis.figure is not None
    right, up = (0.0, -points) if across else (points, 0.0)
    offset = ScaledTranslation(right, up, axis.figure.dpi_scale_trans)
    axis.add_artist(Line2D(x, y, color=SPLIT_COLORS[split], transform=axis.transData + offset, **style))
    axis.update_datalim(np.column_stack([x, y]))  # add_artist does not update the limits, and plot would get them wrong
    axis.autoscale_view()


def _add_legend_entry(axis: Axes, comparison: Comparison, split: str) -> None:
    """Add a split to the legend."""
    only = ", of the setting selected on val" if comparison.chosen and split == "test" else ""
    axis.plot([], [], marker=_MARKERS[split], color=SPLIT_COLORS[split], label=f"{split}{only}")


def _scored_splits(comparison: Comparison) -> list[str]:
    """Splits of which any shown setting has scores."""
    return [split for split in comparison.options.splits if _points(comparison, split)]


def _points(comparison: Comparison, split: str) -> list[tuple[RunGroup, list[float]]]:
    options = comparison.options
    if split not in options.splits:
        return []
    found = [(group, group.values(split, options.views[0], options.metric)) for group in comparison.shown(split)]
    return [(group, values) for group, values in found if values]


def _score(comparison: Comparison) -> str:
    view = comparison.task.views[comparison.options.views[0]]
    return f"{metric_title(comparison.metric)} ({view.title})"


def _axis_label(comparison: Comparison) -> str:
    return f"{comparison.metric.title}, {comparison.metric.unit}"


def _legend(figure: Figure, axis: Axes, comparison: Comparison | None) -> None:
    """Draw the legend: splits, and intervals if a comparison with several seeds is given."""
    if comparison and any(len(group.runs) > 1 for group in comparison.groups):
        axis.plot([], [], color=DARK, linewidth=1.6, label="95 % interval over seeds")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _cell_text(values: Sequence[float]) -> str:
    interval = t_interval(values)
    mean = f"{statistics.fmean(values):.1f}"
    return mean if interval is None else f"{mean}\n± {(interval[1] - interval[0]) / 2:.1f}"


def _value(group: RunGroup, key: str) -> Any:
    value = group.keys.get(key, "-")
    return "none" if value is None else str(value) if isinstance(value, list | dict | bool) else value


def _all_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _sorted_values(values: set[Any]) -> list[Any]:
    return sorted(values) if _all_numbers(list(values)) else sorted(values, key=str)


def _value_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _wrapped(text: str, width: int) -> str:
    """Wrap a long label into several lines, at spaces if possible."""
    lines = [""]
    for word in text.split():
        pieces = [word[start : start + width] for start in range(0, len(word), width)]
        for piece in pieces:
            if lines[-1] and len(lines[-1]) + 1 + len(piece) > width:
                lines.append("")
            lines[-1] = f"{lines[-1]} {piece}".strip()
    return mathtext("\n".join(lines))
