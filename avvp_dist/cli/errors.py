"""The boundary of the command line: turns every exception into one message on stderr and an exit code.

How a message is shortened for a terminal is in `cli.messages`.
"""

from __future__ import annotations

import inspect
import os
import select
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from avvp_dist.cli.messages import WIDTH, brief, write_temporary
from avvp_dist.dist.world import rank
from avvp_dist.errors import INTERRUPTED, AvvpError, Preempted, UserError
from avvp_dist.launch.signals import end_on_ctrl_c
from avvp_dist.storage.system_errors import describe_os_error
from avvp_dist.text.escape import line, shortened

BUG = 1
"""Exit code of an unexpected error."""
_USAGE_ERROR: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_EXTRAS = {
    **dict.fromkeys(("ray", "optuna"), "ray"),
    "mlflow": "mlflow",
    **dict.fromkeys(("s3fs", "aiobotocore", "botocore", "boto3", "aiohttp"), "s3"),
}
# errors of reading a truncated file or one of another kind; class names, so that no package has to be imported for them
_DAMAGED = {
    "SafetensorError",
    "BadZipFile",
    "JSONDecodeError",
    "UnpicklingError",
    "YAMLError",
    "ArrowInvalid",
    "RecursionError",
}
_NO_MEMORY = ("can't allocate memory", "out of memory", "Unable to allocate", "Storage size calculation overflowed")


class Commands(TyperGroup):
    """A group of commands whose help has one line per paragraph, so that it wraps at the width of the terminal.

    Usage errors contain no control characters and only a part of an overlong argument.
    """

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """See `click.Group`."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.help:
            paragraphs = inspect.cleandoc(command.help).split("\n\n")
            command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """See `click.Group`."""
        with _safe_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """See `click.Group`."""
        with _safe_usage_errors():
            return super().invoke(ctx)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print the message of an exception that leaves the block, and end the process with its exit code.

    If the reader of stdout has closed the pipe (``avvp recipes | head -1``), that is not an error and prints nothing.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # file names need not be valid text, and a terminal need not be able to show every character
            stream.reconfigure(errors="backslashreplace")
    stdout = _duplicate_of_stdout()  # rich connects stdout itself to /dev/null when the pipe is closed
    try:
        yield
    except SystemExit as ended:
        # typer exits silently on any EPIPE, even one of a network connection
        if isinstance(ended.__context__, BrokenPipeError) and not _is_closed(stdout):
            _exit(ended.__context__)
        raise
    except BrokenPipeError as error:
        if not _is_closed(stdout):
            _exit(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more at exit
        sys.exit(1)
    except Exception as error:
        _exit(error)


def describe_error(error: BaseException) -> tuple[str, int]:
    """Return the message of an error and the exit code of the command that it ended.

    An unexpected error is a bug of this package; its traceback is written to a file that the message names.
    """
    expected = expected_error(error)
    if expected is not None:
        return brief(expected), expected.exit_code
    trace = "".join(traceback.format_exception(error))
    path = write_temporary("traceback", trace)
    what = f"{type(error).__name__}: {shortened(line(error), 200)}"
    where = f"the traceback is in {path}" if path else f"the traceback could not be written to a temporary file:\n{trace}"
    if {kind.__name__ for kind in type(error).__mro__} & _DAMAGED:
        return f"a file is damaged or of the wrong kind ({what}); {where}, and shows which file", UserError.exit_code
    return f"this is a bug in avvp_dist: {what}; please report it, {where}", BUG


def expected_error(error: BaseException) -> AvvpError | None:
    """Convert an error of the operating system or of another package into an `AvvpError`; None for an unexpected one."""
    if isinstance(error, AvvpError):
        return error
    if isinstance(error, OSError):
        return UserError(describe_os_error(error))
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"a file is not valid text: {error}")
    if isinstance(error, ImportError):
        advice = _install_advice(error)
        return UserError(advice) if advice else None
    message = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(text in message for text in _NO_MEMORY)):
        why = " ".join(message.split())[:200]
        return UserError(
            f"not enough memory{f' ({why})' if why else ''}; use a smaller train.batch_size or network, "
            "data.mode=streaming, or a larger machine"
        )
    return None


def _install_advice(error: ImportError) -> str | None:
    """How to install a missing optional package; None if the package is not optional."""
    name = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(name)
    return f"{name} is required for this but not installed: pip install 'avvp_dist[{extra}]'" if extra else None


def _exit(error: BaseException) -> None:
    message, code = describe_error(error)
    number = rank(os.environ)
    prefix = f"[rank {number}] " if "RANK" in os.environ or number else ""
    print(f"{prefix}error: {message}", file=sys.stderr)
    if isinstance(error, Preempted):
        end_on_ctrl_c()
    sys.exit(code)


def _duplicate_of_stdout() -> int | None:
    """Another file descriptor of stdout; None if there is no stdout."""
    try:
        return os.dup((sys.__stdout__ or sys.stdout).fileno())
    except (OSError, ValueError, AttributeError):
        return None


def _is_closed(pipe: int | None) -> bool:
    """Whether a file descriptor is a pipe whose reading end is closed."""
    if pipe is None:
        return False
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


@contextmanager
def _safe_usage_errors() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except _USAGE_ERROR as error:
        error.message = shortened(line(error.message), WIDTH)
        raise
