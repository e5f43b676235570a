"""The only fsspec code: read, write and list local paths and object-store URLs alike.

Writes are never half-visible: a local file is written temporary and renamed, an object store shows an object only once its
upload has finished. What goes wrong with object storage is a `StorageError`; where nothing is there, FileNotFoundError.

How object storage is reached is this module's one piece of state. A command sets it with `configure` when it knows its
config; a process that is started by another is given `settings` and does the same. Until then the environment decides.
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
"""Prefix of the names of locks (see `locks`); never taken for data."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_TEMPORARY_PREFIX = ".aside-"  # prefix of files being written; never taken for data
_ABANDONED_AFTER = 24 * 3600.0  # seconds without a change after which a file temporary has no writer any more
_LOCAL = ("file", "local")
_S3 = ("s3", "s3a")
_PROBE_ATTEMPTS = 3  # attempts to find anyone at an address that has not reachable yet: a wrong one should not cost a minute


class _State:
    """All that a process keeps about object storage."""

    config: ClassVar[StorageConfig] = StorageConfig()
    reachable: ClassVar[set[str]] = set()  # addresses that somebody listens at


def configure(config: StorageConfig) -> None:
    """Says how this process reaches object storage from now on."""
    _State.config = config


def settings() -> StorageConfig:
    """How this process reaches object storage, with what its environment says; `configure` of another process takes it."""
    return _State.config.resolved()


def join(url: str | os.PathLike[str], *parts: str) -> str:
    """``url`` extended by ``parts``; works on local paths and on URLs."""
    return "/".join([os.fspath(url).rstrip("/"), *(part.strip("/") for part in parts)])


def local_path(url: str | os.PathLike[str]) -> Path | None:
    """The path on this machine that ``url`` names, or None when it lives elsewhere."""
    return Path(url_to_fs(os.fspath(url))[1]) if _is_local(url) else None


def absolute(url: str | os.PathLike[str]) -> str:
    """A local path made absolute; any other URL as it is."""
    here = local_path(url)
    return os.fspath(url) if here is None else os.path.abspath(here)


