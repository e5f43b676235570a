"""A comparison in pictures: every setting with its interval, the score against swept values, and which keys matter."""

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

from avvp_dist.metrics.names import METRIC_TITLES
from avvp_dist.metrics.significance import explained, t_interval
from avvp_dist.report.canvas import BLUE, DARK, ORANGE, picture
from avvp_dist.report.compare import Comparison
from avvp_dist.report.runs import Setting
from avvp_dist.text.escape import drawn

SPLIT_COLOURS = {"val": BLUE, "test": ORANGE}
_MARKS = {"val": "o", "test": "D"}
_MOST = 40  # settings in one picture
_PANELS = 9  # keys drawn against the score
_BINS = 4  # of a number that nearly every run has another value of


def draw(folder: Path, comparison: Comparison) -> list[Path]:
    """Draws what the comparison can be drawn as.

    ``settings.png`` always; ``against.png``, the score against each swept value; for two keys ``heatmap.png``; for two or
    more ``importance.png``, the variance of the val score that each explains. All under the view's first protocol. Test
    scores appear where the comparison shows them.

    Returns:
        the files.
    """
    keys = swept(comparison.settings)
    drawn = {"settings": _settings} if _drawn(comparison) else {}
    if keys and drawn:
        drawn["against"] = _against
    if len(keys) == 2 and _points(comparison, "val"):
        drawn["heatmap"] = _heatmap
    if len(keys) >= 2 and _points(comparison, "val"):
        drawn["importance"] = _importance
    paths = []
    for name, artist in drawn.items():
        paths.append(folder / f"{name}.png")
        artist(comparison, paths[-1])
    return paths


def swept(settings: Sequence[Setting]) -> list[str]:
    """Keys in which settings differ."""
    keys = dict.fromkeys(key for setting in settings for key in setting.keys)
    return [key for key in keys if len({_value(setting, key) for setting in settings}) > 1]


def importance(comparison: Comparison) -> tuple[dict[str, float | None], float | None]:
    """Share of the variance of the val score, over all runs, that each key explains alone; and that seeds are left with.

    A number with many values is cut into quarters. None where it cannot be told.
    """
    view = comparison.view
    scores: list[float] = []
    of_run: list[Setting] = []
    for setting in comparison.settings:
        values = setting.values("val", view.protocols[0], view.level, view.metric)
        scores += values
        of_run += [setting] * len(values)
    shares = {
        key: explained(scores, _groups([_value(setting, key) for setting in of_run])) for key in swept(comparison.settings)
    }
    by_setting = explained(scores, of_run)
    return shares, None if by_setting is None else 1 - by_setting


def _groups(values: Sequence[Hashable]) -> list[Hashable]:
    """Values as groups; numbers that mostly stand alone in bins of about equal size."""
    if not _numbers(values) or 2 * len(set(values)) <= len(values) or len(set(values)) <= _BINS:
        return list(values)
    numbers = np.array(values, dtype=float)
    return np.searchsorted(np.quantile(numbers, np.arange(1, _BINS) / _BINS), numbers).tolist()


def _settings(comparison: Comparison, path: Path) -> None:
    """A row a setting: its seeds as small marks, their mean and interval."""
    shown = comparison.settings[:_MOST]
    rows = {setting: row for row, setting in enumerate(shown)}
    title = f"{_score(comparison)} of each setting"
    if len(shown) < len(comparison.settings):
        title += f" ({'best' if comparison.chosen else 'first'} {_MOST} of {len(comparison.settings)})"
    names = [_wrapped(f"★ {each.label}" if each is comparison.chosen else each.label, 46) for each in shown]
    lines = max(name.count("\n") + 1 for name in names)
    with picture(path, 10, 1.9 + max(0.5, 0.2 + 0.19 * lines) * len(shown), title, comparison.synthetic) as figure:
        axis = figure.subplots()
        for split in _drawn(comparison):
            for setting, values in _points(comparison, split):
                if setting in rows:
                    _mark(axis, values, rows[setting], split, across=True)
            _name(axis, comparison, split)
        axis.set_yticks(range(len(shown)), names, fontsize=9 if lines > 2 else None)
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.set_xlabel("F, %")
        axis.grid(axis="x")
        _legend(figure, axis, comparison)


