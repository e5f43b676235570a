"""What ``avvp data check`` and ``pack`` tell about annotations and feature files that are odd but can be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from avvp_dist.cli.data_view import table
from avvp_dist.cli.output import echo

if TYPE_CHECKING:  # the commands import what they run, since torch and pyarrow take seconds to load
    from avvp_dist.datasets.llp import Flaw
    from avvp_dist.shards.feature_source import OddFile

MEND = Annotated[
    bool,
    typer.Option("--mend", help="Correct the rows of the older AVVP_eval_audio.csv that LLP's authors corrected in 2024."),
]


def print_edition(flaws: Sequence[Flaw]) -> None:
    """Tells which edition annotations are, where their rows show that they are or were the older one."""
    from avvp_dist.datasets import llp_editions as editions

    older = [flaw for flaw in flaws if flaw.kind == editions.OLDER]
    mended = [flaw for flaw in flaws if flaw.kind == editions.MENDED]
    if older:
        echo(
            f"{older[0].file} is the older edition: LLP's authors corrected {len(older)} of its rows on {editions.DATE}; "
            "here they name no video, and their events do not count:"
        )
    if mended:
        echo(f"{len(mended)} rows of {mended[0].file} corrected as in the mended edition of {editions.DATE}:")
    for flaw in older or mended:
        echo(f"  - {flaw.file}:{flaw.row}: {flaw.detail}")
    if older:
        echo(
            "Scores on the two editions differ. --mend corrects these rows as the authors did; or take the mended file from "
            f"{editions.SOURCE}"
        )


def print_odd_files(console: Console, odd: Sequence[OddFile]) -> None:
    """Counts odd feature files by kind and stream, with the first of each; nothing where there is none."""
    from avvp_dist.shards.feature_source import ODDITIES

    groups: dict[tuple[str, str], list[str]] = {}
    for found in odd:
        groups.setdefault((found.kind, found.file.rpartition("/")[0]), []).append(found.file)
    if not groups:
        return
    rows = [
        (kind, stream, len(files), files[0].rpartition("/")[2], ODDITIES[kind])
        for (kind, stream), files in sorted(groups.items())
    ]
    columns = ("kind", "stream", "files", "first", "meaning")
    console.print(table("odd feature files, which can be used", columns, rows, numbers=("files",)))
