"""The command ``avvp recipes``: lists the shipped recipes."""

from __future__ import annotations

import typer


def recipes() -> None:
    """List the shipped recipes."""
    from avvp_dist.experiments.recipe import recipes as shipped_recipes

    for name, text in shipped_recipes().items():
        typer.echo(f"{name:15} {text.splitlines()[0].lstrip('# ')}")
