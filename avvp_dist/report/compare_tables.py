"""A comparison as tables: for a terminal, Markdown and LaTeX as sheets of text, for programs as CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from avvp_dist.metrics.names import KINDS, LEVEL_HEADS, LEVELS, METRIC_HEADS, METRICS, PROTOCOLS
from avvp_dist.metrics.significance import Interval, t_interval
from avvp_dist.report.compare import Comparison, Pair
from avvp_dist.report.published import PublishedScores
from avvp_dist.report.runs import Setting
from avvp_dist.report.sheets import Sheet
from avvp_dist.text import escape

CHOSEN = "★"
_DASH = "-"


def sheets(comparison: Comparison, published: PublishedScores | None = None) -> list[Sheet]:
    """All that the comparison's view asks for: scores, then tests, then what papers print."""
    view = comparison.view
    found = []
    for split in view.splits:
        for protocol in view.protocols:
            for without_speech in (False, True) if view.without_speech else (False,):
                found += [_scores(comparison, split, protocol, level, without_speech) for level in view.levels]
            if view.per_class:
                found.append(_classes(comparison, split, protocol))
    found.append(_tests(comparison))
    if published:
        found.append(_published(comparison, published))
    return [sheet for sheet in found if sheet.rows]


def csv_text(comparison: Comparison) -> str:
    """Every score of the settings and splits that the comparison shows, one a row, under every protocol.

    Columns: the setting, its value of each key in which settings differ, what the score is of, its values by seed, their
    mean, standard deviation and interval; then, where it was tested, the difference to the baseline with both intervals, and
    p-values before and after correction.
    """
    keys = _keys(comparison.settings)
    tests = {(pair.setting.label, pair.split, pair.protocol, pair.without_speech): pair for pair in comparison.pairs}
    what = ["split", "protocol", "level", "metric", "class", "speech"]
    head = ["setting", *map(escape.csv, keys), *what, "seeds", "values", "mean", "std", "low", "high", "synthetic"]
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow([*head, *_TEST_COLUMNS])
    for split in comparison.view.splits:
        for setting in comparison.shown(split):
            start = [escape.csv(each) for each in (setting.label, *(setting.keys.get(key, "") for key in keys), split)]
            for protocol in PROTOCOLS:
                for level, metric, name, speech, values in _all_scores(setting, split, protocol):
                    pair = tests.get((setting.label, split, protocol, speech == "without"))
                    tested = pair is not None and not name and f"{level}.{metric}" == comparison.view.score
                    seeds = [" ".join(map(str, setting.seeds)), " ".join(f"{value:.6g}" for value in values)]
                    row = [
                        *start,
                        protocol,
                        level,
                        metric,
                        escape.csv(name),
                        speech,
                        *seeds,
                        *_figures(values),
                        setting.synthetic,
                    ]
                    writer.writerow([*row, *(_test_figures(comparison, pair) if tested and pair else _UNTESTED)])
    return content.getvalue()


_TEST_COLUMNS = [
    "baseline",
    "difference",
    *(f"{question}_{figure}" for question in ("videos", "seeds") for figure in ("low", "high", "p", "p_holm")),
]
_UNTESTED = [""] * len(_TEST_COLUMNS)


def _test_figures(comparison: Comparison, pair: Pair) -> list[Any]:
    found = pair.difference
    seeds = found.seeds or ("", "")
    figures = [found.mean, *found.videos, found.videos_p, pair.videos_p, *seeds, found.seeds_p, pair.seeds_p]
    return [escape.csv(comparison.baseline.label), *("" if value in (None, "") else f"{value:.6g}" for value in figures)]


def _all_scores(setting: Setting, split: str, protocol: str) -> Iterator[tuple[str, str, str, str, list[float]]]:
    """Level, metric, class (empty for the official score), with or without Speech, values by seed."""
    for without_speech in (False, True):
        if setting.scored(split, protocol, without_speech):
            for level in LEVELS:
                for metric in METRICS:
                    values = setting.values(split, protocol, level, metric, without_speech)
                    yield level, metric, "", "without" if without_speech else "with", values
    for name in _class_names(setting, split, protocol):
        for level in LEVELS:
            for kind in KINDS:
                values = _of_class(setting, split, protocol, name, level, kind)
                if values:
                    yield level, kind, name, "with", values


def _scores(comparison: Comparison, split: str, protocol: str, level: str, without_speech: bool) -> Sheet:
    rows = []
    for setting in comparison.shown(split):
        if setting.scored(split, protocol, without_speech):
            values = [setting.values(split, protocol, level, metric, without_speech) for metric in METRICS]
            rows.append([_label(comparison, setting), str(len(setting.runs)), *map(_cell, values)])
    what = f"{split} split, {level} level, {protocol} protocol{', without Speech' if without_speech else ''}: F in %"
    if comparison.chosen:
        what += ", best first" if split == "val" else f", of the setting chosen on val ({CHOSEN}) only"
    return Sheet(_loud(comparison, what), ["setting", "seeds", *METRIC_HEADS.values()], rows)


def _classes(comparison: Comparison, split: str, protocol: str) -> Sheet:
    levels = comparison.view.levels
    shown = comparison.shown(split)
    names = dict.fromkeys(name for setting in shown for name in _class_names(setting, split, protocol))
    rows = [
        [
            name,
            _label(comparison, setting),
            *(_cell(_of_class(setting, split, protocol, name, level, kind)) for level in levels for kind in KINDS),
        ]
        for name in names
        for setting in shown
    ]
    what = f"{split} split, {_named(levels)}, {protocol} protocol, by class: F in %, pooled over videos"
    return Sheet(_loud(comparison, what), ["class", "setting", *_heads(levels, KINDS)], rows, words=2)


