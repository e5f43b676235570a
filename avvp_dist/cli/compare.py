"""The command ``avvp compare``: compares finished runs over seeds and tests their differences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from avvp_dist import storage
from avvp_dist.cli.output import console, echo, valid_url
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.errors import ConfigError
from avvp_dist.metrics.names import DEFAULT_SCORE, LEVELS, PROTOCOLS, SCORES, Level, Protocol
from avvp_dist.text.escape import cell

if TYPE_CHECKING:
    from avvp_dist.report.compare import Comparison, ComparisonOptions


_Split = Literal["both", "val", "test"]
_Level = Literal["own", Level, "all"]
_Protocol = Literal["own", Protocol, "all"]

_RUNS = Annotated[
    list[str] | None, typer.Argument(metavar="RUN", help="Folders or URLs of finished runs.", callback=valid_url)
]
_SWEEP = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FOLDER", help="Compare the finished runs of the sweep with this name or folder.", callback=valid_url
    ),
]
_SCORE = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL.METRIC", help="Score to test, rank and plot by; default the sweep's metric, or segment.type."
    ),
]
_BASELINE = Annotated[
    str | None, typer.Option(metavar="LABEL|RUN", help="Setting to test the others against; default the first.")
]
_SELECT = Annotated[
    bool, typer.Option("--select", help="Rank by val, and show only the test score of the setting that is best on val.")
]
_SPLIT = Annotated[_Split, typer.Option(help="Split whose scores are shown.")]
_PROTOCOL = Annotated[
    _Protocol, typer.Option(help="Evaluation protocol; own: for all settings, that of --baseline or of the first run.")
]
_LEVEL = Annotated[_Level, typer.Option(help="Level of the scores; own: that of --score.")]
_WITHOUT_SPEECH = Annotated[bool, typer.Option("--without-speech", help="Also show the scores without class Speech.")]
_PER_CLASS = Annotated[bool, typer.Option("--per-class", help="Also show the scores of each class.")]
_PUBLISHED = Annotated[bool, typer.Option("--published", help="Also show the published figures for LLP.")]
_CSV = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write all scores to this file, one per row.", callback=valid_url)
]
_MARKDOWN = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write the tables as Markdown to this file.", callback=valid_url)
]
_LATEX = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write the tables as LaTeX to this file.", callback=valid_url)
]
_FIGURES = Annotated[
    str | None,
    typer.Option("--pictures", metavar="FOLDER", help="Write figures of the scores to this folder.", callback=valid_url),
]


@dataclass(frozen=True)
class _Files:
    """Files and folders to write a comparison to; None for those not requested."""

    csv: str | None
    markdown: str | None
    latex: str | None
    figures: str | None

    def refuse_unwritable(self) -> None:
        from avvp_dist.storage.probe import refuse_unwritable

        files = {"--csv": self.csv, "--markdown": self.markdown, "--latex": self.latex}
        refuse_unwritable(files=files, folders={"--pictures": self.figures})


def compare(
    runs: _RUNS = None,
    sweep: _SWEEP = None,
    score: _SCORE = None,
    baseline: _BASELINE = None,
    select: _SELECT = False,
    split: _SPLIT = "both",
    protocol: _PROTOCOL = "own",
    level: _LEVEL = "own",
    without_speech: _WITHOUT_SPEECH = False,
    per_class: _PER_CLASS = False,
    published: _PUBLISHED = False,
    csv: _CSV = None,
    markdown: _MARKDOWN = None,
    latex: _LATEX = None,
    pictures: _FIGURES = None,
    storage_settings: STORAGE = None,
) -> None:
    """Compare finished runs: mean, spread and confidence interval over seeds, and paired tests over videos.

    Runs that differ only in their seed form one setting. Both val and test scores are shown; to choose a setting by its val
    score, use --select.
    """
    if not runs and not sweep:
        raise ConfigError("runs: missing; give folders of finished runs, or --sweep FOLDER")
    if select and split == "test":
        raise ConfigError("--select ranks by val; it cannot be combined with --split test")
    from avvp_dist.experiments import comparison as reading  # importing torch takes seconds
    from avvp_dist.report import compare as comparing

    if score and score not in SCORES:
        raise ConfigError(f"--score {score!r}: unknown; valid names: {', '.join(SCORES)}")
    files = _Files(csv, markdown, latex, pictures)
    files.refuse_unwritable()
    finished = reading.read_sweep(sweep) if sweep else None
    settings, notes = reading.read_settings([*(runs or []), *(finished.runs if finished else [])])
    if finished and finished.trials and finished.trials > len(finished.runs):
        notes.append(f"{finished.trials - len(finished.runs)} of the sweep's {finished.trials} trials have no result")
    reference = reading.find_setting(settings, baseline) if baseline else None
    score = score or (finished.metric if finished else None) or DEFAULT_SCORE
    options = _options(split, protocol, (reference or settings[0]).protocol, level, score, without_speech, per_class)
    comparison = comparing.compare_groups(settings, options, baseline=reference, select=select, notes=notes)
    _write_comparison(comparison, published, files)


def _options(
    split: _Split, protocol: _Protocol, own_protocol: str, level: _Level, score: str, without_speech: bool, per_class: bool
) -> ComparisonOptions:
    """Resolve the options that select which scores are shown."""
    from avvp_dist.report.compare import ComparisonOptions

    return ComparisonOptions(
        splits=("val", "test") if split == "both" else (split,),
        protocols=PROTOCOLS if protocol == "all" else (own_protocol if protocol == "own" else protocol,),
        levels=LEVELS if level == "all" else (score.partition(".")[0] if level == "own" else level,),
        score=score,
        without_speech=without_speech,
        per_class=per_class,
    )


def _write_comparison(comparison: Comparison, published: bool, files: _Files) -> None:
    """Print the comparison and write it to the requested files."""
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
    if files.csv:
        _write("csv", files.csv, compare_tables.csv_text(comparison))
    if files.markdown:
        _write("markdown", files.markdown, text_table.markdown(tables, lines))
    if files.latex:
        _write("latex", files.latex, text_table.latex(tables, lines))
    if files.figures:
        with TemporaryDirectory() as scratch:
            drawn = compare_figures.draw(Path(scratch), comparison)
            for figure in drawn:
                storage.write_bytes(storage.join(files.figures, figure.name), figure.read_bytes())
        echo(f"figures {', '.join(storage.join(files.figures, figure.name) for figure in drawn)}")


def _write(kind: str, url: str, content: str) -> None:
    storage.write_text(url, content)
    echo(f"{kind} {url}")
