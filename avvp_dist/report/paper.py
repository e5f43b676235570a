"""A paper's table beside our scores, for a terminal and for Markdown.

Both are rendered from the content of a ``table.json``, see `avvp_dist.launch.paper_table.run`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group

from avvp_dist.report.runs import TaskInfo, describe_view, reference_rows
from avvp_dist.report.text_table import TerminalTable, TextTable
from avvp_dist.tasks.base import Metric
from avvp_dist.text import escape
from avvp_dist.text.escape import cell

Content = Mapping[str, Any]
_DASH = "-"


def summary(results: Sequence[Mapping[str, Any]], split: str = "test") -> dict[str, Any]:
    """Summarize the runs of one row over seeds as means and sample standard deviations.

    Args:
        results: contents of ``result.json``, one per seed.
        split: split of the scores.

    Returns:
        ``view`` and its ``settings``, ``seeds``, ``task`` as in result.json, ``scores``: view (the run's own, and its
        subsets) -> metric -> ``{"mean", "std", "values"}`` (``std`` is None for one seed), and ``references``: naive
        predictor -> metric -> the same.
    """
    task = TaskInfo.of(results[0])
    references = [result.get("references", {}).get(split, {}) for result in results]
    return {
        "view": task.view,
        "settings": results[0]["scores"][split][task.view]["settings"],
        "seeds": [result["seed"] for result in results],
        "task": results[0]["task"],
        "scores": {
            view: {
                name: _spread([result["scores"][split][view]["metrics"][name] for result in results])
                for name in task.metrics
            }
            for view in (task.view, *task.subsets(task.view))
        },
        "references": {
            name: {metric: _spread([of_run[name][metric] for of_run in references]) for metric in task.metrics}
            for name in references[0]
            if all(name in of_run for of_run in references)
        },
    }


def table(content: Content) -> Group:
    """Return the table for a terminal: published scores above ours, by group of metrics; then subsets of the classes."""
    title = cell(_title(content), style="bold red" if content["data"]["synthetic"] else "bold")
    metrics = _metrics(content)
    groups = tuple(dict.fromkeys(metric.group for metric in metrics))
    by_group = {group: [metric for metric in metrics if metric.group == group] for group in groups}
    blocks = [_block(_heading(content, group), found, _lines(content, found)) for group, found in by_group.items()]
    blocks += [
        _block(f"{_level(group)}{subset.replace('_', ' ')}", found, _subset_lines(content, subset, found))
        for subset in _subsets(content)
        for group, found in by_group.items()
    ]
    notes = [cell(line) for line in caption(content)]
    return Group(title, *(TerminalTable(block) for block in blocks if block.rows), *notes)


def markdown(content: Content) -> str:
    """Return the table as Markdown, with all metrics side by side."""
    metrics = _metrics(content)
    several = len({metric.group for metric in metrics}) > 1
    heads = ["row", "figures", "view", *(f"{metric.group} {metric.head}" if several else metric.head for metric in metrics)]
    lines = [
        f"**{escape.markdown(_title(content))}**",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * 3}{'--:|' * (len(heads) - 3)}",
        *(_markdown_row(line) for line in _lines(content, metrics, every_label=True)),
    ]
    for subset in _subsets(content):
        found = _subset_lines(content, subset, metrics)
        lines += [_markdown_row(line._replace(row=f"{line.row}, {subset.replace('_', ' ')}")) for line in found]
    return "\n".join([*lines, "", *(f"- {escape.markdown(line)}" for line in caption(content))]) + "\n"


def caption(content: Content) -> list[str]:
    """Return notes, one line each: data, view, seeds, and how the setting differs from the paper's."""
    data, ours = content["data"], [row["ours"] for row in content["rows"] if row["ours"]]
    views = dict.fromkeys(describe_view(row["view"], row) for row in ours)
    seeds = f"mean ± sample standard deviation over seeds {', '.join(map(str, content['seeds']))}"
    if len(content["seeds"]) == 1:
        seeds = f"one run, seed {content['seeds'][0]}: no information about spread"
    lines = [
        f"published: scores in % on the test split of the real data, from: {content['source']}",
        f"{_source(content)}: {seeds}; test split of {_describe(data)}",
        *(f"{row['label']}: {_describe(row['data'])}" for row in content["rows"] if row.get("data")),
        *_describe_labels(content["rows"]),
        f"view of our scores: {'; '.join(views) or 'no run finished yet'}",
    ]
    if data["synthetic"]:
        lines.append(
            "Synthetic features: compare the order of rows and the distances between them, not the scores themselves."
        )
    if content["changes"]:
        lines.append(f"NOT THE PUBLISHED SETTINGS: {', '.join(content['changes'])} in every row")
    if any(row["reconstructed"] for row in content["rows"]):
        lines.append("†: reconstructed; no public text or code pins this row down")
    return [*lines, *([content["note"]] if content["note"] else [])]


