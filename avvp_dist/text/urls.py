"""What a path or URL must be before anything is read from it or written to it. Pure: looks at the text alone."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(/?)(.*)", re.DOTALL)
_WITHOUT_HOST = ("file", "local", "memory")


def malformed(url: str) -> str | None:
    """What is wrong with ``url`` as a path or URL, and what to do; None where it can be one."""
    if not url.strip():
        return "is empty (a variable that is not set?); give a path or URL"
    if "\0" in url:
        return "holds a NUL character; give a path or URL without"
    found = _SCHEME.fullmatch(url)
    if found is None:
        return None
    scheme, second, rest = found.groups()
    if not second:
        return f"has one slash after {scheme!r}; give {scheme}://..., or for a folder of that name ./{url}"
    if scheme in _WITHOUT_HOST:
        return None if rest.strip("/") else f"names no path (a variable that is not set?); give {scheme}:///path"
    host = rest.partition("/")[0]
    return None if host.strip() else f"names no bucket or server (a variable that is not set?); give {scheme}://NAME/..."
