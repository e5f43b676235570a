"""The exception tree of this package; `cli.errors` turns exceptions into messages and exit codes.

AvvpError
├── UserError          something the user can fix: message only, exit code 2
│   ├── ConfigError    a recipe, an override, or a combination of values that cannot work
│   ├── DataError      annotations, features, shards, index
│   └── StorageError   object storage that refuses a request or does not respond
├── TrainingError      the training itself failed (loss not finite): exit code 3
└── Preempted          the command stopped on request and wrote a checkpoint: exit code 75
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avvp_dist.text.credentials import redact, redact_all

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended before there was anything to save, or that a second Ctrl-C ended."""


class AvvpError(Exception):
    """Base of all errors that this package raises deliberately. Credentials are removed from its message."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*redact_all(args))


class UserError(AvvpError):
    """A problem that the user can fix; carries all problems found, not only the first one.

    Args:
        problems: one line each, with file, row, field and remedy.
        title: what all problems have in common, e.g. the file or the operation.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str], title: str = "") -> None:
        self.problems = redact_all([problems] if isinstance(problems, str) else list(problems))
        self.title = redact(title)
        self.limit: int | None = None
        """Maximum number of problems to show on a terminal; None leaves it to `cli.messages.brief`."""
        super().__init__(str(self))

    def __str__(self) -> str:
        if not self.title and len(self.problems) == 1:
            return self.problems[0]
        lines = [self.title or f"{len(self.problems)} problems"]
        return "\n".join([*lines, *(f"  - {problem}" for problem in self.problems)])

    def __reduce__(self) -> tuple[Any, ...]:  # keeps the list of problems when pickled between processes
        return (type(self), (self.problems, self.title))


class ConfigError(UserError):
    """A recipe, override or option that is invalid."""


class DataError(UserError):
    """Annotations, features, shards or an index that are invalid."""


class StorageError(UserError):
    """Object storage that refuses a request, does not exist, or did not respond completely in any attempt.

    Args:
        transient: whether a later attempt may succeed, because there was no response or an incomplete one.
    """

    def __init__(self, problems: str | Sequence[str], title: str = "", transient: bool = False) -> None:
        super().__init__(problems, title)
        self.transient = transient

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.problems, self.title, self.transient))


class TrainingError(AvvpError):
    """Training stopped because continuing would be useless (the loss is not finite)."""

    exit_code = 3


class Preempted(AvvpError):
    """The command stopped on request (SIGTERM, Ctrl-C) and wrote a checkpoint; running it again resumes from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h