def exists(url: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is there."""

    def query(fs: fsspec.AbstractFileSystem, path: str) -> bool:
        # s3fs' own exists() takes a bucket that is not there, or refuses, for a missing file
        return bool(fs.info(path)) if get_protocol(os.fspath(url)) in _S3 else bool(fs.exists(path))

    try:
        return _call(url, "look up", query)
    except FileNotFoundError:
        return False


def size(url: str | os.PathLike[str]) -> int:
    """Bytes of the file at ``url``.

    Raises:
        FileNotFoundError: there is none.
    """
    return _call(url, "look up", lambda fs, path: int(fs.size(path)))


def names(url: str | os.PathLike[str]) -> list[str]:
    """Sorted names of the files and folders right below ``url``; empty when it is not there."""

    def query(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
        found = (entry.rstrip("/") for entry in fs.ls(path, detail=False, refresh=True))
        return [entry.rsplit("/", 1)[-1] for entry in found if entry != path.rstrip("/")]  # some list the folder itself

    try:
        found = _call(url, "list", query)
    except FileNotFoundError:
        return []
    return sorted(name for name in found if not name.startswith((_TEMPORARY_PREFIX, LOCK)))


def find(url: str | os.PathLike[str], name: str) -> list[str]:
    """All files called ``name`` in the folder ``url`` or anywhere below it, sorted; empty when it is not there."""
    here = _is_local(url)

    def query(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
        found = (each for each in fs.find(path) if each.rsplit("/", 1)[-1] == name)
        return sorted(each if here else fs.unstrip_protocol(each) for each in found)

    return _call(url, "list", query)


def sizes(url: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes of each file right below ``url``, by its name; empty when it is not there."""
    try:
        entries = _call(url, "list", lambda fs, path: fs.ls(path, detail=True, refresh=True))
    except FileNotFoundError:
        return {}
    return {entry["name"].rsplit("/", 1)[-1]: int(entry["size"]) for entry in entries if entry["type"] == "file"}


def versions(url: str | os.PathLike[str]) -> dict[str, str]:
    """By name, what tells each file right below ``url`` from another version of it; empty when it is not there.

    That is its size, and the hash or time of change that the store lists.
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
    """Whole content of the file at ``url``.

    Raises:
        FileNotFoundError: there is none.
        DataError: something else is there: a folder, a named pipe, a device.
    """
    here = local_path(url)
    if here is not None:
        check_file(here)
    # one request for the whole of an object: s3fs would ask for its size first, and fetch a large one in ranges
    options = {"max_concurrency": 1} if get_protocol(os.fspath(url)) in _S3 else {}
    return _call(url, "read", lambda fs, path: bytes(fs.cat_file(path, **options)))


def read_text(url: str | os.PathLike[str]) -> str:
    """Whole UTF-8 content of the file at ``url``.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is no UTF-8 text.
    """
    try:
        return read_bytes(url).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{os.fspath(url)}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuses what is no file before it is opened: a named pipe would wait for its other end for ever.

    Raises:
        DataError: a folder, a named pipe, a device or a socket; nothing where there is none.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # whoever opens it tells more
    if not stat.S_ISREG(mode):
        kind = next((name for what, name in _KINDS.items() if stat.S_IFMT(mode) == what), "something else")
        raise DataError(f"{os.fspath(path)}: {kind}, not a file")


def write_bytes(url: str | os.PathLike[str], content: bytes) -> None:
    """Puts ``content`` at ``url``, replacing what was there, all at once; a device or a named pipe is written in place."""
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
        if isinstance(error, OSError) and error.errno:  # a full disk's names no file, others' the one temporary
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error
        raise


def write_text(url: str | os.PathLike[str], content: str) -> None:
    """Like `write_bytes`, UTF-8 and without credentials (see `credentials.redact`)."""
    write_bytes(url, redact(content).encode("utf-8"))


def remove(url: str | os.PathLike[str]) -> None:
    """Deletes a file or a whole folder; nothing happens where there is none."""
    with contextlib.suppress(FileNotFoundError):
        _call(url, "delete", lambda fs, path: fs.rm(path, recursive=True))


def arrow_filesystem(url: str) -> tuple[Any, str]:
    """``url`` as Ray wants it: a pyarrow filesystem with these settings, which may travel to workers, and a path in it."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = _open(url)
    return PyFileSystem(FSSpecHandler(fs)), path


def create(url: str, content: bytes) -> bool:
    """Puts an object at ``url`` of object storage unless one is there; returns whether it did.

    S3 decides in one step (If-None-Match). A store that ignores or does not know the condition is asked before: then two
    writers of the same moment may both succeed.
    """
    return _put_if(url, content, {"mode": "create"})


def replace(url: str, content: bytes, version: str) -> bool:
    """Puts ``content`` in place of the object whose ETag is ``version``; returns False where it is another by now.

    As `create` where a store does not know the condition (If-Match).
    """
    return _put_if(url, content, {"IfMatch": version})


def read_version(url: str) -> tuple[bytes, str] | None:
    """Content of an object and its ETag (empty where the store has none); None where there is none."""

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
    """Deletes what killed writers left temporary right below a local ``url``; returns how many files that were.

    A file is left if its writer may be alive: a process of this machine that runs, or one of another machine within a day.
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
    """Whether ``url`` is a path of this machine; the door through which every URL comes.

    Raises:
        ConfigError: it can be no URL; fsspec would take it for a local path.
    """
    wrong = malformed(os.fspath(url))
    if wrong:
        raise ConfigError(f"{os.fspath(url)!r} {wrong}")
    return get_protocol(os.fspath(url)) in _LOCAL


def _call(url: str | os.PathLike[str], doing: str, call: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
    """What ``call`` makes of the filesystem and path of ``url``; of object storage with patience and plain errors."""
    fs, path = _open(url)
    if _is_local(url):
        return call(fs, path)

    def talk() -> T:
        fs, path = _open(url)  # anew: see _forget_credentials
        _probe_endpoint(fs, os.fspath(url))
        return call(fs, path)

    return call_with_retries(talk, os.fspath(url), doing, _State.config.retries, lambda: _forget_credentials(fs))


def _forget_credentials(fs: fsspec.AbstractFileSystem) -> None:
    """Forgets a filesystem and its like: those that are opened next look for credentials again."""
    type(fs).clear_instance_cache()


def _open(url: str | os.PathLike[str]) -> tuple[fsspec.AbstractFileSystem, str]:
    """Filesystem and path of ``url``; fsspec keeps one filesystem for the same settings."""
    text = os.fspath(url)
    if _is_local(text):
        return url_to_fs(text)
    if holds_credentials(text):
        raise ConfigError(f"{redact(text)}: holds credentials, which do not belong into a URL; {CREDENTIALS_HINT}")
    s3 = get_protocol(text) in _S3
    try:
        fs, path = url_to_fs(text, **(_State.config.filesystem_options() if s3 else {}))
    except ImportError as error:
        wanted = "pip install 'avvp_dist[s3]'" if s3 else str(error)
        raise ConfigError(f"{text}: a package for such URLs is missing: {wanted}") from None
    except ValueError as error:
        raise ConfigError(f"{text}: not a URL that can be used: {error}") from None
    if s3:
        fs.retries = 1  # of s3fs itself; botocore's count
    return fs, path


def _probe_endpoint(fs: fsspec.AbstractFileSystem, url: str) -> None:
    """Refuses an S3 address where nobody listens, quickly; one that has reachable before gets all the retries."""
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
