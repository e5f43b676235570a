"""A comparison as tables of text, for a terminal, Markdown and LaTeX; and as CSV, for programs."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from avvp_dist.metrics.names import KINDS, LEVEL_HEADS, LEVELS, METRIC_HEADS, METRICS, PROTOCOLS
from avvp_dist.metrics.significance import Interval, t_interval
from avvp_dist.report.compare import Comparison, PairedTest
from avvp_dist.report.published import PublishedScores
from avvp_dist.report.runs import RunGroup
from avvp_dist.report.text_table import TextTable
from avvp_dist.text import escape

CHOSEN = "★"
_DASH = "-"


def tables(comparison: Comparison, published: PublishedScores | None = None) -> list[TextTable]:
    """Return the tables that the comparison's options select: scores, then tests, then published scores."""
    options = comparison.options
    found = []
    for split in options.splits:
        for protocol in options.protocols:
            for without_speech in (False, True) if options.without_speech else (False,):
                found += [_scores(comparison, split, protocol, level, without_speech) for level in options.levels]
            if options.per_class:
                found.append(_classes(comparison, split, protocol))
    found.append(_tests(comparison))
    if published:
        found.append(_published(comparison, published))
    return [table for table in found if table.rows]


def csv_text(comparison: Comparison) -> str:
    """Return every score of the settings and splits that the comparison shows, one per row, under every protocol.

    Columns: the setting, its value of each key in which settings differ, what the score measures, its values by seed, their
    mean, standard deviation and interval; then, if it was tested, the difference from the baseline with both intervals, and
    p-values before and after correction.
    """
    keys = _keys(comparison.groups)
    tests = {(test.group.label, test.split, test.protocol, test.without_speech): test for test in comparison.tests}
    columns = ["split", "protocol", "level", "metric", "class", "speech"]
    header = ["setting", *map(escape.csv, keys), *columns, "seeds", "values", "mean", "std", "low", "high", "synthetic"]
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow([*header, *_TEST_COLUMNS])
    for split in comparison.options.splits:
        for group in comparison.shown(split):
            start = [escape.csv(value) for value in (group.label, *(group.keys.get(key, "") for key in keys), split)]
            for protocol in PROTOCOLS:
                for level, metric, name, speech, values in _all_scores(group, split, protocol):
                    test = tests.get((group.label, split, protocol, speech == "without"))
                    tested = test is not None and not name and f"{level}.{metric}" == comparison.options.score
                    seeds = [" ".join(map(str, group.seeds)), " ".join(f"{value:.6g}" for value in values)]
                    row = [
                        *start,
                        protocol,
                        level,
                        metric,
                        escape.csv(name),
                        speech,
                        *seeds,
                        *_figures(values),
                        group.synthetic,
                    ]
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


def _all_scores(group: RunGroup, split: str, protocol: str) -> Iterator[tuple[str, str, str, str, list[float]]]:
    """Yield level, metric, class (empty for the official score), with or without Speech, and values by seed."""
    for without_speech in (False, True):
        if group.scored(split, protocol, without_speech):
            for level in LEVELS:
                for metric in METRICS:
                    values = group.values(split, protocol, level, metric, without_speech)
                    yield level, metric, "", "without" if without_speech else "with", values
    for name in _class_names(group, split, protocol):
        for level in LEVELS:
            for kind in KINDS:
                values = _of_class(group, split, protocol, name, level, kind)
                if values:
                    yield level, kind, name, "with", values


def _scores(comparison: Comparison, split: str, protocol: str, level: str, without_speech: bool) -> TextTable:
    rows = []
    for group in comparison.shown(split):
        if group.scored(split, protocol, without_speech):
            values = [group.values(split, protocol, level, metric, without_speech) for metric in METRICS]
            rows.append([_label(comparison, group), str(len(group.runs)), *map(_cell, values)])
    title = f"{split} split, {level} level, {protocol} protocol{', without Speech' if without_speech else ''}: F in %"
    if comparison.chosen:
        title += ", best first" if split == "val" else f", of the setting selected on val ({CHOSEN}) only"
    return TextTable(_mark_synthetic(comparison, title), ["setting", "seeds", *METRIC_HEADS.values()], rows)


def _classes(comparison: Comparison, split: str, protocol: str) -> TextTable:
    levels = comparison.options.levels
    shown = comparison.shown(split)
    names = dict.fromkeys(name for group in shown for name in _class_names(group, split, protocol))
    rows = [
        [
            name,
            _label(comparison, group),
            *(_cell(_of_class(group, split, protocol, name, level, kind)) for level in levels for kind in KINDS),
        ]
        for name in names
        for group in shown
    ]
    title = f"{split} split, {_level_names(levels)}, {protocol} protocol, by class: F in %, pooled over videos"
    return TextTable(
        _mark_synthetic(comparison, title), ["class", "setting", *_headers(levels, KINDS)], rows, text_columns=2
    )


