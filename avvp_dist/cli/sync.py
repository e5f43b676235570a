"""The command ``avvp sync``: sends tracking records that could not be sent during a run."""

from __future__ import annotations

from typing import Annotated

import typer

from avvp_dist.cli.output import echo, valid_url
from avvp_dist.cli.storage_options import STORAGE

_RUN = Annotated[
    str,
    typer.Argument(
        metavar="RUN|SWEEP",
        help="Folder or URL of a run with unsent tracking records, or of a sweep (all its trials).",
        callback=valid_url,
    ),
]
_URI = Annotated[str | None, typer.Option(help="MLflow tracking URI; default the one that the run was started with.")]


def sync(run: _RUN, uri: _URI = None, storage_settings: STORAGE = None) -> None:
    """Send the tracking records that a run or the trials of a sweep could not send while MLflow was unavailable.

    Exit code 1: some records are still unsent.
    """
    from avvp_dist.tracking.base import absolute_uri
    from avvp_dist.tracking.home import find_homes
    from avvp_dist.tracking.sender import sync as send

    uri = absolute_uri(uri) if uri else None
    left = 0
    for home in find_homes(run):
        report = send(home.folder, uri)
        home.keep()
        left += report.left
        echo(f"sent {report.sent} records to MLflow run {report.run_id}, {report.left} left")
        for line in filter(None, [*report.refused, report.error]):
            echo(line, err=True)
    raise typer.Exit(1 if left else 0)
