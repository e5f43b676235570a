"""The command ``avvp compare``: finished runs side by side, over seeds, with the certainty of their differences."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from avvp_dist import storage
from avvp_dist.cli.output import console, say, usable
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.errors import ConfigError
from avvp_dist.metrics.names import DEFAULT_SCORE, LEVELS, PROTOCOLS, SCORES, Level, Protocol
from avvp_dist.text.escape import cell

if TYPE_CHECKING:
    from avvp_dist.report.compare import Comparison


_Split = Literal["both", "val", "test"]
_Level = Literal["own", Level, "all"]
_Protocol = Literal["own", Protocol, "all"]


def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Folders or URLs of finished runs.", callback=usable)
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER", help="Finished runs of the sweep in this folder, or of this name.", callback=usable
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(metavar="LEVEL.METRIC", help="Score to test, choose and draw by; default segment.type or the sweep's."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="LABEL|RUN", help="Setting to test the others against; default the first.")
    ] = None,
    select: Annotated[
        bool, typer.Option("--select", help="Rank by val; show the test score of the best on val, and of no other.")
    ] = False,
    split: Annotated[_Split, typer.Option(help="Whose scores to show.")] = "both",
    protocol: Annotated[
        _Protocol, typer.Option(help="own: that of --baseline or of the first run, for every setting.")
    ] = "own",
    level: Annotated[_Level, typer.Option(help="own: that of --score.")] = "own",
    without_speech: Annotated[bool, typer.Option("--without-speech", help="Also the scores without Speech.")] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also the scores of each class.")] = False,
    published: Annotated[bool, typer.Option("--published", help="Also what papers print for LLP.")] = False,
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write every score to this file, one a row.", callback=usable)
    ] = None,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the tables to this file.", callback=usable)
    ] = None,
    latex: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the tables to this file.", callback=usable)
    ] = None,
    pictures: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Draw the scores into this folder.", callback=usable)
    ] = None,
    storage_settings: STORAGE = None,
) -> None:
    """Put finished runs side by side: mean, spread and interval over seeds, paired tests over videos.

    Runs that differ only in their seed are one setting. Shows val and test; choose by val, with --select.
    """
    if not runs and not sweep:
        raise ConfigError("runs: missing; give folders of finished runs, or --sweep FOLDER")
    if select and split == "test":
        raise ConfigError("--select chooses by val: leave --split test away")
    from avvp_dist.experiments import comparison as reading  # torch and its friends take seconds to import
    from avvp_dist.report import compare as comparing
    from avvp_dist.storage.probe import refuse_unwritable

    if score and score not in SCORES:
        raise ConfigError(f"--score {score!r}: unknown; valid names: {', '.join(SCORES)}")
    refuse_unwritable(files={"--csv": csv, "--markdown": markdown, "--latex": latex}, folders={"--pictures": pictures})
    found = reading.read_sweep(sweep) if sweep else None
    settings, notes = reading.read_settings([*(runs or []), *(found.runs if found else [])])
    if found and found.trials and found.trials > len(found.runs):
        notes.append(f"{found.trials - len(found.runs)} of the sweep's {found.trials} trials left no result")
    against = reading.named(settings, baseline) if baseline else None
    score = score or (found.metric if found else None) or DEFAULT_SCORE
    own = (against or settings[0]).protocol
    options = comparing.ComparisonOptions(
        splits=("val", "test") if split == "both" else (split,),
        protocols=PROTOCOLS if protocol == "all" else (own if protocol == "own" else protocol,),
        levels=LEVELS if level == "all" else (score.partition(".")[0] if level == "own" else level,),
        score=score,
        without_speech=without_speech,
        per_class=per_class,
    )
    comparison = comparing.compare_groups(settings, options, baseline=against, select=select, notes=notes)
    _tell(comparison, published=published, csv=csv, markdown=markdown, latex=latex, pictures=pictures)


def _tell(
    comparison: Comparison,
    *,
    published: bool,
    csv: str | None,
    markdown: str | None,
    latex: str | None,
    pictures: str | None,
) -> None:
    """Prints the comparison, and writes it to the files asked for."""
    from avvp_dist.report import compare_figures, compare_tables, text_table
    from avvp_dist.report.published import published_scores

    papers = published_scores() if published else None
    tables = compare_tables.tables(comparison, papers)
    lines = [*comparison.notes, *compare_tables.explain_tests(comparison)]
    lines += compare_tables.explain_published(comparison, papers) if papers else []
    stdout = console()
    for table in tables:
        stdout.print(text_table.terminal(table))
    for line in lines:
        stdout.print(cell(f"- {line}"))
    if csv:
        _write("csv", csv, compare_tables.csv_text(comparison))
    if markdown:
        _write("markdown", markdown, text_table.markdown(tables, lines))
    if latex:
        _write("latex", latex, text_table.latex(tables, lines))
    if pictures:
        with TemporaryDirectory() as scratch:
            drawn = compare_figures.draw(Path(scratch), comparison)
            for picture in drawn:
                storage.write_bytes(storage.join(pictures, picture.name), picture.read_bytes())
        say(f"pictures {', '.join(storage.join(pictures, picture.name) for picture in drawn)}")


def _write(what: str, place: str, content: str) -> None:
    storage.write_text(place, content)
    say(f"{what} {place}")
