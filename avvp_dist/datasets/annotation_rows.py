"""Reads tab-separated annotation files as pandas does, with any line endings, quoted fields and a byte order mark."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence

from avvp_dist import storage

_SHOWN = 80  # characters of a line in a message


def read(
    folder: str | os.PathLike[str], file: str, columns: Sequence[str], problems: list[str]
) -> list[tuple[int, list[str]]]:
    """Return (line number, values of ``columns``) for each row of a file, without blank lines; empty if it is unusable.

    Args:
        folder: of the file.
        file: its name.
        columns: names in the header, which may have others in any order.
        problems: receives a line per problem.
    """
    try:
        text = storage.read_bytes(storage.join(folder, file)).decode("utf-8-sig")
    except FileNotFoundError:
        problems.append(f"{file}: missing from {os.fspath(folder)}")
        return []
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{file}: cannot be read as UTF-8 text ({error})")
        return []
    lines = [
        (number, line)
        for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1)
        if line.strip()
    ]
    if not lines:
        problems.append(f"{file}: empty, expected a header with {', '.join(columns)}")
        return []
    first, line = lines[0]
    header = _fields(line)
    missing = [name for name in columns if name not in header] if isinstance(header, list) else list(columns)
    if isinstance(header, str) or missing:
        hint = "; it seems to be separated by commas instead of tabs" if "\t" not in line and "," in line else ""
        problems.append(f"{file}:{first}: no column {', '.join(missing)} in the header {_shown(line)}{hint}")
        return []
    places = [header.index(name) for name in columns]
    rows = []
    for number, line in lines[1:]:
        values = _fields(line)
        if isinstance(values, str):
            problems.append(f"{file}:{number}: {values}: {_shown(line)}")
            continue
        while len(values) > len(header) and not values[-1]:  # trailing tabs
            values.pop()
        if len(values) == len(header):
            rows.append((number, [values[place] for place in places]))
        else:
            problems.append(
                f"{file}:{number}: {len(values)} tab-separated values, but the header has {len(header)}: {_shown(line)}"
            )
    return rows


def second(text: str, last: int) -> int | str:
    """Parse a whole number of seconds in 0..``last``, also written as ``3.0``; else return what is wrong with it."""
    match = re.fullmatch(r"([+-]?[0-9]{1,9})(?:\.0*)?", text)
    if match is None:
        return f"{text[:_SHOWN]!r} is not a whole number of seconds"
    if not 0 <= int(match[1]) <= last:
        return f"{text} is outside 0..{last}"
    return int(match[1])


def _fields(line: str) -> list[str] | str:
    """The values of one line, or a description of what is wrong with its quotes."""
    try:
        return [value.strip() for value in next(csv.reader([line], delimiter="\t", skipinitialspace=True, strict=True))]
    except csv.Error:
        return "quotes that do not enclose a whole value"


def _shown(line: str) -> str:
    text = line.strip()
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
