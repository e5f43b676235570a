"""Special files: /dev/stdout, /dev/null, named pipes. They are written in place, since a rename would replace them."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def is_device(path: Path) -> bool:
    """Whether something exists at ``path`` that is neither a regular file nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def write(path: Path, content: bytes) -> None:
    """Write ``content`` to a device.

    Raises:
        OSError: it cannot be opened or written, or is a pipe without a reader.
    """
    with os.fdopen(_open(path), "wb", buffering=0) as handle:
        os.set_blocking(handle.fileno(), True)
        remaining = memoryview(content)
        try:
            while remaining:
                remaining = remaining[handle.write(remaining) or 0 :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def check(path: Path) -> None:
    """Open a device for writing, and close it.

    Raises:
        OSError: it cannot be opened.
    """
    os.close(_open(path))


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
