"""The commands below ``avvp cache``: look at this node's cache of shards, empty it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from avvp_dist.cli.output import echo, valid_url
from avvp_dist.errors import ConfigError

if TYPE_CHECKING:
    from avvp_dist.shards.cache import ShardCache

cache = typer.Typer(
    name="cache",
    help="Look at this node's cache of remote shards, or empty it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_FOLDER = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="A run's data.cache; default $AVVP_CACHE or avvp_dist in the user's cache directory.",
        callback=valid_url,
    ),
]


@cache.command()
def info(folder: _FOLDER = None) -> None:
    """Print where the cache is, what it holds and what it may hold.

    The limit is a run's own data.cache_gb; it is enforced whenever a shard is added.
    """
    from avvp_dist.shards.cache import DEFAULT_GB

    found = _open(folder)
    echo(f"folder: {found.folder}")
    entries, held = found.usage()
    echo(f"shards: {entries}")
    echo(f"bytes: {held:,}")
    echo(f"limit: {DEFAULT_GB:g} GB, unless a run sets data.cache_gb")


@cache.command()
def clear(folder: _FOLDER = None) -> None:
    """Delete the cached shards, but for those that a run is reading now."""
    found = _open(folder)
    before = found.usage()
    left = found.clear()
    echo(f"folder: {found.folder}")
    echo(f"shards deleted: {before.entries - left.entries}")
    echo(f"bytes deleted: {before.bytes - left.bytes:,}")
    if left.entries:
        echo(f"shards kept, being read: {left.entries}")


def _open(folder: str | None) -> ShardCache:
    from avvp_dist import storage
    from avvp_dist.shards.cache import ShardCache

    here = None if folder is None else storage.local_path(folder)
    if folder is not None and (here is None or (here.exists() and not here.is_dir())):
        raise ConfigError(f"--cache {folder}: must be a folder on this machine")
    return ShardCache(folder)
