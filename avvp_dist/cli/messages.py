"""What of an error reaches a terminal: equal problems grouped, long lines cut, and the whole in a file that is named."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence

from avvp_dist.errors import AvvpError, UserError
from avvp_dist.text.credentials import redact
from avvp_dist.text.escape import line, shortened

LINES = 20
"""Most lines of a message, title and the name of the file included."""
WIDTH = 320
"""Most characters of a line."""
_EXAMPLES = 3  # of one kind of problem
# what tells a problem from another of its kind: quoted values, paths, ids, numbers, names with capitals inside
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[/\d_]\S*|\S+[A-Z]\S*")


def brief(error: AvvpError) -> str:
    """An error as a terminal shows it: `LINES` lines at most, of `WIDTH` characters, without control characters.

    A `UserError`'s problems that are the same but for ids, rows and numbers are counted, and the first of them shown. Where
    anything is left out, all of it is written to a file, which the message names.
    """
    if isinstance(error, UserError):
        problems = [line(problem) for problem in error.problems]
        single = len(problems) == 1 and not error.title
        title = line(error.title) or f"{len(problems):,} problems"
        whole = problems if single else [title, *(f"  - {problem}" for problem in problems)]
        most = min(LINES - 2, len(problems) if error.limit is None else error.limit)
        shown = problems if single else [title, *_listed(problems, most)]
    else:
        whole = [line(each) for each in str(error).split("\n")]
        shown = whole[: LINES - 1]
    shown = [shortened(redact(each), WIDTH) for each in shown]
    if shown != [redact(each) for each in whole]:
        where = write_temporary("problems", "\n".join(whole) + "\n")
        shown.append(f"all of it: {where}" if where else "all of it could not be written to a file: no temporary folder")
    return "\n".join(shown)


def write_temporary(kind: str, content: str) -> str | None:
    """Writes a text to a new file in the temporary folder that only this user can read.

    Returns:
        its path; None where none can be written.
    """
    try:
        handle, path = tempfile.mkstemp(prefix=f"avvp-{kind}-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(redact(content))
    except OSError:
        return None
    return path


def _listed(problems: Sequence[str], most: int) -> list[str]:
    """The problems in at most ``most`` lines and one that counts the rest."""
    if len(problems) <= most:
        return [f"  - {problem}" for problem in problems]
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(_VALUE.sub("…", problem[: 4 * WIDTH]), []).append(problem)
    for examples in range(_EXAMPLES, 0, -1):
        lines = [shown for alike in kinds.values() for shown in _of_kind(alike, examples)]
        if len(lines) <= most:
            return lines
    lines, told = [], 0
    for alike in kinds.values():
        more = _of_kind(alike, 1)
        if len(lines) + len(more) > min(most, LINES - 3):
            break
        lines += more
        told += len(alike)
    return [*lines, f"  … and {len(problems) - told:,} {'other ' if lines else ''}problems"]


def _of_kind(alike: Sequence[str], examples: int) -> list[str]:
    left = len(alike) - examples
    lines = [f"  - {problem}" for problem in alike[:examples]]
    return [*lines, f"    … and {left:,} more like {'this' if examples == 1 else 'these'}"] if left > 0 else lines
