"""Score tables of one or more runs, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from avvp_dist.metrics.names import LEVEL_HEADS, LEVELS, METRIC_HEADS, METRICS, PROTOCOLS
from avvp_dist.text.escape import cell

Result = Mapping[str, Any]


class _Row(NamedTuple):
    run: str
    protocol: str
    cells: list[str]


def scores(results: Mapping[str, Result], split: str = "test", protocol: str | None = None) -> Table:
    """Return a table with one row per run and protocol, followed by the same without Speech.

    Args:
        results: name of a run -> content of its ``result.json``.
        split: split of the scores.
        protocol: ``joint``, ``modality`` or ``none``; None for all that were evaluated.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=0, title=_title(split), title_justify="left")
    table.caption, table.caption_justify = cell(caption(results, split, protocol), style="dim italic"), "left"
    table.add_column("\nrun", overflow="fold", min_width=14)
    table.add_column("\nprotocol", no_wrap=True)
    for level in LEVELS:
        for metric in METRICS:  # two letters are as wide as a score, so that all columns fit into 80 characters
            head = LEVEL_HEADS[level] if metric == METRICS[0] else ""
            table.add_column(f"{head}\n{METRIC_HEADS[metric][:2]}", justify="right", no_wrap=True)
    for row in _rows(results, split, protocol):
        table.add_row(cell(row.run), row.protocol, *row.cells)
    without = list(_rows(results, split, protocol, without_speech=True))
    if without:
        table.add_section()
        table.add_row("[italic]without Speech")
    for row in without:
        table.add_row(cell(row.run), row.protocol, *row.cells)
    return table


def caption(results: Mapping[str, Result], split: str, protocol: str | None) -> str:
    """Return the data and protocols of the scores, as one sentence each."""
    data = dict.fromkeys(
        f"{result['data']['dataset']}{' (SYNTHETIC DATA)' if result['data']['synthetic'] else ''}, "
        f"fingerprint {str(result['data']['fingerprint'])[:12]}"
        for result in results.values()
    )
    protocols = dict.fromkeys(
        f"{name} (segment threshold {scored['segment_threshold']:g}, video threshold {scored['video_threshold']:g})"
        for result in results.values()
        for name, scored in _protocols(result, split, protocol)
    )
    return f"Data: {'; '.join(data) or 'none'}. Protocol: {'; '.join(protocols) or 'no scores of this split'}."


def _protocols(result: Result, split: str, protocol: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    found = result["scores"].get(split, {})
    for name in PROTOCOLS:
        if name in found and protocol in (None, name):
            yield name, found[name]


def _rows(results: Mapping[str, Result], split: str, protocol: str | None, without_speech: bool = False) -> Iterator[_Row]:
    kinds = {bool(result["data"]["synthetic"]) for result in results.values()}
    for run, result in results.items():
        mixed = len(kinds) > 1 and result["data"]["synthetic"]
        for name, scored in _protocols(result, split, protocol):
            levels = scored.get("without_speech") if without_speech else scored
            if levels is not None:
                cells = [_number(levels[level][metric]) for level in LEVELS for metric in METRICS]
                yield _Row(f"{run} (synthetic)" if mixed else run, name, cells)


def _title(split: str) -> str:
    return f"F scores of the {split} split in %, on segments and events"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