def _against(comparison: Comparison, path: Path) -> None:
    """A panel a key: every setting's mean score at its value of that key; with intervals where there is one key only."""
    keys = swept(comparison.settings)[:_PANELS]
    columns = min(len(keys), 3)
    rows = math.ceil(len(keys) / columns)
    title = f"{_score(comparison)} against {keys[0]}" if len(keys) == 1 else f"{_score(comparison)} against each key"
    with picture(path, 10, 1.4 + (4.2 if columns == 1 else 3.4) * rows, title, comparison.synthetic) as figure:
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axis in axes.ravel()[len(keys) :]:
            axis.remove()
        for axis, key in zip(axes.ravel(), keys, strict=False):
            _panel(axis, comparison, key, joined=len(keys) == 1)
            axis.set_xlabel(drawn(key))
        for axis in axes[:, 0]:
            axis.set_ylabel("F, %")
        _legend(figure, axes[0, 0], comparison if len(keys) == 1 else None)


def _panel(axis: Axes, comparison: Comparison, key: str, joined: bool) -> None:
    values = list(dict.fromkeys(_value(setting, key) for setting in comparison.settings))
    numbers = _numbers(values)
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
    for split in _drawn(comparison):
        points = _points(comparison, split)
        at = [_value(setting, key) if numbers else values.index(_value(setting, key)) for setting, _ in points]
        for place, (_, scores) in zip(at, points, strict=True):
            _mark(axis, scores if joined else [statistics.fmean(scores)], place, split)
        if joined and numbers:
            means = dict(zip(at, (statistics.fmean(scores) for _, scores in points), strict=True))
            _plot(axis, sorted(means), [means[value] for value in sorted(means)], split, linewidth=1.2)
        _name(axis, comparison, split)
    axis.grid(axis="y")


def _heatmap(comparison: Comparison, path: Path) -> None:
    """Mean val score where two keys meet, with half of its interval where there are seeds."""
    across, down = swept(comparison.settings)
    columns, rows = (_in_order({_value(setting, key) for setting in comparison.settings}) for key in (across, down))
    scores = {(_value(s, down), _value(s, across)): values for s, values in _points(comparison, "val")}
    means = np.full((len(rows), len(columns)), np.nan)
    for (row, column), values in scores.items():
        means[rows.index(row), columns.index(column)] = statistics.fmean(values)
    size = max(5.5, 2.6 + 1.1 * len(columns)), 2.2 + 0.75 * len(rows)
    with picture(path, *size, f"{_score(comparison)} on val", comparison.synthetic) as figure:
        axis = figure.subplots()
        image = axis.imshow(means, cmap="cividis", aspect="auto")
        middle = (np.nanmin(means) + np.nanmax(means)) / 2
        for row, column in np.ndindex(means.shape):
            found = scores.get((rows[row], columns[column]))
            text = _in_cell(found) if found else "not run"
            colour = "#777777" if not found else "white" if means[row, column] < middle else "black"
            axis.text(column, row, text, ha="center", va="center", color=colour)
        axis.set_xticks(range(len(columns)), [_wrapped(_text(value), 14) for value in columns])
        axis.set_yticks(range(len(rows)), [_wrapped(_text(value), 20) for value in rows])
        axis.set_xlabel(drawn(across))
        axis.set_ylabel(drawn(down))
        axis.spines[:].set_visible(False)
        figure.colorbar(image, ax=axis, label="F, %")
        figure.supxlabel("mean over seeds ± half of its 95 % interval", fontsize=9, color="#555555")


def _importance(comparison: Comparison, path: Path) -> None:
    """A bar a key: how much of the variance of val scores it explains alone, and what the seeds make of it."""
    shares, seeds = importance(comparison)
    told = sorted(((key, share) for key, share in shares.items() if share is not None), key=lambda each: -each[1])
    bars = [(key, share, BLUE) for key, share in told]
    bars += [("seeds", seeds, "#999999")] if seeds is not None else []
    untold = [key for key, share in shares.items() if share is None]
    runs = sum(len(setting.runs) for setting in comparison.settings)
    title = f"What the val score depends on: {_score(comparison)}, {runs} runs"
    with picture(path, 10, 2.2 + 0.45 * max(1, len(bars) + len(untold)), title, comparison.synthetic) as figure:
        axis = figure.subplots()
        for row, (_, share, colour) in enumerate(bars):
            axis.barh(row, 100 * share, color=colour, height=0.6)
            axis.text(100 * share + 1, row, f"{100 * share:.0f} %", va="center")
        for row, _ in enumerate(untold, start=len(bars)):
            axis.text(1, row, "cannot be told from these runs", va="center", color="#777777")
        names = [name for name, _, _ in bars] + untold
        axis.set_yticks(range(len(names)), [drawn(name) for name in names])
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xlim(0, 110)
        axis.set_xticks(range(0, 101, 20))
        axis.set_xlabel("variance explained by each key alone, % (they need not add up: keys act together, runs are few)")
        axis.grid(axis="x")


