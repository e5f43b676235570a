"""The command ``avvp compare``: finished runs side by side, over seeds, with the certainty of their differences."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from avvp_dist import storage
from avvp_dist.cli.output import console, echo, valid_url
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.errors import ConfigError
from avvp_dist.text.escape import cell

if TYPE_CHECKING:
    from avvp_dist.report.compare import Comparison


class _Split(StrEnum):
    BOTH = "both"
    VAL = "val"
    TEST = "test"


class _Level(StrEnum):
    OWN = "own"
    SEGMENT = "segment"
    EVENT = "event"
    ALL = "all"


class _Rule(StrEnum):
    OWN = "own"
    JOINT = "joint"
    MODALITY = "modality"
    NONE = "none"
    ALL = "all"


def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Folders or URLs of finished runs.", callback=valid_url)
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER", help="Finished runs of the sweep in this folder, or of this name.", callback=valid_url
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
    split: Annotated[_Split, typer.Option(help="Whose scores to show.")] = _Split.BOTH,
    protocol: Annotated[
        _Rule, typer.Option(help="own: that of --baseline or of the first run, for every setting.")
    ] = _Rule.OWN,
    level: Annotated[_Level, typer.Option(help="own: that of --score.")] = _Level.OWN,
    without_speech: Annotated[bool, typer.Option("--without-speech", help="Also the scores without Speech.")] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also the scores of each class.")] = False,
    published: Annotated[bool, typer.Option("--published", help="Also what papers print for LLP.")] = False,
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write every score to this file, one a row.", callback=valid_url)
    ] = None,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the tables to this file.", callback=valid_url)
    ] = None,
    latex: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the tables to this file.", callback=valid_url)
    ] = None,
    pictures: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Draw the scores into this folder.", callback=valid_url)
    ] = None,
    storage_settings: STORAGE = None,
) -> None:
    """Put finished runs side by side: mean, spread and interval over seeds, paired tests over videos.

    Runs that differ only in their seed are one setting. Shows val and test; choose by val, with --select.
    """
    if not runs and not sweep:
        raise ConfigError("runs: missing; give folders of finished runs, or --sweep FOLDER")
    if select and split is _Split.TEST:
        raise ConfigError("--select chooses by val: leave --split test away")
    from avvp_dist.experiments import comparison as reading  # torch and its friends take seconds to import
    from avvp_dist.metrics.parsing import LEVELS, PROTOCOLS
    from avvp_dist.report import compare as comparing
    from avvp_dist.storage.probe import refuse_unwritable
    from avvp_dist.train.evaluate import SCORES

    if score and score not in SCORES:
        raise ConfigError(f"--score {score!r}: unknown; valid names: {', '.join(SCORES)}")
    refuse_unwritable(files={"--csv": csv, "--markdown": markdown, "--latex": latex}, folders={"--pictures": pictures})
    found = reading.read_sweep(sweep) if sweep else None
    settings, notes = reading.read_settings([*(runs or []), *(found.runs if found else [])])
    if found and found.trials and found.trials > len(found.runs):
        notes.append(f"{found.trials - len(found.runs)} of the sweep's {found.trials} trials left no result")
    against = reading.find_setting(settings, baseline) if baseline else None
    score = score or (found.metric if found else None) or "segment.type"
    own = (against or settings[0]).protocol
    view = comparing.View(
        splits=("val", "test") if split is _Split.BOTH else (split.value,),
        protocols=PROTOCOLS if protocol is _Rule.ALL else (own if protocol is _Rule.OWN else protocol.value,),
        levels=LEVELS if level is _Level.ALL else (score.partition(".")[0] if level is _Level.OWN else level.value,),
        score=score,
        without_speech=without_speech,
        per_class=per_class,
    )
    comparison = comparing.side_by_side(settings, view, baseline=against, select=select, notes=notes)
    _write_comparison(comparison, published=published, csv=csv, markdown=markdown, latex=latex, pictures=pictures)


def _write_comparison(
    comparison: Comparison,
    *,
    published: bool,
    csv: str | None,
    markdown: str | None,
    latex: str | None,
    pictures: str | None,
) -> None:
    """Prints the comparison, and writes it to the files asked for."""
    from avvp_dist.report import compare_pictures, compare_tables, sheets
    from avvp_dist.report.published import published_scores

    papers = published_scores() if published else None
    tables = compare_tables.sheets(comparison, papers)
    lines = [*comparison.notes, *compare_tables.explain_tests(comparison)]
    lines += compare_tables.explain_published(comparison, papers) if papers else []
    stdout = console()
    for table in tables:
        stdout.print(sheets.terminal(table))
    for line in lines:
        stdout.print(cell(f"- {line}"))
    if csv:
        _write("csv", csv, compare_tables.csv_text(comparison))
    if markdown:
        _write("markdown", markdown, sheets.markdown(tables, lines))
    if latex:
        _write("latex", latex, sheets.latex(tables, lines))
    if pictures:
        with TemporaryDirectory() as scratch:
            drawn = compare_pictures.draw(Path(scratch), comparison)
            for picture in drawn:
                storage.write_bytes(storage.join(pictures, picture.name), picture.read_bytes())
        echo(f"pictures {', '.join(storage.join(pictures, picture.name) for picture in drawn)}")


def _write(what: str, place: str, content: str) -> None:
    storage.write_text(place, content)
    echo(f"{what} {place}")
