"""Shared by the commands: printing, and checks of option values."""

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
    """Print a message with its control characters escaped, on stderr if ``err``."""
    typer.echo(visible(message), err=err)


def console(width: int = 120) -> Console:
    """Return a console on stdout for tables; it is ``width`` characters wide if stdout is not a terminal."""
    return Console(file=sys.stdout) if sys.stdout.isatty() else Console(file=sys.stdout, width=width)


def valid_url(parameter: typer.CallbackParam, value: Any) -> Any:
    """Check the value of an option or argument that takes one or several paths or URLs; a Typer callback.

    Raises:
        ConfigError: a value is empty or not a valid URL, such as the ``s3://`` that an unset variable leaves.
    """
    name = parameter.opts[0] if parameter.opts and parameter.opts[0].startswith("-") else str(parameter.name)
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    checked = [(os.fspath(url), malformed(os.fspath(url))) for url in values]
    problems = [f"{name}{f' {url!r}' if url else ''} {problem}" for url, problem in checked if problem]
    if problems:
        raise ConfigError(problems)
    return value


def seed_list(text: str) -> list[int]:
    """Parse the value of ``--seeds``, e.g. ``1,2,3``.

    Raises:
        ConfigError: the seeds are not distinct integers from 0 on.
    """
    parts = [part.strip() for part in text.split(",")]
    valid = all(re.fullmatch("[0-9]{1,19}", part) and int(part) <= LARGEST for part in parts)
    if not valid or len(set(map(int, parts))) < len(parts):
        shown = text if len(text) < 100 else f"{text[:100]}..."
        raise ConfigError(f"--seeds {shown!r}: expected distinct integers from 0 to {LARGEST}, e.g. 1,2,3")
    return [int(part) for part in parts]
