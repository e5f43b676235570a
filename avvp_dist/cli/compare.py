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
from avvp_dist.text.escape import cell
from avvp_dist.text.plural import plural

if TYPE_CHECKING:
    from avvp_dist.report.compare import Comparison, ComparisonOptions
    from avvp_dist.report.runs import TaskInfo


_Split = Literal["both", "val", "test"]

_RUNS = Annotated[
    list[str] | None, typer.Argument(metavar="RUN", help="Folders or URLs of finished runs.", callback=valid_url)
]
_SWEEP = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FOLDER", help="Compare the finished runs of the sweep with this name or folder.", callback=valid_url
    ),
]
_METRIC = Annotated[
    str | None,
    typer.Option(
        "--metric",
        "--score",
        metavar="NAME",
        help="Metric to test, rank and plot by; default the sweep's, or the default metric of the runs' task.",
    ),
]
_BASELINE = Annotated[
    str | None, typer.Option(metavar="LABEL|RUN", help="Setting to test the others against; default the first.")
]
_SELECT = Annotated[
    bool, typer.Option("--select", help="Rank by val, and show only the test score of the setting that is best on val.")
]
_SPLIT = Annotated[_Split, typer.Option(help="Split whose scores are shown.")]
_VIEW = Annotated[
    str,
    typer.Option(
        "--view",
        "--protocol",
        metavar="own|all|NAME",
        help="View of the task, such as a protocol; own: for all settings, that of --baseline or of the first run.",
    ),
]
_GROUP = Annotated[
    str,
    typer.Option("--group", "--level", metavar="own|all|NAME", help="Group of metrics to show; own: that of --metric."),
]
_SUBSETS = Annotated[bool, typer.Option("--subsets", help="Also show the scores of the task's subsets of the classes.")]
_PER_CLASS = Annotated[bool, typer.Option("--per-class", help="Also show the scores of each class.")]
_PUBLISHED = Annotated[bool, typer.Option("--published", help="Also show the published figures for the task.")]
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
    typer.Option("--figures", metavar="FOLDER", help="Write figures of the scores to this folder.", callback=valid_url),
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
        refuse_unwritable(files=files, folders={"--figures": self.figures})


def compare(
    runs: _RUNS = None,
    sweep: _SWEEP = None,
    metric: _METRIC = None,
    baseline: _BASELINE = None,
    select: _SELECT = False,
    split: _SPLIT = "both",
    view: _VIEW = "own",
    group: _GROUP = "own",
    subsets: _SUBSETS = False,
    per_class: _PER_CLASS = False,
    published: _PUBLISHED = False,
    csv: _CSV = None,
    markdown: _MARKDOWN = None,
    latex: _LATEX = None,
    figures: _FIGURES = None,
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

    files = _Files(csv, markdown, latex, figures)
    files.refuse_unwritable()
    finished = reading.read_sweep(sweep) if sweep else None
    settings, notes = reading.read_settings([*(runs or []), *(finished.runs if finished else [])])
    if finished and finished.trials and finished.trials > len(finished.runs):
        without = finished.trials - len(finished.runs)
        notes.append(f"{without} of the sweep's {finished.trials} trials {plural(without, 'has', 'have')} no result")
    reference = reading.find_setting(settings, baseline) if baseline else None
    task = (reference or settings[0]).task
    metric = metric or (finished.metric if finished else None) or task.default_metric
    options = _options(task, split=split, view=view, group=group, metric=metric, subsets=subsets, per_class=per_class)
    comparison = comparing.compare_groups(settings, options, baseline=reference, select=select, notes=notes)
    _write_comparison(comparison, published, files)


def _options(
    task: TaskInfo, *, split: _Split, view: str, group: str, metric: str, subsets: bool, per_class: bool
) -> ComparisonOptions:
    """Resolve the options that select which scores are shown.

    Raises:
        ConfigError: all names that the task does not have.
    """
    from avvp_dist.report.compare import ComparisonOptions

    problems = []
    for option, name, valid in (
        ("--metric", metric, task.metrics),
        ("--view", view, ("own", "all", *task.views)),
        ("--group", group, ("own", "all", *task.groups)),
    ):
        if name not in valid:
            problems.append(f"{option} {name!r}: unknown; valid names: {', '.join(filter(None, valid))}")
    if problems:
        raise ConfigError(problems, f"the runs are of task {task.name}")
    views = task.main_views if view == "all" else (task.view if view == "own" else view,)
    return ComparisonOptions(
        splits=("val", "test") if split == "both" else (split,),
        views=tuple(shown for name in views for shown in (name, *(task.subsets(name) if subsets else ()))),
        groups=task.groups if group == "all" else (task.metrics[metric].group if group == "own" else group,),
        metric=metric,
        per_class=per_class,
    )


def _write_comparison(comparison: Comparison, published: bool, files: _Files) -> None:
    """Print the comparison and write it to the requested files."""
    from avvp_dist.experiments.published_scores import published_scores
    from avvp_dist.report import compare_figures, compare_tables, text_table

    papers = published_scores(comparison.task.name) if published else None
    if published and papers is None:
        echo(f"no published scores for task {comparison.task.name} come with this package")
    tables = compare_tables.tables(comparison, papers)
    lines = [*comparison.notes, *compare_tables.explain_tests(comparison)]
    lines += compare_tables.explain_published(comparison, papers) if papers else []
    stdout = console()
    for table in tables:
        stdout.print(text_table.TerminalTable(table))
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
