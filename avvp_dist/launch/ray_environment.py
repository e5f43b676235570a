"""What a Ray of this machine needs of its environment, set before ray is imported: a token, a temporary folder, loopback."""

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

_log = logging.getLogger(__name__)

_SOCKET_PATH = 107  # bytes of a UNIX socket's path on Linux
# below RAY_TMPDIR, with a process id of seven digits and the longest name that Ray 2.60 gives a socket
_BELOW = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead")
_LONGEST = _SOCKET_PATH - _BELOW
_INSTEAD = ("/tmp", "/var/tmp", "/dev/shm")


def prepare() -> None:
    """Sets what Ray reads from the environment when it is imported or started, unless it joins a cluster (RAY_ADDRESS).

    Raises:
        ConfigError: no folder is fit for Ray's temporary files, or its token cannot be kept to this user.
    """
    user_folders.ensure_home()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # tables of its own, which verbose=0 does not end
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK__logS", "1")  # CSV and JSON files of its own: MLflow has it all
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        return
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # listens on loopback only
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's own default, about which it warns
    os.environ["RAY_TMPDIR"] = _temporary_folder()
    if os.environ["RAY_AUTH_MODE"].lower() == "token" and not os.environ.get("RAY_AUTH_TOKEN"):
        _keep_token_private()


def _temporary_folder() -> str:
    """Where Ray puts its sessions: RAY_TMPDIR, or TMPDIR where Ray can use it, or else another usual folder."""
    if chosen := os.environ.get("RAY_TMPDIR"):
        problem = _unfit(chosen)
        if problem:
            raise ConfigError(f"RAY_TMPDIR={chosen}: {problem}; give a short path of a folder that can be written")
        return chosen
    problems: list[str] = []
    for folder in dict.fromkeys([os.environ.get("TMPDIR") or tempfile.gettempdir(), *_INSTEAD]):
        problem = _unfit(folder)
        if problem is None:
            if problems:
                _log.info("Ray's temporary files go to %s (%s)", folder, "; ".join(problems))
                os.environ["TMPDIR"] = folder  # Ray's dashboard opens sockets of its own there
            return folder
        problems.append(f"{folder}: {problem}")
    raise ConfigError(problems, "no folder for Ray's temporary files; set RAY_TMPDIR to a short path that can be written")


def _unfit(folder: str) -> str | None:
    """Why Ray cannot have its sessions below ``folder``; None where it can."""
    length = len(os.fsencode(os.path.abspath(folder)))
    if length > _LONGEST:
        return f"{length} bytes, too long for Ray's sockets, which leave {_LONGEST}"
    sessions = Path(folder) / "ray"
    place = sessions if sessions.is_dir() else Path(folder)
    if not place.is_dir():
        return "no such folder"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written"


def _keep_token_private() -> None:
    """Makes the file of Ray's token, which Ray itself would make readable to all, or closes one that is.

    Whoever has the token can run anything as this user.
    """
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        found = path.stat()
    except FileNotFoundError:
        if named:
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH={named}: no such file; make one for you alone, or unset it") from None
        _make_token(path)
        return
    except OSError as error:
        raise ConfigError(f"{path}: Ray's token cannot be looked at ({error.strerror}); set RAY_AUTH_TOKEN_PATH") from None
    opened = stat.S_IMODE(found.st_mode) & 0o077
    if not opened:
        return
    try:
        path.chmod(0o600)
    except OSError as error:
        raise ConfigError(
            f"{path}: Ray's token can be read by other users (mode {stat.S_IMODE(found.st_mode):o}) and its mode not be "
            f"changed ({error.strerror}); set RAY_AUTH_TOKEN_PATH to a file that only you can read"
        ) from None
    _log.warning(
        "%s: Ray's token could be read by other users (mode %o), who could have run anything as you; now it is 600. "
        "If others use this machine, end the Ray clusters with this token and delete the file: the next start makes one",
        path,
        stat.S_IMODE(found.st_mode),
    )


def _make_token(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(path)
    except FileExistsError:  # another process was quicker; it wrote all of it before anyone could see it
        return
    except OSError:  # a home that is not there, or read-only
        path = user_folders.private() / "ray_auth_token"
        with contextlib.suppress(FileExistsError):
            _write(path)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _write(path: Path) -> None:
    aside = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)
