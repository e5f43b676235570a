"""The command ``avvp config``: prints a resolved config."""

from __future__ import annotations

import typer

from avvp_dist.cli.run_options import OVERRIDES, RECIPE, load_config


def config(recipe: RECIPE, overrides: OVERRIDES = None) -> None:
    """Print the resolved config of a recipe with overrides, as YAML."""
    typer.echo(load_config(recipe, overrides or []).to_yaml(), nl=False)
