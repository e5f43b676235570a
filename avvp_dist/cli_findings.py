"""What ``avvp data check`` and ``pack`` tell about annotations and feature files that are odd but can be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # the commands import what they run, since torch and pyarrow take seconds to load
    from avvp_dist.data.feature_files import OddFile
    from avvp_dist.data.llp import Annotations, Flaw

MEND = Annotated[
    bool,
    typer.Option("--mend", help="Correct the rows of the older AVVP_eval_audio.csv that LLP's authors corrected in 2024."),
]


def flaw_counts(annotated: Annotations) -> dict[str, dict[str, int]]:
    """Flaws of annotations by kind and file, for JSON."""
    counts: dict[str, dict[str, int]] = {}
    for (kind, file), number in sorted(annotated.count().items()):
        counts.setdefault(kind, {})[file] = number
    return counts


def tell_edition(flaws: Sequence[Flaw]) -> None:
    """Tells which edition annotations are, where their rows show that they are or were the older one."""
    from avvp_dist.data import llp_editions as editions

    older = [flaw for flaw in flaws if flaw.kind == editions.OLDER]
    mended = [flaw for flaw in flaws if flaw.kind == editions.MENDED]
    if older:
        typer.echo(
            f"{older[0].file} is the older edition: LLP's authors corrected {len(older)} of its rows on {editions.DATE}; "
            "here they name no video, and their events do not count:"
        )
    if mended:
        typer.echo(f"{len(mended)} rows of {mended[0].file} corrected as in the mended edition of {editions.DATE}:")
    for flaw in older or mended:
        typer.echo(f"  - {flaw.file}:{flaw.row}: {flaw.detail}")
    if older:
        typer.echo(
            "Scores on the two editions differ. --mend corrects these rows as the authors did; or take the mended file from "
            f"{editions.SOURCE}"
        )


def print_odd_files(console: Console, odd: Sequence[OddFile]) -> None:
    """Counts odd feature files by kind and stream, with the first of each; nothing where there is none."""
    from avvp_dist.data.feature_files import ODDITIES

    groups: dict[tuple[str, str], list[str]] = {}
    for found in odd:
        groups.setdefault((found.kind, found.file.rpartition("/")[0]), []).append(found.file)
    if not groups:
        return
    table = Table(title="odd feature files, which can be used", title_justify="left")
    for column in ("kind", "stream", "files", "first", "meaning"):
        table.add_column(column, justify="right" if column == "files" else "left", overflow="fold")
    for (kind, stream), files in sorted(groups.items()):
        table.add_row(kind, escape(stream), f"{len(files):,}", escape(files[0].rpartition("/")[2]), ODDITIES[kind])
    console.print(table)
