"""The option by which commands without a run's config are told how object storage is reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from avvp_dist import storage
from avvp_dist.storage.config import storage_settings


def configure(overrides: Sequence[str]) -> None:
    """Takes the ``storage.KEY=VALUE`` among a command's overrides, when they are needed before the rest can be read."""
    storage.configure(storage_settings(overrides))


def _from_option(values: list[str] | None) -> list[str] | None:
    configure([f"storage.{value}" for value in values or []])
    return values


STORAGE = Annotated[
    list[str] | None,
    typer.Option(
        "--storage",
        metavar="KEY=VALUE",
        callback=_from_option,
        help="How object storage is reached: endpoint, region, addressing, ...; default what the AWS variables echo.",
    ),
]
"""To be a parameter of a command that need not look at it."""
