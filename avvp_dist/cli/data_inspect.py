"""The command ``avvp data inspect``: shows the content of a packed data set."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from avvp_dist.cli.data_options import URL, WIDTH
from avvp_dist.cli.data_view import describe, print_inspection
from avvp_dist.cli.output import console
from avvp_dist.cli.storage_options import STORAGE


def inspect(
    url: URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    storage_settings: STORAGE = None,
) -> None:
    """Show the content of a packed data set: splits, streams, labels, videos left out, and provenance."""
    from avvp_dist.shards.index import Index, read_labels

    index = Index.load(url)
    content = describe(url, index, read_labels(url, index))
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        print_inspection(console(WIDTH), index, content)