def _describe(data: Mapping[str, Any]) -> str:
    videos = ", ".join(f"{name} {count}" for name, count in data["videos"].items())
    return (
        f"{data['dataset']}{' (SYNTHETIC DATA)' if data['synthetic'] else ''}, {data['url']}, "
        f"fingerprint {data['fingerprint'][:12]}, videos: {videos}"
    )


def _describe_labels(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the source of the segment-level labels that some rows are trained on."""
    labeled = [(row["label"], row["labels"]) for row in rows if row.get("labels")]
    names = ", ".join(label for label, labels in labeled if labels["oracle_noise"] is not None)
    if names:
        yield (
            f"{names}: trained on ORACLE segment-level labels: the ground truth within the weak label, some flipped; "
            "the paper's labels come from CLIP and CLAP, without ground truth"
        )
    yield from (
        f"{label}: trained on the segment-level labels in {labels['url']}"
        for label, labels in labeled
        if labels["oracle_noise"] is None
    )


class _Line(NamedTuple):
    row: str
    figures: str
    view: str
    cells: list[str]


def _spread(values: list[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": values}


def _metrics(content: Content) -> list[Metric]:
    """Return the metrics of the table's task, or those that are published if no run is finished yet."""
    for row in content["rows"]:
        if row["ours"]:
            return list(TaskInfo.of(row["ours"]).metrics.values())
    names = dict.fromkeys(name for row in content["rows"] for name in row["published"])
    return [Metric(name, name, name.rpartition(".")[2], name.rpartition(".")[0]) for name in names]


def _subsets(content: Content) -> list[str]:
    views = [view for row in content["rows"] if row["ours"] for view in row["ours"]["task"]["views"]]
    return list(dict.fromkeys(view["subset"] for view in views if view["subset"]))


def _block(heading: str, metrics: Sequence[Metric], lines: Iterable[_Line]) -> TextTable:
    rows = [[line.row, line.figures, line.view, *line.cells] for line in lines]
    return TextTable(heading, ["row", "figures", "view", *(metric.head for metric in metrics)], rows, text_columns=3)


def _lines(content: Content, metrics: Sequence[Metric], every_label: bool = False) -> Iterator[_Line]:
    """Yield the published scores of each row, if there are any, and ours, dashes before the first run."""
    for row in content["rows"]:
        label = _label(row)
        published = row["published"]
        if published:
            cells = [f"{published[metric.name]:.1f}" if metric.name in published else _DASH for metric in metrics]
            yield _Line(label, "published", row["view"] or _DASH, cells)
        ours = row["ours"]
        cells = [_cell(ours["scores"][ours["view"]][metric.name]) if ours else _DASH for metric in metrics]
        name = " ".join([*([label] if every_label or not published else []), *_origin(row)])
        yield _Line(name, _source(content), ours["view"] if ours else _DASH, cells)
    references = {_label(row): row["ours"].get("references", {}) for row in content["rows"] if row["ours"]}
    for name, figures in reference_rows(references):
        yield _Line(f"naive: {name}", _source(content), "", [_cell(figures[metric.name]) for metric in metrics])


def _subset_lines(content: Content, subset: str, metrics: Sequence[Metric]) -> Iterator[_Line]:
    for row in content["rows"]:
        ours = row["ours"]
        for view in ours["task"]["views"] if ours else ():
            if view["subset"] == subset and view["of"] == ours["view"]:
                cells = [_cell(ours["scores"][view["name"]][metric.name]) for metric in metrics]
                name = " ".join([_label(row), *_origin(row)])
                yield _Line(name, _source(content), ours["view"], cells)


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['label']} †" if row["reconstructed"] else row["label"]


def _origin(row: Mapping[str, Any]) -> list[str]:
    """Return the remark that must accompany our scores of a row that is trained on labels made from the ground truth."""
    noise = (row.get("labels") or {}).get("oracle_noise")
    return [] if noise is None else [f"(ORACLE labels: ground truth, {noise:.0%} flipped)"]


def _heading(content: Content, group: str) -> str:
    reported = any(name.rpartition(".")[0] == group for row in content["rows"] for name in row["published"])
    return f"{group} level{'' if reported else ', not reported by the paper'}" if group else ""


def _level(group: str) -> str:
    return f"{group} level, " if group else ""


def _source(content: Content) -> str:
    return "ours, SYNTHETIC" if content["data"]["synthetic"] else "ours"


def _title(content: Content) -> str:
    warning = "SYNTHETIC DATA. " if content["data"]["synthetic"] else ""
    return f"{warning}{content['title']}"


def _cell(spread: Mapping[str, Any]) -> str:
    return f"{spread['mean']:.1f}" + ("" if spread["std"] is None else f"±{spread['std']:.1f}")


def _markdown_row(line: _Line) -> str:
    cells = [escape.markdown(line.row), line.figures, line.view, *line.cells]
    return f"| {' | '.join(cells)} |"
