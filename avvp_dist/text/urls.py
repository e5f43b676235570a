"""Checks, by its text alone, whether a string can be a path or URL, before anything is read from it or written to it."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(/?)(.*)", re.DOTALL)
_WITHOUT_HOST = ("file", "local", "memory")


def malformed(url: str) -> str | None:
    """Describe what is wrong with ``url`` as a path or URL, and what to do; None if nothing is."""
    if not url.strip():
        return "is empty (is a variable not set?); give a path or URL"
    if "\0" in url:
        return "contains a NUL character; give a path or URL without it"
    found = _SCHEME.fullmatch(url)
    if found is None:
        return None
    scheme, second, rest = found.groups()
    if not second:
        return f"has only one slash after {scheme!r}; give {scheme}://..., or ./{url} for a folder of that name"
    if scheme in _WITHOUT_HOST:
        return None if rest.strip("/") else f"names no path (is a variable not set?); give {scheme}:///path"
    host = rest.partition("/")[0]
    return None if host.strip() else f"names no bucket or server (is a variable not set?); give {scheme}://NAME/..."
