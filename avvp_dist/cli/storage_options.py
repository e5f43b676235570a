"""The ``--storage`` option of commands that have no run config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from avvp_dist import storage
from avvp_dist.storage.config import storage_settings


def configure(overrides: Sequence[str]) -> None:
    """Apply the ``storage.KEY=VALUE`` among a command's overrides, for files that are read before the others are parsed."""
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
        help="Object storage setting: endpoint, region, addressing, ...; can be repeated. Default: the AWS environment "
        "variables.",
    ),
]
"""Type of a parameter that applies the option when it is parsed; the command itself need not use it."""