def _tests(comparison: Comparison) -> TextTable:
    options, tests = comparison.options, comparison.tests
    speech, protocols = options.without_speech, len(options.protocols) > 1
    several = len({test.group for test in tests}) > 1
    rows = []
    for test in tests:
        found = test.difference
        scope = [test.split, *([test.protocol] if protocols else [])]
        scope += [("without Speech" if test.without_speech else "all classes")] if speech else []
        retrained = _DASH if found.seeds is None else f"{_interval(found.seeds, '+.2f')}\np {_p_value(test.seeds_p)}"
        these = f"{_interval(found.videos, '+.2f')}\np {_p_value(test.videos_p)}"
        rows.append([_label(comparison, test.group), *scope, f"{found.mean:+.2f}", these, retrained, test.verdict])
    headers = ["setting", "split", *(["protocol"] if protocols else []), *(["classes"] if speech else [])]
    counts = ", ".join(f"{count} {split} videos" for split, count in {test.split: test.videos for test in tests}.items())
    title = f"{options.level} {METRIC_HEADS[options.metric]} minus that of {comparison.baseline.label}, in points ({counts}"
    title += "; p after Holm's correction)" if several else ")"
    figures = ["difference", "these networks", "trained again", "differs (5 %)"]
    return TextTable(_mark_synthetic(comparison, title), [*headers, *figures], rows, text_columns=len(headers))


def explain_tests(comparison: Comparison) -> list[str]:
    """Return what the columns of the tests mean, one line each."""
    if not comparison.tests:
        return []
    lines = [
        "these networks: 95 % paired bootstrap interval and sign-flip permutation test over videos, 10,000 draws each; "
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
    levels = comparison.options.levels
    rows = []
    for row in published.rows:
        figures = [getattr(getattr(row, level), metric) for level in levels for metric in METRICS]
        protocol = row.protocol or ("other" if row.rule else "unknown")
        cells = [_DASH if value is None else f"{value:.1f}" for value in figures]
        incoherent = any(not getattr(row, level).coherent for level in levels)
        name = f"{row.method}, {row.venue}" if row.venue else row.method
        rows.append([f"{name} \N{DAGGER}" if incoherent else name, row.features, protocol, row.source, *cells])
    title = f"PUBLISHED scores, test split of the real LLP, {_level_names(levels)}, F in %; not of these runs"
    headers = ["method", "features", "protocol", "source", *_headers(levels, METRICS)]
    return TextTable(title, headers, rows, text_columns=4)


def explain_published(comparison: Comparison, published: PublishedScores) -> list[str]:
    """Return what a reader must know about the published scores, one line each."""
    sources = "; ".join(f"{name}: {description}" for name, description in published.sources.items())
    lines = [f"published: {published.note}", f"sources: {sources}"]
    lines += [f"{row.method}: protocol {row.rule}" for row in published.rows if row.rule]
    lines += dict.fromkeys(f"{row.method}: {row.note}" for row in published.rows if row.note)
    if any(not getattr(row, level).coherent for row in published.rows for level in comparison.options.levels):
        lines.append("\N{DAGGER}: Type as printed; it is not the mean of the A, V and AV in the same row")
    if comparison.synthetic:
        lines.insert(0, "published scores are on the real LLP, those of these runs on SYNTHETIC DATA: not comparable")
    return lines


def _keys(groups: Sequence[RunGroup]) -> list[str]:
    return list(dict.fromkeys(key for group in groups for key in group.keys))


def _class_names(group: RunGroup, split: str, protocol: str) -> list[str]:
    return list(dict.fromkeys(name for scores in group.scored(split, protocol) for name in scores.get("per_class", {})))


def _of_class(group: RunGroup, split: str, protocol: str, name: str, level: str, kind: str) -> list[float]:
    """Return values by seed; none if a seed has no value, since the class is never true or predicted."""
    values = [scores["per_class"].get(name, {}).get(level, {}).get(kind) for scores in group.scored(split, protocol)]
    return [] if None in values else values


def _headers(levels: Sequence[str], metrics: Iterable[str]) -> list[str]:
    """Return column names of these metrics at each level; with one level, the title states it."""
    heads = [METRIC_HEADS[metric] for metric in metrics]
    return [f"{LEVEL_HEADS[level]} {head}" if len(levels) > 1 else head for level in levels for head in heads]


def _level_names(levels: Sequence[str]) -> str:
    return f"{' and '.join(levels)} level"


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
