"""The boundary of the command line: whatever ends a command is one message on stderr and an exit code, never a traceback."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from avvp_dist.cli.error_report import report
from avvp_dist.cli.messages import WIDTH
from avvp_dist.dist.world import rank
from avvp_dist.errors import INTERRUPTED, Preempted
from avvp_dist.launch.signals import end_on_ctrl_c
from avvp_dist.text.escape import line, shortened

_USAGE: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Commands(TyperGroup):
    """A group of commands whose messages about wrong usage repeat no control characters and no endless argument."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """See `click.Group`."""
        with _safe_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """See `click.Group`."""
        with _safe_usage_errors():
            return super().invoke(ctx)


@contextmanager
def one_message() -> Iterator[None]:
    """Ends the process with the message and exit code of whatever ends the block.

    A reader of stdout who has seen enough (``avvp recipes | head -1``) is no error and gets no message.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text, nor terminals know all signs
    try:
        yield
    except SystemExit as ended:
        # typer ends silently by any EPIPE, be it of a connection to a server
        if isinstance(ended.__context__, BrokenPipeError) and not _reader_gone():
            _end(ended.__context__)
        raise
    except BrokenPipeError as error:
        if not _reader_gone():
            _end(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more when it ends
        sys.exit(1)
    except Exception as error:
        _end(error)


def _end(error: BaseException) -> None:
    message, code = report(error)
    number = rank(os.environ)
    who = f"[rank {number}] " if "RANK" in os.environ or number else ""
    print(f"{who}error: {message}", file=sys.stderr)
    if isinstance(error, Preempted):
        end_on_ctrl_c()
    sys.exit(code)


def _reader_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.__stdout__ or 1, 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


@contextmanager
def _safe_usage_errors() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except _USAGE as error:
        error.message = shortened(line(error.message), WIDTH)
        raise
