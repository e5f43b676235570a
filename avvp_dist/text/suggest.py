"""Suggestions in messages about unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, valid: Iterable[str], otherwise: str = ".") -> str:
    """The end of a sentence about an unknown name: ``; did you mean 'han'?``.

    Args:
        given: the unknown name.
        valid: the names that exist.
        otherwise: returned if no valid name is similar.
    """
    close = difflib.get_close_matches(given, list(valid), n=1)
    return f"; did you mean {close[0]!r}?" if close else otherwise
