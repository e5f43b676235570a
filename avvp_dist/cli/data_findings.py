"""Output of ``avvp data check`` and ``pack`` about annotations and feature files that are unusual but usable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from avvp_dist.cli.data_view import table
from avvp_dist.cli.output import echo
from avvp_dist.text.plural import plural

if TYPE_CHECKING:  # importing pyarrow and torch takes seconds
    from avvp_dist.datasets.flaws import Flaw
    from avvp_dist.shards.feature_source import OddFile


def print_edition(flaws: Sequence[Flaw]) -> None:
    """Print which edition the annotations are, if their rows are, or were before --mend, those of the older one."""
    from avvp_dist.datasets import llp_editions as editions

    older = [flaw for flaw in flaws if flaw.kind == editions.OLDER]
    corrected = [flaw for flaw in flaws if flaw.kind == editions.MENDED]
    if older:
        echo(
            f"{older[0].file} is the older edition: LLP's authors corrected {len(older)} of its rows on {editions.DATE}; "
            "here these rows match no video, and their events do not count:"
        )
    if corrected:
        rows = plural(len(corrected), "row")
        echo(f"{len(corrected)} {rows} of {corrected[0].file} corrected as in the edition of {editions.DATE}:")
    for flaw in older or corrected:
        echo(f"  - {flaw.file}:{flaw.row}: {flaw.detail}")
    if older:
        echo(
            "Scores on the two editions differ. --mend corrects these rows as the authors did; or download the corrected "
            f"file from {editions.SOURCE}"
        )


def print_odd_files(console: Console, odd: Sequence[OddFile]) -> None:
    """Print the number of unusual feature files by kind and stream, with the first of each; nothing if there are none."""
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
    console.print(table("unusual but usable feature files", columns, rows, numbers=("files",)))
