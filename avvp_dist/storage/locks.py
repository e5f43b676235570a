"""Locks that are stored next to the data, so that every process that writes there sees them, on any node or machine.

    disk             ``.avvp-lock*`` beside the data, under a kernel lock (flock), which ends with its process
    object storage   ``.avvp-lock*`` as a lease: created only if absent (If-None-Match), renewed every 15 s

Both contain their owner as JSON. A lock that its owner did not release is taken over immediately if the owner is known to be
dead (its kernel lock is free, its process is gone from this machine, or it was an earlier worker of the same run), or after
60 s without a renewal. Clocks of different machines are never compared: a waiting process observes whether the lock changes.

On a disk without flock, or in a store that ignores conditions, two processes that start at the same moment may both get the
lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from avvp_dist import storage
from avvp_dist.errors import AvvpError, ConfigError, Preempted
from avvp_dist.storage import processes
from avvp_dist.text.credentials import redact

LOGGER = logging.getLogger(__name__)

_RENEW_INTERVAL = 15.0  # seconds between two renewals
_STALE_AFTER = 60.0  # seconds without a renewal after which an owner counts as dead
_WAIT_FOR_RUNNING = 10.0  # seconds to wait for a running owner, which may be about to end
_NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        host: name of its machine, for messages.
        machine: see `processes.machine`.
        pid: process id.
        user: user name, for messages.
        command: command line without settings, for messages.
        since: local time at which the lock was acquired, for messages.
        group: the same for all processes that may replace each other, such as the workers of a run after a failure.
        id: unique for each acquisition.
    """

    host: str
    machine: str
    pid: int
    user: str
    command: str
    since: str
    group: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def this_process(cls, group: str | None = None) -> Owner:
        """The owner entry of a lock that this process is about to acquire."""
        words = ["avvp_dist", *(word for word in sys.argv[1:] if "=" not in word)]
        since = time.strftime("%Y-%m-%d %H:%M:%S%z")
        command = redact(" ".join(words))[:120]
        return cls(
            socket.gethostname(), processes.machine(), os.getpid(), _user(), command, since, group or uuid.uuid4().hex
        )

    @classmethod
    def parse(cls, content: bytes) -> Owner | None:
        """Parse the result of `to_bytes`; None for anything else."""
        try:
            found: dict[str, Any] = json.loads(content)
            return cls(pid=int(found["pid"]), **{name: str(found[name]) for name in _TEXT_FIELDS})
        except (ValueError, TypeError, KeyError):
            return None

    def to_bytes(self, renewals: int = 0) -> bytes:
        """Content of the lock file, which each renewal changes."""
        return json.dumps({**asdict(self), "renewals": renewals}).encode()

    def is_gone(self) -> bool:
        """Whether this was a process of this machine that has ended."""
        return self.machine == processes.machine() and not processes.is_alive(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host} since {self.since} ({self.command})"


_TEXT_FIELDS = [name for name in Owner.__dataclass_fields__ if name != "pid"]


@dataclass(frozen=True)
class _Held:
    """The state of a lock that another process holds.

    Attributes:
        owner: None if the lock does not name one.
        version: differs after each renewal.
        certain: whether the owner is known to be running.
    """

    owner: Owner | None
    version: str
    certain: bool


class _Lock(Protocol):
    """A lock on a disk or in a store; ``poll`` is the time in seconds between two attempts to acquire it."""

    poll: float

    def acquire(self, owner: Owner, stale: str | None) -> _Held | None:
        """Acquire the lock for ``owner``; return None if successful, else its present state.

        ``stale`` is a version of the lock that may be taken over.
        """

    def renew(self) -> bool:
        """Show that the owner is running; return False if another process has taken the lock over."""

    def release(self) -> None:
        """Release the lock."""


