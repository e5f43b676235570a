"""The commands below ``avvp cache``: inspect and empty this node's cache of shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from avvp_dist.cli.errors import Commands
from avvp_dist.cli.output import echo, valid_url
from avvp_dist.errors import ConfigError

if TYPE_CHECKING:
    from avvp_dist.shards.cache import ShardCache

cache = typer.Typer(
    cls=Commands,
    name="cache",
    help="Inspect or empty this node's cache of remote shards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_FOLDER = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="FOLDER",
        help="Cache folder (data.cache of a run); default $AVVP_CACHE, or avvp_dist in the user's cache directory.",
        callback=valid_url,
    ),
]


@cache.command()
def info(folder: _FOLDER = None) -> None:
    """Print the cache's folder, content and size limit.

    The limit is the data.cache_gb of each run; it is enforced whenever a shard is added.
    """
    from avvp_dist.shards.cache import DEFAULT_GB

    opened = _open(folder)
    echo(f"folder: {opened.folder}")
    entries, size = opened.usage()
    echo(f"shards: {entries}")
    echo(f"bytes: {size:,}")
    echo(f"limit: {DEFAULT_GB:g} GB, unless a run sets data.cache_gb")


@cache.command()
def clear(folder: _FOLDER = None) -> None:
    """Delete the cached shards, except those that a run is reading."""
    opened = _open(folder)
    before = opened.usage()
    left = opened.clear()
    echo(f"folder: {opened.folder}")
    echo(f"shards deleted: {before.entries - left.entries}")
    echo(f"bytes deleted: {before.bytes - left.bytes:,}")
    if left.entries:
        echo(f"shards kept because they are being read: {left.entries}")


def _open(folder: str | None) -> ShardCache:
    from avvp_dist import storage
    from avvp_dist.shards.cache import ShardCache

    path = None if folder is None else storage.local_path(folder)
    if folder is not None and (path is None or (path.exists() and not path.is_dir())):
        raise ConfigError(f"--cache {folder}: must be a folder on this machine")
    return ShardCache(folder)