def _tests(comparison: Comparison) -> Sheet:
    view, pairs = comparison.view, comparison.pairs
    speech, protocols = view.without_speech, len(view.protocols) > 1
    several = len({pair.setting for pair in pairs}) > 1
    rows = []
    for pair in pairs:
        found = pair.difference
        where = [pair.split, *([pair.protocol] if protocols else [])]
        where += [("without Speech" if pair.without_speech else "all classes")] if speech else []
        again = _DASH if found.seeds is None else f"{_interval(found.seeds, '+.2f')}\np {_chance(pair.seeds_p)}"
        now = f"{_interval(found.videos, '+.2f')}\np {_chance(pair.videos_p)}"
        rows.append([_label(comparison, pair.setting), *where, f"{found.mean:+.2f}", now, again, pair.verdict])
    heads = ["setting", "split", *(["protocol"] if protocols else []), *(["classes"] if speech else [])]
    counts = ", ".join(f"{count} {split} videos" for split, count in {pair.split: pair.videos for pair in pairs}.items())
    title = f"{view.level} {METRIC_HEADS[view.metric]} minus that of {comparison.baseline.label}, in points ({counts}"
    title += "; p after Holm's correction)" if several else ")"
    heads_again = ["difference", "these networks", "trained again", "differs (5 %)"]
    return Sheet(_loud(comparison, title), [*heads, *heads_again], rows, words=len(heads))


def explain_tests(comparison: Comparison) -> list[str]:
    """What the columns of the tests mean, a line each."""
    if not comparison.pairs:
        return []
    lines = [
        "these networks: 95 % paired bootstrap interval and sign-flip permutation test over videos, 10,000 draws each; "
        "whether these very networks differ; the luck of their seeds is not counted"
    ]
    if any(pair.seeds_p is not None for pair in comparison.pairs):
        lines.append(
            "trained again: the luck of the seeds counts too (videos by bootstrap, seeds by Welch's t); "
            "whether the settings differ"
        )
    if any(pair.seeds_p is None for pair in comparison.pairs):
        lines.append("with one seed nobody can tell whether the settings differ, or only their seeds: train more seeds")
    if len({pair.setting for pair in comparison.pairs}) > 1:
        lines.append("p-values are corrected for the number of settings tested on a split (Holm); intervals are not")
    return lines


def _published(comparison: Comparison, published: PublishedScores) -> Sheet:
    levels = comparison.view.levels
    rows = []
    for row in published.rows:
        figures = [getattr(getattr(row, level), metric) for level in levels for metric in METRICS]
        protocol = row.protocol or ("other" if row.rule else "not known")
        cells = [_DASH if value is None else f"{value:.1f}" for value in figures]
        incoherent = any(not getattr(row, level).coherent for level in levels)
        name = f"{row.method}, {row.venue}" if row.venue else row.method
        rows.append([f"{name} \N{DAGGER}" if incoherent else name, row.features, protocol, row.source, *cells])
    title = f"PUBLISHED figures, test split of the real LLP, {_named(levels)}, F in %; not ours"
    return Sheet(title, ["method", "features", "protocol", "source", *_heads(levels, METRICS)], rows, words=4)


def explain_published(comparison: Comparison, published: PublishedScores) -> list[str]:
    """What a reader has to know of the published figures, a line each."""
    sources = "; ".join(f"{name}: {what}" for name, what in published.sources.items())
    lines = [f"published: {published.note}", f"sources: {sources}"]
    lines += [f"{row.method}: protocol {row.rule}" for row in published.rows if row.rule]
    lines += dict.fromkeys(f"{row.method}: {row.note}" for row in published.rows if row.note)
    if any(not getattr(row, level).coherent for row in published.rows for level in comparison.view.levels):
        lines.append("\N{DAGGER}: Type as printed; it is not the mean of the A, V and AV beside it")
    if comparison.synthetic:
        lines.insert(0, "published figures are of the real LLP, ours here of SYNTHETIC DATA: not comparable")
    return lines


def _keys(settings: Sequence[Setting]) -> list[str]:
    return list(dict.fromkeys(key for setting in settings for key in setting.keys))


def _class_names(setting: Setting, split: str, protocol: str) -> list[str]:
    return list(dict.fromkeys(name for scores in setting.scored(split, protocol) for name in scores.get("per_class", {})))


def _of_class(setting: Setting, split: str, protocol: str, name: str, level: str, kind: str) -> list[float]:
    """Values by seed; empty where a seed has none, since the class is nowhere true or predicted."""
    values = [scores["per_class"].get(name, {}).get(level, {}).get(kind) for scores in setting.scored(split, protocol)]
    return [] if None in values else values


def _heads(levels: Sequence[str], metrics: Iterable[str]) -> list[str]:
    """Column names of these metrics at each level; the title tells the level where there is but one."""
    heads = [METRIC_HEADS[metric] for metric in metrics]
    return [f"{LEVEL_HEADS[level]} {head}" if len(levels) > 1 else head for level in levels for head in heads]


def _named(levels: Sequence[str]) -> str:
    return f"{' and '.join(levels)} level"


def _label(comparison: Comparison, setting: Setting) -> str:
    mixed = len({each.synthetic for each in comparison.settings}) > 1 and setting.synthetic
    label = f"{setting.label} (synthetic)" if mixed else setting.label
    return f"{CHOSEN} {label}" if setting is comparison.chosen else label


def _loud(comparison: Comparison, title: str) -> str:
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


def _chance(p: float | None) -> str:
    return _DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
