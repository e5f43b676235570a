"""Environment of a Ray instance on this machine, set before ray is imported: token, temporary folder, loopback only."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path

from avvp_dist.errors import ConfigError
from avvp_dist.storage import user_folders

LOGGER = logging.getLogger(__name__)

_SOCKET_PATH = 107  # maximum length in bytes of a UNIX socket's path on Linux
# path below RAY_TMPDIR, with a process id of seven digits and the longest socket name of Ray 2.60
_SUFFIX = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead")
_LONGEST = _SOCKET_PATH - _SUFFIX
_FALLBACKS = ("/tmp", "/var/tmp", "/dev/shm")


def prepare() -> None:
    """Set the environment variables that Ray reads at import and start; few of them if it joins a cluster (RAY_ADDRESS).

    Raises:
        ConfigError: there is no suitable folder for Ray's temporary files, or its token file cannot be made private.
    """
    user_folders.ensure_home()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Ray's own tables, which verbose=0 does not disable
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK__logS", "1")  # Ray's own CSV and JSON files; MLflow has the same data
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # this package handles Ctrl-C
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        return
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # listens on loopback only
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's own default; setting it avoids Ray's warning
    os.environ["RAY_TMPDIR"] = _temporary_folder()
    if os.environ["RAY_AUTH_MODE"].lower() == "token" and not os.environ.get("RAY_AUTH_TOKEN"):
        _make_token_private()


def _temporary_folder() -> str:
    """Return the folder for Ray's sessions: RAY_TMPDIR, or TMPDIR if suitable, or else another common temporary folder."""
    if chosen := os.environ.get("RAY_TMPDIR"):
        problem = _why_unsuitable(chosen)
        if problem:
            raise ConfigError(f"RAY_TMPDIR={chosen}: {problem}; set it to the short path of a writable folder")
        return chosen
    problems: list[str] = []
    for folder in dict.fromkeys([os.environ.get("TMPDIR") or tempfile.gettempdir(), *_FALLBACKS]):
        problem = _why_unsuitable(folder)
        if problem is None:
            if problems:
                LOGGER.info("Ray's temporary files go to %s (%s)", folder, "; ".join(problems))
                os.environ["TMPDIR"] = folder  # Ray's dashboard opens its own sockets there
            return folder
        problems.append(f"{folder}: {problem}")
    raise ConfigError(problems, "no folder for Ray's temporary files; set RAY_TMPDIR to the short path of a writable folder")


def _why_unsuitable(folder: str) -> str | None:
    """Return why Ray cannot store its sessions below ``folder``; None if it can."""
    length = len(os.fsencode(os.path.abspath(folder)))
    if length > _LONGEST:
        return f"{length} bytes long, but paths of Ray's sockets allow at most {_LONGEST}"
    sessions = Path(folder) / "ray"
    target = sessions if sessions.is_dir() else Path(folder)
    if not target.is_dir():
        return "no such folder"
    return None if os.access(target, os.W_OK | os.X_OK) else f"{target} is not writable"


def _make_token_private() -> None:
    """Create Ray's token file with mode 600 (Ray itself would make it readable by all), or restrict an existing one.

    Anyone with the token can run any code as this user.
    """
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        found = path.stat()
    except FileNotFoundError:
        if named:
            raise ConfigError(
                f"RAY_AUTH_TOKEN_PATH={named}: no such file; create it readable by you only, or unset the variable"
            ) from None
        _make_token(path)
        return
    except OSError as error:
        raise ConfigError(
            f"{path}: Ray's token file is not accessible ({error.strerror}); set RAY_AUTH_TOKEN_PATH"
        ) from None
    readable_by_others = stat.S_IMODE(found.st_mode) & 0o077
    if not readable_by_others:
        return
    try:
        path.chmod(0o600)
    except OSError as error:
        raise ConfigError(
            f"{path}: other users can read Ray's token (mode {stat.S_IMODE(found.st_mode):o}), and its mode cannot be "
            f"changed ({error.strerror}); set RAY_AUTH_TOKEN_PATH to a file that only you can read"
        ) from None
    LOGGER.warning(
        "%s: other users could read Ray's token (mode %o) and run code as you; the mode is now 600. If this machine has "
        "other users, stop the Ray clusters that use this token and delete the file; the next start creates a new one",
        path,
        stat.S_IMODE(found.st_mode),
    )


def _make_token(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(path)
    except FileExistsError:  # another process created it first, atomically
        return
    except OSError:  # no home folder, or a read-only one
        path = user_folders.private() / "ray_auth_token"
        with contextlib.suppress(FileExistsError):
            _write(path)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _write(path: Path) -> None:
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
