"""One tree of errors; what a command does with each is decided in cli.py.

AvvpError
├── UserError          something the user can mend: message only, exit code 2
│   ├── ConfigError    a recipe, an override, numbers that cannot work together
│   ├── DataError      annotations, features, shards, index
│   └── StorageError   object storage that refuses or does not answer
├── TrainingError      the run itself went wrong (loss not finite): exit code 3
└── Preempted          the command was asked to end and left a checkpoint: exit code 75
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avvp_dist.text.credentials import redact, redact_all

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended before there was anything to keep, or for the second time."""


class AvvpError(Exception):
    """Base of every error this package raises on purpose. Its message holds no credentials."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*redact_all(args))


class UserError(AvvpError):
    """A mistake the user can mend; carries every problem found, not just the first.

    Args:
        problems: one line each, naming file, row, field and what to do.
        title: what was being done when the problems were found.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str], title: str = "") -> None:
        self.problems = redact_all([problems] if isinstance(problems, str) else list(problems))
        self.title = redact(title)
        self.limit: int | None = None
        """Most problems that a terminal is to show; None leaves it to `messages.brief`."""
        super().__init__(str(self))

    def __str__(self) -> str:
        if not self.title and len(self.problems) == 1:
            return self.problems[0]
        lines = [self.title or f"{len(self.problems)} problems"]
        return "\n".join([*lines, *(f"  - {problem}" for problem in self.problems)])

    def __reduce__(self) -> tuple[Any, ...]:  # pickled across process pools with its problems intact
        return (type(self), (self.problems, self.title))


class ConfigError(UserError):
    """A recipe or an override that cannot be run."""


class DataError(UserError):
    """Annotations, features, shards or an index that cannot be used."""


class StorageError(UserError):
    """Object storage that refuses, is not there, or gave no whole answer in all attempts.

    Args:
        transient: whether the same may work later: nobody answered, or not to the end.
    """

    def __init__(self, problems: str | Sequence[str], title: str = "", transient: bool = False) -> None:
        super().__init__(problems, title)
        self.transient = transient

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.problems, self.title, self.transient))


class TrainingError(AvvpError):
    """Training stopped because going on would be worthless (a loss that is not finite)."""

    exit_code = 3


class Preempted(AvvpError):
    """The command was asked to end (SIGTERM, Ctrl-C) and left a checkpoint; the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again
