"""Score tables of one or more runs, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from avvp_dist.report.runs import TaskInfo, describe_view, reference_rows
from avvp_dist.tasks.base import Metric
from avvp_dist.text.escape import cell

Result = Mapping[str, Any]
_NARROW, _SHORT = 8, 5
"""With more metrics than the first number, heads are cut so that all columns fit into 80 characters; of groups, only names
longer than the second."""


class _Row(NamedTuple):
    run: str
    view: str
    cells: list[str]


def scores(results: Mapping[str, Result], split: str = "test", view: str | None = None) -> Table:
    """Return a table with one row per run and view, followed by the views of subsets of the classes and naive predictors.

    Args:
        results: name of a run -> content of its ``result.json``; all of one task.
        split: split of the scores.
        view: name of a view that is not a subset; None for all that were evaluated.
    """
    tasks = [TaskInfo.of(result) for result in results.values()]
    metrics = list(tasks[0].metrics.values()) if tasks else []
    table = Table(box=box.SIMPLE_HEAD, padding=0, title=_title(split, metrics), title_justify="left")
    table.caption, table.caption_justify = cell(caption(results, split, view), style="dim italic"), "left"
    table.add_column("\nrun", overflow="fold", min_width=14)
    table.add_column("\nview", no_wrap=True)
    for number, metric in enumerate(metrics):
        first = number == 0 or metric.group != metrics[number - 1].group
        group, head = metric.group, metric.head
        if len(metrics) > _NARROW:  # two letters are as wide as a score
            group, head = group if len(group) <= _SHORT else f"{group[:3]}.", head[:2]
        table.add_column(f"{group if first else ''}\n{head}", justify="right", no_wrap=True)
    for row in _rows(results, split, view, subset=""):
        table.add_row(cell(row.run), row.view, *row.cells)
    for subset in dict.fromkeys(found.subset for task in tasks for found in task.views.values() if found.subset):
        table.add_section()
        table.add_row(f"[italic]{subset.replace('_', ' ')}")
        for row in _rows(results, split, view, subset):
            table.add_row(cell(row.run), row.view, *row.cells)
    naive = reference_rows({run: result.get("references", {}).get(split, {}) for run, result in results.items()})
    if naive:
        table.add_section()
        table.add_row("[italic]naive predictors")
        for name, figures in naive:
            table.add_row(cell(name), "", *(_number(figures[metric.name]) for metric in metrics))
    return table


def caption(results: Mapping[str, Result], split: str, view: str | None) -> str:
    """Return the data and views of the scores, as one sentence each."""
    data = dict.fromkeys(
        f"{result['data']['dataset']}{' (SYNTHETIC DATA)' if result['data']['synthetic'] else ''}, "
        f"fingerprint {str(result['data']['fingerprint'])[:12]}"
        for result in results.values()
    )
    views = dict.fromkeys(
        describe_view(name, scored) for result in results.values() for name, scored in _views(result, split, view, "")
    )
    return f"Data: {'; '.join(data) or 'none'}. View: {'; '.join(views) or 'no scores of this split'}."


def _views(result: Result, split: str, view: str | None, subset: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name of each view that is not a subset, with its scores or with those of one of its subsets."""
    found = result["scores"].get(split, {})
    for info in TaskInfo.of(result).views.values():
        name = info.of or info.name
        if info.subset == subset and info.name in found and view in (None, name):
            yield name, found[info.name]


def _rows(results: Mapping[str, Result], split: str, view: str | None, subset: str) -> Iterator[_Row]:
    kinds = {bool(result["data"]["synthetic"]) for result in results.values()}
    for run, result in results.items():
        mixed = len(kinds) > 1 and result["data"]["synthetic"]
        for name, scored in _views(result, split, view, subset):
            cells = [_number(scored["metrics"][metric["name"]]) for metric in result["task"]["metrics"]]
            yield _Row(f"{run} (synthetic)" if mixed else run, name, cells)


def _title(split: str, metrics: Sequence[Metric]) -> str:
    groups = " and ".join(dict.fromkeys(metric.group for metric in metrics if metric.group))
    units = " and ".join(dict.fromkeys(metric.unit for metric in metrics))
    return f"scores of the {split} split in {units}" + (f", by {groups}" if groups else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
