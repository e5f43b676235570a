"""The command ``avvp table``: reproduces a paper's table."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from avvp_dist import storage
from avvp_dist.cli.output import console, echo, seed_list, valid_url
from avvp_dist.cli.storage_options import configure
from avvp_dist.errors import ConfigError
from avvp_dist.text.credentials import without_secrets


def table(
    name: Annotated[str | None, typer.Argument(help="Name of a shipped table (see --list) or path of a .yaml file.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Packed data set, given again for each further one that rows ask for; `synthetic`, the default, makes them "
            "up below the output.",
            callback=valid_url,
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="S,S,...", help="Seeds; every row runs with each.")] = "1,2,3",
    output: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder or URL for runs and table.json; default outputs/tables/NAME.", callback=valid_url
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each training stage, for a quick look; the table says so.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting for all rows; may be repeated. data.refined=FILE, labels of segments, is for rows like VALOR's.",
        ),
    ] = None,
    videos: Annotated[
        str | None,
        typer.Option(metavar="N|TRAIN,VAL,TEST", help="Synthetic videos in all or by split; default 2500,649,1200."),
    ] = None,
    annotations: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Synthetic features for the labels of these annotation files.", callback=valid_url),
    ] = None,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the table to this file.", callback=valid_url)
    ] = None,
    list_tables: Annotated[bool, typer.Option("--list", help="List the shipped tables.")] = False,
) -> None:
    """Reproduce a paper's table: run its rows over seeds, print the scores beside the published ones.

    The same command goes on where it was stopped: finished runs are not run again, finished stages are shared by rows.
    """
    from avvp_dist.experiments import paper_tables
    from avvp_dist.experiments.recipe import absolute_overrides
    from avvp_dist.tracking.address import check_address

    if list_tables:
        for known, listed in paper_tables.tables().items():
            typer.echo(f"{known:20} {listed.title} ({len(listed.rows)} rows; {listed.source})")
        return
    if name is None:
        raise ConfigError(f"table: missing; valid names: {', '.join(paper_tables.tables())}, or the path of a .yaml file")
    settings = [without_secrets(setting) for setting in settings or []]
    configure(settings)
    short, chosen = paper_tables.read(name)
    paper_tables.refuse_reserved(settings)
    wanted = [*([f"train.epochs={epochs}"] if epochs else []), *absolute_overrides(settings)]
    rows = paper_tables.configs(chosen, wanted)  # before data are made for rows that cannot run
    for row in rows:
        check_address(row.tracking)
    numbers, output = seed_list(seeds), storage.absolute(output or f"outputs/tables/{short}")
    counts = _videos(videos)
    made_up = data in (None, [], ["synthetic"])
    if not made_up and (videos or annotations):
        raise ConfigError("--videos and --annotations are for --data synthetic only")

    from avvp_dist.launch import paper_table as tables  # torch and its friends take seconds to import
    from avvp_dist.report import paper
    from avvp_dist.storage.probe import refuse_unwritable

    storage.configure(rows[0].storage)
    refuse_unwritable(folders={"--output": output}, files={"--markdown": markdown})
    given = [storage.absolute(url) for url in data or []]
    urls = tables.synthetic_data(output, rows, counts, annotations) if made_up else given
    content = tables.run(short, chosen, urls=urls, output=output, seeds=numbers, settings=wanted)
    console().print(paper.table(content), highlight=False)
    echo(f"table {storage.join(output, 'table.json')}")
    if markdown:
        storage.write_text(markdown, paper.markdown(content))
        echo(f"markdown {markdown}")


def _videos(text: str | None) -> int | tuple[int, int, int] | None:
    if text is None:
        return None
    counts = [int(part) for part in text.split(",")] if re.fullmatch(r"\d{1,9}(,\d{1,9})*", text, re.ASCII) else []
    if len(counts) == 1:
        return counts[0]
    if len(counts) == 3:
        return counts[0], counts[1], counts[2]
    raise ConfigError(f"--videos {text!r}: expected one whole number or three, e.g. 4000 or 2500,649,1200")
