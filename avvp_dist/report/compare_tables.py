"""A comparison as tables of text, for a terminal, Markdown and LaTeX; and as CSV, for programs."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from avvp_dist.metrics.significance import Interval, t_interval
from avvp_dist.report.compare import Comparison, PairedTest
from avvp_dist.report.published import PublishedRow, PublishedScores
from avvp_dist.report.runs import RunGroup, metric_title, reference_rows
from avvp_dist.report.text_table import TextTable
from avvp_dist.tasks import TASKS
from avvp_dist.tasks.base import Metric
from avvp_dist.text import escape

CHOSEN = "★"
_DASH = "-"


def tables(comparison: Comparison, published: PublishedScores | None = None) -> list[TextTable]:
    """Return the tables that the comparison's options select: scores, then tests, then published scores."""
    options = comparison.options
    found = []
    for split in options.splits:
        for view in options.views:
            found += [_scores(comparison, split, view, group) for group in options.groups]
            if options.per_class:
                found.append(_classes(comparison, split, view))
    found.append(_tests(comparison))
    if published:
        found.append(_published(comparison, published))
    return [table for table in found if table.rows]


def csv_text(comparison: Comparison) -> str:
    """Return every score of the settings and splits that the comparison shows, one per row, under every view.

    Columns: the setting, its value of each key in which settings differ, split, view, metric and class (empty for all), the
    values by seed, their mean, standard deviation and interval; then, if it was tested, the difference from the baseline
    with both intervals, and p-values before and after correction.
    """
    keys = _keys(comparison.groups)
    tests = {(test.group.label, test.split, test.view): test for test in comparison.tests}
    columns = ["split", "view", "metric", "class", "seeds", "values", "mean", "std", "low", "high", "synthetic"]
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["setting", *map(escape.csv, keys), *columns, *_TEST_COLUMNS])
    for split in comparison.options.splits:
        for group in comparison.shown(split):
            start = [escape.csv(value) for value in (group.label, *(group.keys.get(key, "") for key in keys), split)]
            for view, metric, name, values in _all_scores(group, split):
                test = tests.get((group.label, split, view))
                tested = test is not None and not name and metric == comparison.options.metric
                seeds = [" ".join(map(str, group.seeds)), " ".join(f"{value:.6g}" for value in values)]
                row = [*start, view, metric, escape.csv(name), *seeds, *_figures(values), group.synthetic]
                writer.writerow([*row, *(_test_figures(comparison, test) if tested and test else _UNTESTED)])
    return content.getvalue()


_TEST_COLUMNS = [
    "baseline",
    "difference",
    *(f"{question}_{figure}" for question in ("videos", "seeds") for figure in ("low", "high", "p", "p_holm")),
]
_UNTESTED = [""] * len(_TEST_COLUMNS)


def _test_figures(comparison: Comparison, test: PairedTest) -> list[Any]:
    found = test.difference
    seeds = found.seeds or ("", "")
    figures = [found.mean, *found.videos, found.videos_p, test.videos_p, *seeds, found.seeds_p, test.seeds_p]
    return [escape.csv(comparison.baseline.label), *("" if value in (None, "") else f"{value:.6g}" for value in figures)]


def _all_scores(group: RunGroup, split: str) -> Iterator[tuple[str, str, str, list[float]]]:
    """Yield view, metric, class (empty for all classes) and values by seed."""
    for view in group.task.views:
        if group.scored(split, view):
            for metric in group.task.metrics:
                yield view, metric, "", group.values(split, view, metric)
            for name in _class_names(group, split, view):
                for metric in group.task.class_metrics:
                    values = group.class_values(split, view, name, metric)
                    if values:
                        yield view, metric, name, values


def _scores(comparison: Comparison, split: str, view: str, group: str) -> TextTable:
    metrics = comparison.task.in_group(group)
    rows = []
    for setting in comparison.shown(split):
        if setting.scored(split, view):
            values = [setting.values(split, view, metric.name) for metric in metrics]
            rows.append([_label(comparison, setting), str(len(setting.runs)), *map(_cell, values)])
    if rows and view == comparison.task.view:
        references = {_label(comparison, setting): setting.references(split, metrics) for setting in comparison.shown(split)}
        rows += [[f"naive: {name}", "", *map(_cell, values)] for name, values in reference_rows(references)]
    level = f"{group} level, " if group else ""
    title = f"{split} split, {level}{comparison.task.views[view].title}, in {metrics[0].unit}"
    if comparison.chosen:
        title += ", best first" if split == "val" else f", of the setting selected on val ({CHOSEN}) only"
    heads = [metric.head for metric in metrics]
    return TextTable(_mark_synthetic(comparison, title), ["setting", "seeds", *heads], rows)


def _classes(comparison: Comparison, split: str, view: str) -> TextTable:
    shown = comparison.shown(split)
    metrics = [metric for group in comparison.options.groups for metric in comparison.task.of_classes(group)]
    names = dict.fromkeys(name for group in shown for name in _class_names(group, split, view))
    rows = [
        [
            name,
            _label(comparison, group),
            *(_cell(group.class_values(split, view, name, metric.name)) for metric in metrics),
        ]
        for name in names
        for group in shown
    ]
    title = f"{split} split, {comparison.task.views[view].title}, by class: {_units(metrics)}, pooled over videos"
    return TextTable(
        _mark_synthetic(comparison, title), ["class", "setting", *_headers(metrics)], rows if metrics else [], text_columns=2
    )


