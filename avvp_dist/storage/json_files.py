"""JSON files that a command reads back: one that is damaged is named, with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from avvp_dist import storage
from avvp_dist.errors import DataError


def read(url: str, remedy: str) -> Any:
    """The content of a JSON file.

    Args:
        url: path or URL.
        remedy: what to do where it is damaged, told in the message.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is not JSON.
    """
    try:
        return json.loads(storage.read_text(url))
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, nested without end
        why = " ".join(str(error).split())
        raise DataError(f"{url}: damaged, not valid JSON ({why}); {remedy}") from None


def read_object(url: str, keys: Mapping[str, type], remedy: str) -> dict[str, Any]:
    """The content of a JSON file that is an object with ``keys``, each a value of its type.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is not JSON, no object, or lacks keys.
    """
    return check_object(read(url, remedy), url, keys, remedy)


def check_object(content: Any, url: str, keys: Mapping[str, type], remedy: str) -> dict[str, Any]:
    """``content`` of the file ``url``, if it is an object with ``keys``, each a value of its type.

    Raises:
        DataError: it is not.
    """
    if not isinstance(content, dict):
        raise DataError(f"{url}: not what it should be, an object with {', '.join(keys)}; {remedy}")
    wrong = [key for key, kind in keys.items() if not isinstance(content.get(key), kind)]
    if wrong:
        raise DataError(f"{url}: not what it should be, {', '.join(wrong)} missing or of another type; {remedy}")
    return content