class _FileLock:
    """A file under flock."""

    poll = 0.5

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._content = b""
        self._created_folders: list[Path] = []  # innermost first

    def acquire(self, owner: Owner, stale: str | None) -> _Held | None:
        self._created_folders = self._created_folders or [folder for folder in self._path.parents if not folder.exists()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # its owner has just released it and deleted the folder
            return _Held(None, "", certain=False)
        try:
            locked = _flock(file)
            content = os.pread(file, 1 << 16, 0)
            holder, version = Owner.parse(content), f"{os.fstat(file).st_mtime_ns} {content!r}"
            if locked is False or not _is_at(file, self._path):  # an owner deletes the file before it unlocks it
                return _Held(holder, version, certain=locked is False)
            # flock frees the locks of dead processes of this machine; a network disk may not share locks between machines
            if not _is_available(holder, owner, version, stale) and not (
                locked and holder and holder.machine == owner.machine
            ):
                return _Held(holder, version, certain=False)
            self._content = owner.to_bytes()
            os.ftruncate(file, 0)
            os.pwrite(file, self._content, 0)
            self._file, file = file, -1
            return None
        finally:
            if file >= 0:
                os.close(file)

    def renew(self) -> bool:
        os.utime(self._file)
        return os.pread(self._file, 1 << 16, 0) == self._content

    def release(self) -> None:
        try:
            if _is_at(self._file, self._path) and os.pread(self._file, 1 << 16, 0) == self._content:
                self._path.unlink()
                if self._path.name == storage.LOCK:  # remove the folders again if nothing was written
                    with contextlib.suppress(OSError):
                        for folder in self._created_folders:
                            folder.rmdir()
        finally:
            os.close(self._file)


class _ObjectLock:
    """An object that its owner rewrites periodically."""

    poll = 2.0

    def __init__(self, url: str) -> None:
        self._url = url
        self._owner: Owner | None = None
        self._renewals = 0

    def acquire(self, owner: Owner, stale: str | None) -> _Held | None:
        self._owner = owner
        known = storage.read_version(self._url)
        if known is None:
            if storage.create(self._url, owner.to_bytes()):
                return None
            known = storage.read_version(self._url)
            if known is None:  # released between the two requests
                return _Held(None, "", certain=False)
        content, etag = known
        holder, version = Owner.parse(content), f"{etag} {content!r}"
        if holder and holder.id == owner.id:  # written by an attempt whose response was lost
            return None
        if _is_available(holder, owner, version, stale) and storage.replace(self._url, owner.to_bytes(), etag):
            return None
        return _Held(holder, version, certain=False)

    def renew(self) -> bool:
        assert self._owner
        known = storage.read_version(self._url)
        holder = Owner.parse(known[0]) if known else None
        if known is None or holder is None or holder.id != self._owner.id:
            return False
        self._renewals += 1
        storage.replace(self._url, self._owner.to_bytes(self._renewals), known[1])  # if refused, the next renewal finds out
        return True

    def release(self) -> None:
        assert self._owner
        known = storage.read_version(self._url)
        holder = Owner.parse(known[0]) if known else None
        if holder and holder.id == self._owner.id:
            storage.remove(self._url)


@contextlib.contextmanager
def lock_folder(
    folder: str,
    advice: str = "choose another output",
    patience: float | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Keep other processes of this package from writing to ``folder``.

    Args:
        folder: folder or URL.
        advice: what a process that does not get the lock reports as the remedy.
        patience: seconds to wait for a running owner, which may be about to end; None for 10. An owner that may be dead is
            waited for up to a minute.
        stop_requested: polled while waiting; ends the wait.

    Raises:
        ConfigError: another process holds the lock; names it.
        Preempted: a stop was requested.
    """
    patience = _WAIT_FOR_RUNNING if patience is None else patience
    with _hold(storage.join(folder, storage.LOCK), folder, Owner.this_process(), patience, stop_requested, advice):
        yield


@contextlib.contextmanager
def lock_stage(
    store: str, key: str, group: str | None = None, stop_requested: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Wait, without a limit, until no other process works on the stage ``key`` of ``store``, and keep others from it.

    Args:
        store: folder or URL.
        key: of the stage.
        group: see `Owner`.
        stop_requested: polled while waiting; ends the wait.

    Raises:
        Preempted: a stop was requested.
    """
    url = storage.join(store, f"{storage.LOCK}-{key}")
    with _hold(url, f"stage {key} of {store}", Owner.this_process(group), float("inf"), stop_requested):
        yield


@contextlib.contextmanager
def _hold(
    url: str, what: str, owner: Owner, patience: float, stop_requested: Callable[[], bool], advice: str = ""
) -> Iterator[None]:
    path = storage.local_path(url)
    lock: _Lock = _ObjectLock(url) if path is None else _FileLock(path)
    _wait_for(lock, what, owner, patience, stop_requested, advice)
    done = threading.Event()
    thread = threading.Thread(target=_keep_renewing, args=(lock, what, done), name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        try:
            lock.release()
        except (OSError, AvvpError) as error:
            LOGGER.warning("%s: the lock was not released (%s); other processes wait a minute for it", what, error)


def _wait_for(
    lock: _Lock, what: str, owner: Owner, patience: float, stop_requested: Callable[[], bool], advice: str
) -> None:
    """Acquire the lock, waiting at most ``patience`` seconds for an owner that is known to be running."""
    started = changed = time.monotonic()
    version, stale, certain, logged = None, None, False, False
    while (held := lock.acquire(owner, stale)) is not None:
        now = time.monotonic()
        if version not in (None, held.version):
            certain = True  # the lock was renewed, or has another owner by now
        if version != held.version:
            version, changed = held.version, now
        stale = held.version if now - changed > _STALE_AFTER and not held.certain else None
        holder = held.owner or "an unknown process"
        if (certain or held.certain) and now - started > patience:
            raise ConfigError(f"{what}: in use by {holder}; {advice}, or wait until that process has ended")
        if stop_requested():
            raise Preempted(f"stop requested while waiting for {holder}; run the same command again to continue")
        if not logged:
            limit = f"; giving up after {patience:g} s if it keeps running" if patience < float("inf") else ""
            LOGGER.info("%s: waiting for %s%s", what, holder, limit)
            logged = True
        time.sleep(lock.poll)


def _keep_renewing(lock: _Lock, what: str, done: threading.Event) -> None:
    while not done.wait(_RENEW_INTERVAL):
        try:
            if not lock.renew():
                LOGGER.error("%s: another process has taken over the lock; stop one of the two processes", what)
                return
        except (OSError, AvvpError) as error:
            LOGGER.warning("%s: the lock could not be renewed (%s)", what, error)


def _is_available(holder: Owner | None, owner: Owner, version: str, stale: str | None) -> bool:
    """Whether ``owner`` may take over the lock of ``holder``."""
    return holder is None or holder.group == owner.group or holder.is_gone() or version == stale


def _flock(file: int) -> bool | None:
    """Try to lock an open file; return whether this succeeded, or None on a disk without such locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no passwd entry
        return f"user {os.getuid()}"