def _tests(comparison: Comparison) -> TextTable:
    options, tests = comparison.options, comparison.tests
    several_views, several = len(options.views) > 1, len({test.group for test in tests}) > 1
    rows = []
    for test in tests:
        found = test.difference
        scope = [test.split, *([test.view] if several_views else [])]
        retrained = _DASH if found.seeds is None else f"{_interval(found.seeds, '+.2f')}\np {_p_value(test.seeds_p)}"
        these = f"{_interval(found.videos, '+.2f')}\np {_p_value(test.videos_p)}"
        rows.append([_label(comparison, test.group), *scope, f"{found.mean:+.2f}", these, retrained, test.verdict])
    headers = ["setting", "split", *(["view"] if several_views else [])]
    counts = ", ".join(f"{count} {split} videos" for split, count in {test.split: test.videos for test in tests}.items())
    title = f"{metric_title(comparison.metric)} minus that of {comparison.baseline.label}, in points ({counts}"
    title += "; p after Holm's correction)" if several else ")"
    figures = ["difference", "these networks", "trained again", "differs (5 %)"]
    return TextTable(_mark_synthetic(comparison, title), [*headers, *figures], rows, text_columns=len(headers))


def explain_tests(comparison: Comparison) -> list[str]:
    """Return what the columns of the tests mean, one line each."""
    if not comparison.tests:
        return []
    lines = [
        "these networks: 95 % paired bootstrap interval and permutation test over videos, 10,000 draws each; "
        "whether these particular networks differ; the variation over seeds is not included"
    ]
    if any(test.seeds_p is not None for test in comparison.tests):
        lines.append(
            "trained again: includes the variation over seeds (videos by bootstrap, seeds by Welch's t); "
            "whether the settings differ"
        )
    if any(test.seeds_p is None for test in comparison.tests):
        lines.append("one seed cannot show whether the settings differ or only their seeds: train more seeds")
    if len({test.group for test in comparison.tests}) > 1:
        lines.append("p-values are corrected for the number of settings tested on a split (Holm); intervals are not")
    return lines


def _published(comparison: Comparison, published: PublishedScores) -> TextTable:
    metrics = [metric for group in comparison.options.groups for metric in comparison.task.in_group(group)]
    rows = []
    for row in published.rows:
        figures = [row.scores.get(metric.name) for metric in metrics]
        view = row.view or ("other" if row.rule else "unknown")
        cells = [_DASH if value is None else f"{value:.1f}" for value in figures]
        name = f"{row.method}, {row.venue}" if row.venue else row.method
        marked = f"{name} \N{DAGGER}" if _inconsistent(comparison, row) else name
        rows.append([marked, row.features, view, row.source, *cells])
    title = f"PUBLISHED scores, {published.data}, {_units(metrics)}; not of these runs"
    headers = ["method", "features", "view", "source", *_headers(metrics)]
    return TextTable(title, headers, rows, text_columns=4)


def _inconsistent(comparison: Comparison, row: PublishedRow) -> bool:
    return TASKS[comparison.task.name].inconsistent(row.scores)


def explain_published(comparison: Comparison, published: PublishedScores) -> list[str]:
    """Return what a reader must know about the published scores, one line each."""
    sources = "; ".join(f"{name}: {description}" for name, description in published.sources.items())
    lines = [f"published: {published.note}", f"sources: {sources}"]
    lines += [f"{row.method}: predictions {row.rule}" for row in published.rows if row.rule]
    lines += dict.fromkeys(f"{row.method}: {row.note}" for row in published.rows if row.note)
    if any(_inconsistent(comparison, row) for row in published.rows):
        lines.append("\N{DAGGER}: as printed; by the metrics' definitions, the figures in this row contradict each other")
    if comparison.synthetic:
        lines.insert(0, "published scores are on real data, those of these runs on SYNTHETIC DATA: not comparable")
    return lines


def _keys(groups: Sequence[RunGroup]) -> list[str]:
    return list(dict.fromkeys(key for group in groups for key in group.keys))


def _class_names(group: RunGroup, split: str, view: str) -> list[str]:
    return list(dict.fromkeys(name for scores in group.scored(split, view) for name in scores["per_class"]))


def _headers(metrics: Sequence[Metric]) -> list[str]:
    """Return column names of metrics, with their group if there are several."""
    several = len({metric.group for metric in metrics}) > 1
    return [f"{metric.group} {metric.head}" if several else metric.head for metric in metrics]


def _units(metrics: Sequence[Metric]) -> str:
    """Return what the figures are, and their unit."""
    groups = " and ".join(dict.fromkeys(metric.group for metric in metrics if metric.group))
    units = " and ".join(dict.fromkeys(metric.unit for metric in metrics))
    return f"{groups} scores in {units}" if groups else f"scores in {units}"


def _label(comparison: Comparison, group: RunGroup) -> str:
    mixed = len({group.synthetic for group in comparison.groups}) > 1 and group.synthetic
    label = f"{group.label} (synthetic)" if mixed else group.label
    return f"{CHOSEN} {label}" if group is comparison.chosen else label


def _mark_synthetic(comparison: Comparison, title: str) -> str:
    return f"SYNTHETIC DATA. {title}" if comparison.synthetic else title


def _figures(values: Sequence[float]) -> list[str]:
    spread = [statistics.stdev(values), *(t_interval(values) or ())] if len(values) > 1 else ["", "", ""]
    return [f"{value:.6g}" if isinstance(value, float) else value for value in [statistics.fmean(values), *spread]]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return _DASH
    mean = f"{statistics.fmean(values):.1f}"
    interval = t_interval(values)
    return mean if interval is None else f"{mean} ± {statistics.stdev(values):.1f}\n{_interval(interval, '.1f')}"


def _interval(interval: Interval, form: str) -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def _p_value(p: float | None) -> str:
    return _DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
