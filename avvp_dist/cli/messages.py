"""Shortens error messages for a terminal: groups similar problems, cuts long lines, and writes the full text to a file."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence

from avvp_dist.errors import AvvpError, UserError
from avvp_dist.text.credentials import redact
from avvp_dist.text.escape import line, shortened

LINES = 20
"""Maximum number of lines of a message, including its title and the name of the file with the full text."""
WIDTH = 320
"""Maximum number of characters of a line."""
_EXAMPLES = 3  # shown of similar problems
# what may differ between similar problems: quoted values, paths, ids, numbers, names with inner capitals
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[/\d_]\S*|\S+[A-Z]\S*")


def brief(error: AvvpError) -> str:
    """Return an error's message for a terminal: at most `LINES` lines of `WIDTH` characters, no control characters.

    Problems of a `UserError` that differ only in ids, rows and numbers are counted, and the first ones shown. If anything is
    left out, the full text is written to a file that the message names.
    """
    if isinstance(error, UserError):
        problems = [line(problem) for problem in error.problems]
        single = len(problems) == 1 and not error.title
        title = line(error.title) or f"{len(problems):,} problems"
        full = problems if single else [title, *(f"  - {problem}" for problem in problems)]
        most = min(LINES - 2, len(problems) if error.limit is None else error.limit)
        shown = problems if single else [title, *_grouped(problems, most)]
    else:
        full = [line(text) for text in str(error).split("\n")]
        shown = full[: LINES - 1]
    shown = [shortened(redact(text), WIDTH) for text in shown]
    if shown != [redact(text) for text in full]:
        path = write_temporary("problems", "\n".join(full) + "\n")
        shown.append(f"full message: {path}" if path else "the full message could not be written to a temporary file")
    return "\n".join(shown)


def write_temporary(kind: str, content: str) -> str | None:
    """Write a text to a new file in the temporary folder, readable by this user only.

    Returns:
        its path; None if it could not be written.
    """
    try:
        handle, path = tempfile.mkstemp(prefix=f"avvp-{kind}-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(redact(content))
    except OSError:
        return None
    return path


def _grouped(problems: Sequence[str], most: int) -> list[str]:
    """The problems in at most ``most`` lines, plus one line that counts the rest."""
    if len(problems) <= most:
        return [f"  - {problem}" for problem in problems]
    groups: dict[str, list[str]] = {}
    for problem in problems:
        groups.setdefault(_VALUE.sub("…", problem[: 4 * WIDTH]), []).append(problem)
    for examples in range(_EXAMPLES, 0, -1):
        lines = [shown for similar in groups.values() for shown in _group_lines(similar, examples)]
        if len(lines) <= most:
            return lines
    lines, covered = [], 0
    for similar in groups.values():
        more = _group_lines(similar, 1)
        if len(lines) + len(more) > min(most, LINES - 3):
            break
        lines += more
        covered += len(similar)
    return [*lines, f"  … and {len(problems) - covered:,} {'other ' if lines else ''}problems"]


def _group_lines(similar: Sequence[str], examples: int) -> list[str]:
    left = len(similar) - examples
    lines = [f"  - {problem}" for problem in similar[:examples]]
    return [*lines, f"    … and {left:,} more like {'this' if examples == 1 else 'these'}"] if left > 0 else lines
