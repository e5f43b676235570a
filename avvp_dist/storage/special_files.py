"""Files that are none: /dev/stdout, /dev/null, a named pipe. They are written in place; a rename would replace them."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def is_device(path: Path) -> bool:
    """Whether something lies there that is neither a file nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def write(path: Path, content: bytes) -> None:
    """Writes ``content`` to a device.

    Raises:
        OSError: it cannot be opened or written; a pipe that nobody reads is not waited for.
    """
    with os.fdopen(_open(path), "wb", buffering=0) as handle:
        os.set_blocking(handle.fileno(), True)
        left = memoryview(content)
        try:
            while left:
                left = left[handle.write(left) or 0 :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def check(path: Path) -> None:
    """Opens a device for writing, and closes it.

    Raises:
        OSError: it cannot be opened.
    """
    os.close(_open(path))


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
