"""The only code that uses fsspec: reads, writes and lists local paths and object-store URLs alike.

Writes are atomic: a local file is written to a temporary file and renamed, and an object store shows an object only once its
upload has finished. Errors of object storage are raised as `StorageError`, a missing file as FileNotFoundError.

The connection settings are the only state of this module. A command sets them with `configure` once it has read its config;
a child process receives its parent's `settings` and does the same. Until then the environment decides.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import fsspec
from fsspec.core import url_to_fs
from fsspec.utils import get_protocol

from avvp_dist.errors import ConfigError, DataError
from avvp_dist.storage import processes, special_files
from avvp_dist.storage.config import StorageConfig
from avvp_dist.storage.errors import call_with_retries, precondition_failed, rejects_conditional_writes, unreachable
from avvp_dist.text.credentials import CREDENTIALS_HINT, holds_credentials, redact
from avvp_dist.text.urls import malformed

T = TypeVar("T")

LOCK = ".avvp-lock"
"""Prefix of the names of lock files (see `locks`); never listed as data."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_TEMPORARY_PREFIX = ".aside-"  # of files that are being written; never listed as data
_ABANDONED_AFTER = 24 * 3600.0  # seconds without a change after which a temporary file has no writer any more
_LOCAL = ("file", "local")
_S3 = ("s3", "s3a")
_PROBE_ATTEMPTS = 3  # connections to an address that has never answered: a wrong one should fail within seconds


class _State:
    """The state of a process with regard to object storage."""

    config: ClassVar[StorageConfig] = StorageConfig()
    reachable: ClassVar[set[str]] = set()  # endpoints that have accepted a connection


def configure(config: StorageConfig) -> None:
    """Set how this process connects to object storage from now on."""
    _State.config = config


def settings() -> StorageConfig:
    """The settings of this process, completed from its environment, to be passed to `configure` in another process."""
    return _State.config.resolved()


def join(url: str | os.PathLike[str], *parts: str) -> str:
    """Return ``url`` extended by ``parts``, for local paths and URLs."""
    return "/".join([os.fspath(url).rstrip("/"), *(part.strip("/") for part in parts)])


def local_path(url: str | os.PathLike[str]) -> Path | None:
    """The path on this machine that ``url`` names, or None for a remote URL."""
    return Path(url_to_fs(os.fspath(url))[1]) if _is_local(url) else None


def absolute(url: str | os.PathLike[str]) -> str:
    """Make a local path absolute; return any other URL unchanged."""
    here = local_path(url)
    return os.fspath(url) if here is None else os.path.abspath(here)


def exists(url: str | os.PathLike[str]) -> bool:
    """Whether a file or folder exists at ``url``."""

    def query(fs: fsspec.AbstractFileSystem, path: str) -> bool:
        # s3fs' own exists() treats a missing bucket, or one that denies access, like a missing file
        return bool(fs.info(path)) if get_protocol(os.fspath(url)) in _S3 else bool(fs.exists(path))

    try:
        return _call(url, "look up", query)
    except FileNotFoundError:
        return False


