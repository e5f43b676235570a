"""Output of the commands below ``avvp data``: flaws of annotations, bad features, the content of a packed data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from avvp_dist.text.escape import cell
from avvp_dist.text.plural import plural

if TYPE_CHECKING:  # importing pyarrow and torch takes seconds
    from avvp_dist.datasets.flaws import Annotations
    from avvp_dist.shards.index import Index, Labels, LeftOut


def flaw_counts(annotated: Annotations) -> dict[str, dict[str, int]]:
    """Return the number of flaws by kind and file."""
    counts: dict[str, dict[str, int]] = {}
    for (kind, file), number in sorted(annotated.count().items()):
        counts.setdefault(kind, {})[file] = number
    return counts


def describe(url: str, index: Index, labels: dict[str, Labels]) -> dict[str, Any]:
    """Return the content of a packed data set as ``inspect --json`` prints it."""
    splits = {}
    for name, split in labels.items():
        shards = [shard for shard in index.shards if shard.split == name]
        splits[name] = {
            "videos": len(split.ids),
            "shards": len(shards),
            "bytes": sum(shard.bytes for shard in shards),
            "segments_with_truth": 0 if split.truth is None else len(split.ids) * index.segments,
        }
    return {
        "url": url,
        "dataset": index.dataset,
        "fingerprint": index.fingerprint,
        "synthetic": index.synthetic,
        "task": index.task,
        "tracks": index.tracks,
        "segments": index.segments,
        "segment_seconds": index.segment_seconds,
        "splits": splits,
        "streams": [asdict(stream) for stream in index.streams],
        "weak_labels": {
            label: {name: int(split.weak[:, number].sum()) for name, split in labels.items()}
            for number, label in enumerate(index.classes)
        },
        "left_out": [asdict(video) for video in index.left_out],
        "provenance": index.provenance,
    }


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> Table:
    """Make a table of untrusted text, with control characters escaped; ``numbers`` are the right-aligned columns."""
    table = Table(title=cell(title, style="italic"), title_justify="left")
    for column in columns:
        table.add_column(cell(column), justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else cell(value) for value in row))
    return table


def print_flaws(console: Console, annotated: Annotations, limit: int | None) -> None:
    """Print the number of flaws by kind and file, and the first ``limit`` flaws."""
    counts = annotated.count()
    rows = [(kind, file, counts[kind, file], annotated.meanings[kind]) for kind, file in sorted(counts)]
    if rows:
        console.print(table("flaws by kind", ("kind", "file", "rows", "meaning"), rows, numbers=("rows",)))
    shown = annotated.flaws[:limit]
    if shown:
        lines = ((flaw.file, "" if flaw.row is None else str(flaw.row), flaw.kind, flaw.detail) for flaw in shown)
        console.print(table("flaws", ("file", "row", "kind", "detail"), lines, numbers=("row",)))
    if left := len(annotated.flaws) - len(shown):
        console.print(f"{left} more {plural(left, 'flaw')} not shown")
    videos, flaws = len(annotated.records), len(annotated.flaws)
    console.print(f"{videos} {plural(videos, 'video')}, {flaws} known {plural(flaws, 'flaw')}")


def print_left_out(console: Console, videos: Sequence[LeftOut], title: str, limit: int | None = None) -> None:
    """Print the first ``limit`` bad videos with the reasons."""
    shown = videos[:limit]
    rows = ((video.split, video.id, video.reason) for video in shown)
    console.print(table(f"{title}: {len(videos)} {plural(len(videos), 'video')}", ("split", "id", "reason"), rows))
    if left := len(videos) - len(shown):
        console.print(f"{left} more {plural(left, 'video')} not shown")


def print_inspection(console: Console, index: Index, content: dict[str, Any]) -> None:
    """Print the result of `describe` as tables."""
    splits = content["splits"]
    columns = ["split", "videos", "shards", "bytes", "segments with truth"]
    rows = [[name, *split.values()] for name, split in splits.items()]
    console.print(table(f"{content['url']}: {index.dataset}", columns, rows, numbers=columns[1:]))
    columns = ["stream", "dim", "offset", "shape"]
    rows = [[stream.name, stream.dim, stream.offset, "x".join(map(str, stream.shape))] for stream in index.streams]
    console.print(table(f"streams of {index.dataset}", columns, rows, numbers=columns[1:]))
    columns = ["class", *splits]
    rows = [[label, *counts.values()] for label, counts in content["weak_labels"].items()]
    console.print(table("weak labels", columns, rows, numbers=columns[1:]))
    if index.left_out:
        print_left_out(console, index.left_out, "left out")
    rows = [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in index.provenance.items()]
    console.print(table("provenance", ["key", "value"], rows))
    console.print(f"fingerprint {index.fingerprint}")
