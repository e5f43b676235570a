"""The command ``avvp table``: reproduces a paper's table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from avvp_dist import storage
from avvp_dist.cli.output import console, echo, seed_list, valid_url
from avvp_dist.cli.run_options import distinct_keys
from avvp_dist.cli.storage_options import configure
from avvp_dist.errors import ConfigError
from avvp_dist.text.credentials import redact_setting

if TYPE_CHECKING:
    from avvp_dist.experiments.paper_tables import PaperTable
    from avvp_dist.experiments.recipe import RunConfig

_NAME = Annotated[
    str | None, typer.Argument(metavar="NAME", help="Name of a shipped table (see --list) or path of a .yaml file.")
]
_DATA = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL",
        help="Packed data set; repeat the option if rows need several. Default `synthetic`: generate synthetic data in the "
        "output folder.",
        callback=valid_url,
    ),
]
_SEEDS = Annotated[str, typer.Option(metavar="S,S,...", help="Seeds; every row is trained with each of them.")]
_OUTPUT = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER", help="Folder or URL for runs and table.json; default outputs/tables/NAME.", callback=valid_url
    ),
]
_EPOCHS = Annotated[
    int | None, typer.Option(min=1, help="Epochs of each training stage, for a short test; recorded in the table.")
]
_SETTINGS = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        callback=distinct_keys,
        metavar="KEY=VALUE",
        help="Config override for all rows; can be repeated. data.refined=FILE (segment-level labels) applies only to rows "
        "that train on them, such as VALOR's.",
    ),
]
_VIDEOS = Annotated[
    str | None,
    typer.Option(
        metavar="N|TRAIN,VAL,TEST", help="Number of synthetic videos, in total or for each split; default 2500,649,1200."
    ),
]
_ANNOTATIONS = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER", help="Generate synthetic features for the labels of these annotation files.", callback=valid_url
    ),
]
_MARKDOWN = Annotated[
    str | None, typer.Option(metavar="FILE", help="Also write the table as Markdown to this file.", callback=valid_url)
]
_LIST = Annotated[bool, typer.Option("--list", help="List the shipped tables.")]


def table(
    name: _NAME = None,
    data: _DATA = None,
    seeds: _SEEDS = "1,2,3",
    output: _OUTPUT = None,
    epochs: _EPOCHS = None,
    settings: _SETTINGS = None,
    videos: _VIDEOS = None,
    annotations: _ANNOTATIONS = None,
    markdown: _MARKDOWN = None,
    list_tables: _LIST = False,
) -> None:
    """Reproduce a paper's table: train its rows over several seeds and print the scores beside the published ones.

    Running the same command again resumes it: finished runs are not repeated, and rows share finished stages.
    """
    if list_tables:
        _list_tables()
        return
    from avvp_dist.experiments import paper_tables
    from avvp_dist.experiments.recipe import absolute_overrides

    if name is None:
        raise ConfigError(f"table: missing; valid names: {', '.join(paper_tables.tables())}, or the path of a .yaml file")
    settings = [redact_setting(setting) for setting in settings or []]
    configure(settings)
    short, chosen = paper_tables.read(name)
    paper_tables.refuse_reserved(settings)
    overrides = [*([f"train.epochs={epochs}"] if epochs else []), *absolute_overrides(settings)]
    rows = _check_rows(chosen, overrides)  # before data are generated for rows that cannot run
    seed_numbers, output = seed_list(seeds), storage.absolute(output or f"outputs/tables/{short}")
    counts = _video_counts(videos)
    synthetic = data in (None, [], ["synthetic"])
    if not synthetic and (videos or annotations):
        raise ConfigError("--videos and --annotations can be used only with --data synthetic")

    from avvp_dist.launch import paper_table  # importing torch takes seconds
    from avvp_dist.report import paper
    from avvp_dist.storage.probe import refuse_unwritable

    storage.configure(rows[0].storage)
    refuse_unwritable(folders={"--output": output}, files={"--markdown": markdown})
    if synthetic:
        urls = paper_table.synthetic_data(output, rows, counts, annotations)
    else:
        urls = [storage.absolute(url) for url in data or []]
    content = paper_table.run(short, chosen, urls=urls, output=output, seeds=seed_numbers, settings=overrides)
    console().print(paper.table(content), highlight=False)
    echo(f"table {storage.join(output, 'table.json')}")
    if markdown:
        storage.write_text(markdown, paper.markdown(content))
        echo(f"markdown {markdown}")


def _list_tables() -> None:
    from avvp_dist.experiments import paper_tables

    for name, listed in paper_tables.tables().items():
        typer.echo(f"{name:20} {listed.title} ({len(listed.rows)} rows; {listed.source})")


def _check_rows(chosen: PaperTable, overrides: Sequence[str]) -> list[RunConfig]:
    """Return the config of every row, checked as far as possible without data."""
    from avvp_dist.experiments import paper_tables
    from avvp_dist.tracking.address import check_address

    rows = paper_tables.configs(chosen, overrides)
    for row in rows:
        check_address(row.tracking)
    return rows


def _video_counts(text: str | None) -> int | tuple[int, int, int] | None:
    if text is None:
        return None
    counts = [int(part) for part in text.split(",")] if re.fullmatch(r"\d{1,9}(,\d{1,9})*", text, re.ASCII) else []
    if len(counts) == 1:
        return counts[0]
    if len(counts) == 3:
        return counts[0], counts[1], counts[2]
    raise ConfigError(f"--videos {text!r}: expected one integer or three, e.g. 4000 or 2500,649,1200")
