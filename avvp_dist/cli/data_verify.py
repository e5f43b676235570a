"""The command ``avvp data verify``: verifies every file of a packed data set."""

from __future__ import annotations

from typing import Annotated

import typer

from avvp_dist.cli.data_options import URL, WORKERS
from avvp_dist.cli.output import echo
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.errors import DataError

_RECORD = Annotated[
    bool,
    typer.Option("--record", help="If all is good, add the checksums that a data set of an earlier version does not have."),
]


def verify(url: URL, record: _RECORD = False, workers: WORKERS = None, storage_settings: STORAGE = None) -> None:
    """Read a packed data set completely: verify every hash and video, and that labels and shards agree.

    Exit code 2: something is bad. data.on_bad=skip trains without the bad videos; packing again repairs them. --record
    changes the fingerprint of the data set, so stages of earlier runs on it are not reused.
    """
    from avvp_dist.shards.verify import verify as verify_all

    result = verify_all(url, workers, record)
    if result.problems:
        bad = f"; {result.bad_videos} of {result.videos} videos are bad" if result.bad_videos else ""
        count = f"{len(result.problems)} problem{'s' if len(result.problems) > 1 else ''}"
        raise DataError(result.problems, f"{url}: {count}{bad}")
    size = f"{result.bytes / 1e9:.3g} GB"
    content = f"{result.shards} shards, {result.videos} videos, {size}, fingerprint {result.fingerprint[:16]}"
    echo(f"{url}: {content}: all as the index says")