def size(url: str | os.PathLike[str]) -> int:
    """Size of the file at ``url`` in bytes.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return _call(url, "look up", lambda fs, path: int(fs.size(path)))


def names(url: str | os.PathLike[str]) -> list[str]:
    """Sorted names of the files and folders directly in ``url``; empty if the folder does not exist."""

    def query(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
        found = (entry.rstrip("/") for entry in fs.ls(path, detail=False, refresh=True))
        return [entry.rsplit("/", 1)[-1] for entry in found if entry != path.rstrip("/")]  # some stores list the folder too

    try:
        found = _call(url, "list", query)
    except FileNotFoundError:
        return []
    return sorted(name for name in found if not name.startswith((_TEMPORARY_PREFIX, LOCK)))


def find(url: str | os.PathLike[str], name: str) -> list[str]:
    """All files called ``name`` in the folder ``url`` and its subfolders, sorted; empty if the folder does not exist."""
    is_local = _is_local(url)

    def query(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
        found = (entry for entry in fs.find(path) if entry.rsplit("/", 1)[-1] == name)
        return sorted(entry if is_local else fs.unstrip_protocol(entry) for entry in found)

    return _call(url, "list", query)


def sizes(url: str | os.PathLike[str]) -> dict[str, int]:
    """Size in bytes of each file directly in ``url``, by name; empty if the folder does not exist."""
    try:
        entries = _call(url, "list", lambda fs, path: fs.ls(path, detail=True, refresh=True))
    except FileNotFoundError:
        return {}
    return {entry["name"].rsplit("/", 1)[-1]: int(entry["size"]) for entry in entries if entry["type"] == "file"}


def versions(url: str | os.PathLike[str]) -> dict[str, str]:
    """A version string for each file directly in ``url``, by name; empty if the folder does not exist.

    It consists of the size and the hash or modification time that the store lists, so it changes when the file does.
    """
    try:
        entries = _call(url, "list", lambda fs, path: fs.ls(path, detail=True, refresh=True))
    except FileNotFoundError:
        return {}
    found = {}
    for entry in entries:
        if entry["type"] == "file":
            stamp = next((entry[key] for key in ("ETag", "md5Hash", "mtime", "LastModified", "created") if key in entry), "")
            found[entry["name"].rsplit("/", 1)[-1]] = f"{entry['size']} {stamp}"
    return found


def read_bytes(url: str | os.PathLike[str]) -> bytes:
    """Read the file at ``url``.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not a regular file but a folder, a named pipe or a device.
    """
    here = local_path(url)
    if here is not None:
        check_file(here)
    # a single request for the object: s3fs would first request its size, and fetch a large object in ranges
    options = {"max_concurrency": 1} if get_protocol(os.fspath(url)) in _S3 else {}
    return _call(url, "read", lambda fs, path: bytes(fs.cat_file(path, **options)))


def read_text(url: str | os.PathLike[str]) -> str:
    """Read the UTF-8 text file at ``url``.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not UTF-8 text.
    """
    try:
        return read_bytes(url).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{os.fspath(url)}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuse anything but a regular file before it is opened, since opening a named pipe waits for its other end.

    Raises:
        DataError: it is a folder, a named pipe, a device or a socket. A missing file is not an error.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # opening it raises a more specific error
    if not stat.S_ISREG(mode):
        kind = next((name for what, name in _KINDS.items() if stat.S_IFMT(mode) == what), "something else")
        raise DataError(f"{os.fspath(path)}: {kind}, not a file")


def write_bytes(url: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``url`` atomically, replacing an existing file; devices and named pipes are written in place."""
    target = local_path(url)
    if target is None:
        _call(url, "write", lambda fs, path: fs.pipe_file(path, content))
        return
    if special_files.is_device(target):
        special_files.write(target, content)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{_TEMPORARY_PREFIX}{processes.machine()}-{os.getpid()}-{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())  # a crash of the machine must not leave an empty file under the final name
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # names no file (full disk), or the temporary one
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error
        raise


def write_text(url: str | os.PathLike[str], content: str) -> None:
    """Like `write_bytes`, for UTF-8 text, from which credentials are removed (see `credentials.redact`)."""
    write_bytes(url, redact(content).encode("utf-8"))


def remove(url: str | os.PathLike[str]) -> None:
    """Delete a file or a whole folder; a missing one is not an error."""
    with contextlib.suppress(FileNotFoundError):
        _call(url, "delete", lambda fs, path: fs.rm(path, recursive=True))


