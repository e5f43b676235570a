"""Arguments that the commands for runs share: a recipe and ``key=value`` overrides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from avvp_dist import storage
from avvp_dist.cli.storage_options import configure
from avvp_dist.errors import ConfigError

if TYPE_CHECKING:
    from avvp_dist.experiments.recipe import RunConfig


def distinct_keys(overrides: list[str] | None) -> list[str] | None:
    """Return overrides of a command line unchanged.

    Raises:
        ConfigError: a key is given more than once.
    """
    counts = Counter(override.partition("=")[0].strip() for override in overrides or [] if "=" in override)
    repeated = [f"{key}: given {count} times; give it once" for key, count in counts.items() if count > 1]
    if repeated:
        raise ConfigError(repeated, "repeated overrides")
    return overrides


RECIPE = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="Name of a shipped recipe (han, jomold, psp-lr, ...) or path of a .yaml file."),
]
OVERRIDES = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Config overrides, e.g. data=URL optim.lr=1e-3 launch=ray.",
        callback=distinct_keys,
    ),
]


def load_config(recipe: str, overrides: Sequence[str]) -> RunConfig:
    """Load a recipe with overrides, from object storage if ``recipe`` is a URL.

    Raises:
        ConfigError: all problems of recipe and overrides.
    """
    from avvp_dist.experiments.recipe import load

    configure_storage_for(recipe, overrides)
    return load(recipe, overrides)


def configure_storage_for(url: str, overrides: Sequence[str]) -> None:
    """Apply the ``storage.*`` overrides if ``url`` is in object storage, so that it can be read."""
    if storage.local_path(url) is None:
        configure(overrides)


def print_scores(results: dict[str, dict[str, Any]]) -> None:
    """Print the scores of runs as a table; ``results`` maps recipe names to contents of result.json."""
    from avvp_dist.report.tables import scores

    Console().print(scores(results))
