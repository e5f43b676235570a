"""The command line ``avvp``: assembles the commands, one module each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from avvp_dist.cli.cache import cache
from avvp_dist.cli.compare import compare
from avvp_dist.cli.config import config
from avvp_dist.cli.data import data
from avvp_dist.cli.doctor import doctor
from avvp_dist.cli.errors import Commands, exit_on_error
from avvp_dist.cli.evaluate import evaluate
from avvp_dist.cli.recipes import recipes
from avvp_dist.cli.sweep import sweep
from avvp_dist.cli.sync import sync
from avvp_dist.cli.table import table
from avvp_dist.cli.train import train
from avvp_dist.dist.world import rank
from avvp_dist.report.console import set_up_logging
from avvp_dist.text import credentials

app = typer.Typer(
    name="avvp",
    cls=Commands,
    help="Weakly supervised audio-visual video parsing and event localization: pack features, train, evaluate, compare and "
    "track runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data, name="data")
app.add_typer(cache, name="cache")
for _command in (table, doctor, compare, sweep, train, evaluate, config, recipes, sync):
    app.command()(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. An error prints one message on stderr and sets the exit code, see `cli.errors.exit_on_error`.

    Args:
        arguments: the command and its arguments; None for those of this process.
    """
    with exit_on_error():
        set_up_logging(quiet=rank(os.environ) != 0)
        app(args=_without_secrets(arguments))


def _without_secrets(arguments: Sequence[str] | None) -> list[str]:
    """Return the arguments without credentials, which this process keeps in memory.

    If the process was started with credentials on its command line, it replaces itself by the same command without them:
    every user of the machine can read a command line, and Ray stores it as the job's entrypoint.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    cleaned = credentials.redact_command_line(given)
    before, after = sys.orig_argv[: len(sys.orig_argv) - len(given)], sys.orig_argv[len(sys.orig_argv) - len(given) :]
    environment = credentials.child_environment()
    if arguments is None and cleaned != given and after == given and environment.items() - os.environ.items():
        os.execve(sys.executable, [*before, *cleaned], os.environ | environment)
    return cleaned
