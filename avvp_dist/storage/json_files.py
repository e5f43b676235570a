"""Parses JSON files; a damaged one raises an error that names it and says what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from avvp_dist import storage
from avvp_dist.errors import DataError


def parse(text: str | bytes, url: str, remedy: str = "", allow_nan: bool = True) -> Any:
    """Parse JSON text.

    Args:
        text: content of a file.
        url: path or URL of the file, for messages.
        remedy: what to do if it is damaged, for messages.
        allow_nan: accept NaN and Infinity, as Python writes them; they are not valid JSON.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(text, parse_constant=None if allow_nan else _reject_constant)
    except (ValueError, RecursionError) as error:  # also numbers with thousands of digits and endless nesting
        why = " ".join(str(error).split())[:120]
        raise DataError(f"{url}: damaged, not valid JSON ({why}){f'; {remedy}' if remedy else ''}") from None


def read(url: str, remedy: str) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not JSON.
    """
    return parse(storage.read_text(url), url, remedy)


def read_object(url: str, keys: Mapping[str, type], remedy: str) -> dict[str, Any]:
    """Read a JSON file that must contain an object with ``keys``, each a value of the given type.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not JSON, not an object, or lacks keys.
    """
    return check_object(read(url, remedy), url, keys, remedy)


def check_object(content: Any, url: str, keys: Mapping[str, type], remedy: str) -> dict[str, Any]:
    """Return ``content`` of the file ``url`` if it is an object with ``keys``, each a value of the given type.

    Raises:
        DataError: it is not.
    """
    if not isinstance(content, dict):
        raise DataError(f"{url}: malformed, expected an object with {', '.join(keys)}; {remedy}")
    wrong = [key for key, kind in keys.items() if not isinstance(content.get(key), kind)]
    if wrong:
        raise DataError(f"{url}: malformed, {', '.join(wrong)} missing or of the wrong type; {remedy}")
    return content


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
