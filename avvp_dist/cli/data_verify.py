"""The command ``avvp data verify``: verifies every file of a packed data set."""

from __future__ import annotations

from typing import Annotated

import typer

from avvp_dist.cli.data_options import URL, WORKERS
from avvp_dist.cli.output import echo
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.errors import DataError
from avvp_dist.text.plural import plural

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
        are = plural(result.bad_videos, "is", "are")
        bad = f"; {result.bad_videos} of {result.videos} videos {are} bad" if result.bad_videos else ""
        count = f"{len(result.problems)} {plural(len(result.problems), 'problem')}"
        raise DataError(result.problems, f"{url}: {count}{bad}")
    shards = f"{result.shards} {plural(result.shards, 'shard')}"
    videos = f"{result.videos} {plural(result.videos, 'video')}, {result.bytes / 1e9:.3g} GB"
    echo(f"{url}: {shards}, {videos}, fingerprint {result.fingerprint[:16]}: all as the index says")
