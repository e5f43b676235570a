"""Folders of the user: home, cache, and a private one for temporary files, on machines that lack some of them too.

A container often runs under a uid without a passwd entry and without HOME; `Path.home` then raises RuntimeError.
"""

from __future__ import annotations

import os
import stat
import tempfile
from functools import cache
from pathlib import Path

from avvp_dist.errors import ConfigError

_STAND_IN = "AVVP_TEMPORARY_HOME"


def home() -> Path | None:
    """The user's home folder, whether it is there or not; None where neither HOME nor a passwd entry names one."""
    try:
        found = Path.home()
    except (RuntimeError, KeyError):
        return None
    stand_in = os.environ.get(_STAND_IN)  # set by `ensure_home`, perhaps in a parent process: no place for what is to last
    return None if stand_in and found == Path(stand_in) else found


def user_cache(instead: str) -> Path:
    """$XDG_CACHE_HOME, else ~/.cache.

    Args:
        instead: what names another folder, for the message.

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
    """Sets HOME to a private temporary folder where there is no home; before packages that ask for one when imported."""
    if home() is None:
        folder = private() / "home"
        folder.mkdir(exist_ok=True)
        os.environ[_STAND_IN] = os.environ["HOME"] = str(folder)


@cache
def private() -> Path:
    """A temporary folder that is this user's and that nobody else may enter; the same for all processes where possible.

    Others may write to the folder above it. One that is not ours or was opened to others is left alone, and this process
    takes a folder of a new name.

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