def _mark(axis: Axes, values: Sequence[float], place: Any, split: str, across: bool = False) -> None:
    """One setting on one split: seeds as faint marks, the interval as a bar, the mean as a strong mark."""
    interval, marker = t_interval(values), _MARKS[split]
    if interval:
        _plot(axis, [place] * 2, interval, split, across, linewidth=1.8)
        _plot(axis, [place] * len(values), values, split, across, linestyle="none", marker=marker, markersize=3.5, alpha=0.5)
    edge = {"markeredgecolor": DARK, "markeredgewidth": 0.6}
    _plot(axis, [place], [statistics.fmean(values)], split, across, marker=marker, markersize=7, **edge)


def _plot(axis: Axes, places: Sequence[Any], scores: Sequence[float], split: str, across: bool = False, **look: Any) -> None:
    """A line a little aside of its data, so that val and test do not cover each other."""
    x, y = (scores, places) if across else (places, scores)
    points = (-4 if split == "val" else 4) / 72
    assert axis.figure is not None
    right, up = (0.0, -points) if across else (points, 0.0)
    aside = ScaledTranslation(right, up, axis.figure.dpi_scale_trans)
    axis.add_artist(Line2D(x, y, color=SPLIT_COLOURS[split], transform=axis.transData + aside, **look))
    axis.update_datalim(np.column_stack([x, y]))  # add_artist leaves the limits alone, and plot would get them wrong
    axis.autoscale_view()


def _name(axis: Axes, comparison: Comparison, split: str) -> None:
    """An entry of the legend."""
    only = ", of the setting chosen on val" if comparison.chosen and split == "test" else ""
    axis.plot([], [], marker=_MARKS[split], color=SPLIT_COLOURS[split], label=f"{split}{only}")


def _drawn(comparison: Comparison) -> list[str]:
    """Splits there is anything to draw of."""
    return [split for split in comparison.view.splits if _points(comparison, split)]


def _points(comparison: Comparison, split: str) -> list[tuple[Setting, list[float]]]:
    view = comparison.view
    if split not in view.splits:
        return []
    found = [(each, each.values(split, view.protocols[0], view.level, view.metric)) for each in comparison.shown(split)]
    return [(setting, values) for setting, values in found if values]


def _score(comparison: Comparison) -> str:
    view = comparison.view
    return f"{view.level}-level {METRIC_TITLES[view.metric]} F ({view.protocols[0]} protocol)"


def _legend(figure: Figure, axis: Axes, comparison: Comparison | None) -> None:
    """Names of the splits, and of the intervals where the comparison given has any."""
    if comparison and any(len(setting.runs) > 1 for setting in comparison.settings):
        axis.plot([], [], color=DARK, linewidth=1.6, label="95 % interval over seeds")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _in_cell(values: Sequence[float]) -> str:
    interval = t_interval(values)
    mean = f"{statistics.fmean(values):.1f}"
    return mean if interval is None else f"{mean}\n± {(interval[1] - interval[0]) / 2:.1f}"


def _value(setting: Setting, key: str) -> Any:
    value = setting.keys.get(key, "-")
    return "none" if value is None else str(value) if isinstance(value, list | dict | bool) else value


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _in_order(values: set[Any]) -> list[Any]:
    return sorted(values) if _numbers(list(values)) else sorted(values, key=str)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _wrapped(text: str, width: int) -> str:
    """A long label in several lines, broken at spaces where it has any."""
    lines = [""]
    for word in text.split():
        pieces = [word[start : start + width] for start in range(0, len(word), width)]
        for piece in pieces:
            if lines[-1] and len(lines[-1]) + 1 + len(piece) > width:
                lines.append("")
            lines[-1] = f"{lines[-1]} {piece}".strip()
    return drawn("\n".join(lines))
