"""What commands share: how they print, and a look at the paths and URLs that they are given."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import typer
from rich.console import Console

from avvp_dist.config import LARGEST
from avvp_dist.errors import ConfigError
from avvp_dist.text.escape import visible
from avvp_dist.text.urls import malformed


def echo(message: object, err: bool = False) -> None:
    """Prints a message, control characters made visible."""
    typer.echo(visible(message), err=err)


def console(width: int = 120) -> Console:
    """Stdout for tables; ``width`` characters wide where it is no terminal."""
    return Console(file=sys.stdout) if sys.stdout.isatty() else Console(file=sys.stdout, width=width)


def valid_url(parameter: typer.CallbackParam, value: Any) -> Any:
    """A callback of options and arguments that take a path or URL, or several.

    Raises:
        ConfigError: one is empty or can be no URL, such as the ``s3://`` that an unset variable leaves.
    """
    name = parameter.opts[0] if parameter.opts and parameter.opts[0].startswith("-") else str(parameter.name)
    given = value if isinstance(value, list | tuple) else [] if value is None else [value]
    wrong = [(os.fspath(url), malformed(os.fspath(url))) for url in given]
    problems = [f"{name}{f' {url!r}' if url else ''} {problem}" for url, problem in wrong if problem]
    if problems:
        raise ConfigError(problems)
    return value


def seed_list(text: str) -> list[int]:
    """The seeds of ``--seeds 1,2,3``.

    Raises:
        ConfigError: they are no different whole numbers from 0 on.
    """
    parts = [part.strip() for part in text.split(",")]
    good = all(re.fullmatch("[0-9]{1,19}", part) and int(part) <= LARGEST for part in parts)
    if not good or len(set(map(int, parts))) < len(parts):
        shown = text if len(text) < 100 else f"{text[:100]}..."
        raise ConfigError(f"--seeds {shown!r}: expected different whole numbers from 0 to {LARGEST}, e.g. 1,2,3")
    return [int(part) for part in parts]
