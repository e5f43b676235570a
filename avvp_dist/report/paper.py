"""A paper's table beside our scores, for a terminal and for Markdown.

Both are rendered from the content of a ``table.json``, see `avvp_dist.launch.paper_table.run`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table

from avvp_dist.metrics.names import LEVEL_HEADS, LEVELS, METRIC_HEADS, METRICS
from avvp_dist.text import escape
from avvp_dist.text.escape import cell

Content = Mapping[str, Any]
_DASH = "-"


def summary(results: Sequence[Mapping[str, Any]], protocol: str, split: str = "test") -> dict[str, Any]:
    """Summarize the runs of one row over seeds as means and sample standard deviations.

    Args:
        results: contents of ``result.json``, one per seed.
        protocol: evaluation protocol.
        split: split of the scores.

    Returns:
        ``protocol``, its thresholds, ``seeds``, and for ``segment``, ``event`` and ``without_speech`` (the same two):
        metric -> ``{"mean", "std", "values"}`` in percent; ``std`` is None for one seed.
    """
    scored = [result["scores"][split][protocol] for result in results]
    found: dict[str, Any] = {
        "protocol": protocol,
        "segment_threshold": scored[0]["segment_threshold"],
        "video_threshold": scored[0]["video_threshold"],
        "seeds": [result["seed"] for result in results],
        **_levels(scored),
    }
    without = [scores["without_speech"] for scores in scored if "without_speech" in scores]
    if without:
        found["without_speech"] = _levels(without)
    return found


def table(content: Content) -> Group:
    """Return the table for a terminal: at each level the published scores of every row above ours; then without Speech."""
    title = cell(_title(content), style="bold red" if content["data"]["synthetic"] else "bold")
    blocks = [_block(_heading(content, level), _lines(content, level)) for level in LEVELS]
    without = [_block(f"{level} level, without Speech", _without_speech(content, level)) for level in LEVELS]
    notes = [cell(line) for line in caption(content)]
    return Group(title, *(block for block in [*blocks, *without] if block.row_count), *notes)


def markdown(content: Content) -> str:
    """Return the table as Markdown, with segment and event level side by side."""
    heads = [
        "row",
        "figures",
        "protocol",
        *(f"{LEVEL_HEADS[level]} {METRIC_HEADS[metric]}" for level in LEVELS for metric in METRICS),
    ]
    lines = [
        f"**{escape.markdown(_title(content))}**",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * 3}{'--:|' * (len(heads) - 3)}",
    ]
    for segment, event in zip(*(_lines(content, level, every_label=True) for level in LEVELS), strict=True):
        lines.append(_markdown_row(segment, event.cells))
    for segment, event in zip(*(_without_speech(content, level) for level in LEVELS), strict=True):
        lines.append(_markdown_row(segment._replace(row=f"{segment.row}, without Speech"), event.cells))
    return "\n".join([*lines, "", *(f"- {escape.markdown(line)}" for line in caption(content))]) + "\n"


def caption(content: Content) -> list[str]:
    """Return notes, one line each: data, protocol, seeds, and how the setting differs from the paper's."""
    data, ours = content["data"], [row["ours"] for row in content["rows"] if row["ours"]]
    protocols = dict.fromkeys(
        f"{row['protocol']} (segment threshold {row['segment_threshold']:g}, video threshold {row['video_threshold']:g})"
        for row in ours
    )
    seeds = f"mean ± sample standard deviation over seeds {', '.join(map(str, content['seeds']))}"
    if len(content["seeds"]) == 1:
        seeds = f"one run, seed {content['seeds'][0]}: no information about spread"
    lines = [
        f"published: F-scores in % on the test split of the real LLP, from: {content['source']}",
        f"{_source(content)}: {seeds}; test split of {_describe(data)}",
        *(f"{row['label']}: {_describe(row['data'])}" for row in content["rows"] if row.get("data")),
        *_describe_labels(content["rows"]),
        f"protocol of our scores: {'; '.join(protocols) or 'no run finished yet'}",
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
    protocol: str
    cells: list[str]


def _levels(scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {level: {name: _spread([scores[level][name] for scores in scored]) for name in METRICS} for level in LEVELS}


def _spread(values: list[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": values}


def _block(heading: str, lines: Iterable[_Line]) -> Table:
    block = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=cell(heading, style="italic"), title_justify="left")
    block.add_column("row", overflow="fold", min_width=12)
    block.add_column("figures", no_wrap=True)
    block.add_column("protocol", no_wrap=True)
    for metric in METRICS:
        block.add_column(METRIC_HEADS[metric], justify="right", no_wrap=True)
    for line in lines:
        block.add_row(cell(line.row), line.figures, line.protocol, *line.cells)
    return block


def _lines(content: Content, level: str, every_label: bool = False) -> Iterator[_Line]:
    """Yield the published scores of each row, and ours if there are any yet."""
    for row in content["rows"]:
        label = _label(row)
        published = row["published"].get(level, {})
        cells = [f"{published[name]:.1f}" if name in published else _DASH for name in METRICS]
        yield _Line(label, "published", row["protocol"], cells)
        ours = row["ours"]
        cells = [_cell(ours[level][name]) if ours else _DASH for name in METRICS]
        name = " ".join([*([label] if every_label else []), *_origin(row)])
        yield _Line(name, _source(content), ours["protocol"] if ours else _DASH, cells)


def _without_speech(content: Content, level: str) -> Iterator[_Line]:
    for row in content["rows"]:
        without = (row["ours"] or {}).get("without_speech")
        if without:
            cells = [_cell(without[level][name]) for name in METRICS]
            name = " ".join([_label(row), *_origin(row)])
            yield _Line(name, _source(content), row["ours"]["protocol"], cells)


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['label']} †" if row["reconstructed"] else row["label"]


def _origin(row: Mapping[str, Any]) -> list[str]:
    """Return the remark that must accompany our scores of a row that is trained on labels made from the ground truth."""
    noise = (row.get("labels") or {}).get("oracle_noise")
    return [] if noise is None else [f"(ORACLE labels: ground truth, {noise:.0%} flipped)"]


def _heading(content: Content, level: str) -> str:
    return f"{level} level{'' if level in content['columns'] else ', not reported by the paper'}"


def _source(content: Content) -> str:
    return "ours, SYNTHETIC" if content["data"]["synthetic"] else "ours"


def _title(content: Content) -> str:
    warning = "SYNTHETIC DATA, NOT LLP. " if content["data"]["synthetic"] else ""
    return f"{warning}{content['title']}"


def _cell(spread: Mapping[str, Any]) -> str:
    return f"{spread['mean']:.1f}" + ("" if spread["std"] is None else f"±{spread['std']:.1f}")


def _markdown_row(line: _Line, more: Sequence[str]) -> str:
    cells = [escape.markdown(line.row), line.figures, line.protocol, *line.cells, *more]
    return f"| {' | '.join(cells)} |"
