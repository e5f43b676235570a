"""The user's folders: home, cache, and a private temporary one, also on machines that lack some of them.

A container often runs under a uid without a passwd entry and without HOME; `Path.home` then raises RuntimeError.
"""

from __future__ import annotations

import os
import stat
import tempfile
from functools import cache
from pathlib import Path

from avvp_dist.errors import ConfigError

_TEMPORARY_HOME = "AVVP_TEMPORARY_HOME"


def home() -> Path | None:
    """The user's home folder, which need not exist; None if neither HOME nor a passwd entry names one."""
    try:
        found = Path.home()
    except (RuntimeError, KeyError):
        return None
    temporary = os.environ.get(_TEMPORARY_HOME)  # set by `ensure_home`, perhaps in a parent process; not for lasting files
    return None if temporary and found == Path(temporary) else found


def user_cache(instead: str) -> Path:
    """$XDG_CACHE_HOME, else ~/.cache.

    Args:
        instead: setting that names another folder, for the message.

    Raises:
        ConfigError: there is no home folder.
    """
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen)
    folder = home()
    if folder is None:
        raise ConfigError(
            f"no folder for a cache: HOME is not set and uid {os.getuid()} has no passwd entry; set {instead}, or HOME"
        )
    return folder / ".cache"


def ensure_home() -> None:
    """Set HOME to a private temporary folder if the user has none, before importing packages that require a home."""
    if home() is None:
        folder = private() / "home"
        folder.mkdir(exist_ok=True)
        os.environ[_TEMPORARY_HOME] = os.environ["HOME"] = str(folder)


@cache
def private() -> Path:
    """A temporary folder of this user that no other user can enter; the same for all processes if possible.

    Other users can write to its parent folder. Therefore a folder that belongs to another user, or is open to others, is not
    used, and this process creates one with a new name.

    Raises:
        OSError: there is no folder for temporary files.
    """
    folder = Path(tempfile.gettempdir()) / f"avvp-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    return folder