def arrow_filesystem(url: str) -> tuple[Any, str]:
    """``url`` as Ray expects it: a picklable pyarrow filesystem with these settings, and a path in it."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = _open(url)
    return PyFileSystem(FSSpecHandler(fs)), path


def create(url: str, content: bytes) -> bool:
    """Create an object at ``url`` of object storage unless one exists; return whether it was created.

    S3 does this atomically (If-None-Match). For stores that ignore or do not implement the condition, the object is looked
    up first, so that two writers at the same moment may both succeed.
    """
    return _put_if(url, content, {"mode": "create"})


def replace(url: str, content: bytes, version: str) -> bool:
    """Replace the object whose ETag is ``version``; return False if it has another ETag by now.

    The same limitation as for `create` applies to stores without conditional writes (If-Match).
    """
    return _put_if(url, content, {"IfMatch": version})


def read_version(url: str) -> tuple[bytes, str] | None:
    """Content of an object and its ETag (empty if the store has none); None if there is no object."""

    def query(fs: fsspec.AbstractFileSystem, path: str) -> tuple[bytes, str]:
        version = str(fs.info(path, refresh=True).get("ETag", "")) if get_protocol(url) in _S3 else ""
        return bytes(fs.cat_file(path)), version

    try:
        return _call(url, "read", query)
    except FileNotFoundError:
        return None


def _put_if(url: str, content: bytes, condition: dict[str, str]) -> bool:
    known = read_version(url)
    if (known is not None) if "mode" in condition else (known is None or known[1] != condition["IfMatch"]):
        return False
    conditional = get_protocol(url) in _S3

    def put(fs: fsspec.AbstractFileSystem, path: str) -> bool:
        try:
            fs.pipe_file(path, content, **(condition if conditional else {}))
        except Exception as error:
            if precondition_failed(error):
                return False
            if not (conditional and rejects_conditional_writes(error)):
                raise
            fs.pipe_file(path, content)
        return True

    return _call(url, "write", put)


def remove_abandoned(url: str | os.PathLike[str]) -> int:
    """Delete the temporary files of killed writers directly in a local folder ``url``; return their number.

    A file is kept while its writer may be alive: a running process of this machine, or one of another machine that changed
    the file within a day.
    """
    folder = local_path(url)
    if folder is None or not folder.is_dir():
        return 0
    stale = [path for path in folder.glob(f"{_TEMPORARY_PREFIX}*") if _is_abandoned(path)]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def _is_abandoned(path: Path) -> bool:
    machine, _, rest = path.name.removeprefix(_TEMPORARY_PREFIX).partition("-")
    pid = rest.partition("-")[0]
    if machine == processes.machine() and pid.isdecimal():
        return not processes.is_alive(int(pid))
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > _ABANDONED_AFTER
    return False


def _is_local(url: str | os.PathLike[str]) -> bool:
    """Whether ``url`` is a path of this machine; every URL is validated here first.

    Raises:
        ConfigError: it cannot be a URL, although fsspec would treat it as a local path.
    """
    wrong = malformed(os.fspath(url))
    if wrong:
        raise ConfigError(f"{os.fspath(url)!r} {wrong}")
    return get_protocol(os.fspath(url)) in _LOCAL


def _call(url: str | os.PathLike[str], doing: str, call: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
    """Apply ``call`` to the filesystem and path of ``url``; for object storage with retries and readable errors."""
    fs, path = _open(url)
    if _is_local(url):
        return call(fs, path)

    def request() -> T:
        fs, path = _open(url)  # opened again after _forget_credentials
        _probe_endpoint(fs, os.fspath(url))
        return call(fs, path)

    return call_with_retries(request, os.fspath(url), doing, _State.config.retries, lambda: _forget_credentials(fs))


def _forget_credentials(fs: fsspec.AbstractFileSystem) -> None:
    """Drop fsspec's cached filesystems of this type, so that those opened next read their credentials again."""
    type(fs).clear_instance_cache()


def _open(url: str | os.PathLike[str]) -> tuple[fsspec.AbstractFileSystem, str]:
    """Filesystem and path of ``url``; fsspec caches one filesystem per settings."""
    text = os.fspath(url)
    if _is_local(text):
        return url_to_fs(text)
    if holds_credentials(text):
        raise ConfigError(f"{redact(text)}: contains credentials, which do not belong in a URL; {CREDENTIALS_HINT}")
    s3 = get_protocol(text) in _S3
    try:
        fs, path = url_to_fs(text, **(_State.config.filesystem_options() if s3 else {}))
    except ImportError as error:
        remedy = "pip install 'avvp_dist[s3]'" if s3 else str(error)
        raise ConfigError(f"{text}: a package for such URLs is missing: {remedy}") from None
    except ValueError as error:
        raise ConfigError(f"{text}: not a usable URL: {error}") from None
    if s3:
        fs.retries = 1  # retries of s3fs itself, in addition to botocore's
    return fs, path


def _probe_endpoint(fs: fsspec.AbstractFileSystem, url: str) -> None:
    """Fail quickly if no server listens at an S3 endpoint; one that has answered before gets all the retries."""
    if get_protocol(url) not in _S3:
        return
    endpoint: str = fs.s3.meta.endpoint_url
    address = urlsplit(endpoint)
    host = address.hostname or ""
    behind_proxy = address.scheme in getproxies() and not proxy_bypass(host)
    if endpoint in _State.reachable or behind_proxy:
        return
    port = address.port or (443 if address.scheme == "https" else 80)
    for pause in [0.3 * 2**number for number in range(_PROBE_ATTEMPTS)]:
        try:
            socket.create_connection((host, port), _State.config.connect_timeout).close()
        except OSError as error:
            reason = error.strerror or str(error)
            if isinstance(error, TimeoutError):
                break
            time.sleep(pause)
        else:
            _State.reachable.add(endpoint)
            return
    raise unreachable(url, endpoint, reason)
