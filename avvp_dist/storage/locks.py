"""Locks that lie where the data are, so that all who write there see them: other processes, other nodes, other machines.

    a disk           ``.avvp-lock*`` beside the data, under a lock of the kernel (flock), which ends with its process
    object storage   ``.avvp-lock*`` as a lease: put only if there is none (If-None-Match), renewed every 15 s

Both hold who has it, as JSON. A lock that its owner did not release is taken over at once where the owner is known to be
dead (the kernel says so, its process is gone from this machine, or it was an earlier worker of the same run), else after
60 s without a renewal. Nobody's clock is compared with another's: who waits watches whether the lock changes.

Where a disk has no flock, or a store ignores conditions, two that start within the same moment may both get it.
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
_WAIT_FOR_RUNNING = 10.0  # seconds that a second run waits for the first: it may just be ending
_NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}


@dataclass(frozen=True)
class Owner:
    """Who has a lock.

    Attributes:
        group: the same for all processes of which one replaces the other, such as a run's workers after a failure.
        id: of this one holding.
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
        """Of a lock that this process is about to take."""
        words = ["avvp_dist", *(word for word in sys.argv[1:] if "=" not in word)]
        since = time.strftime("%Y-%m-%d %H:%M:%S%z")
        command = redact(" ".join(words))[:120]
        return cls(
            socket.gethostname(), processes.machine(), os.getpid(), _user(), command, since, group or uuid.uuid4().hex
        )

    @classmethod
    def parse(cls, content: bytes) -> Owner | None:
        """Reads what `to_bytes` wrote; None for anything else."""
        try:
            found: dict[str, Any] = json.loads(content)
            return cls(pid=int(found["pid"]), **{name: str(found[name]) for name in _TEXTS})
        except (ValueError, TypeError, KeyError):
            return None

    def to_bytes(self, renewals: int = 0) -> bytes:
        """Content of the lock; every renewal makes another."""
        return json.dumps({**asdict(self), "renewals": renewals}).encode()

    def is_gone(self) -> bool:
        """Whether it was a process of this machine that has ended."""
        return self.machine == processes.machine() and not processes.is_alive(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host} since {self.since} ({self.command})"


_TEXTS = [name for name in Owner.__dataclass_fields__ if name != "pid"]


@dataclass(frozen=True)
class _Holder:
    """A lock that another has.

    Attributes:
        version: another after each renewal.
        certain: whether the owner is known to run.
    """

    owner: Owner | None
    version: str
    certain: bool


class _LockBackend(Protocol):
    """A lock on a disk or in a store; ``poll`` are the seconds between two attempts to take it."""

    poll: float

    def take(self, me: Owner, stale: str | None) -> _Holder | None:
        """Takes the lock unless another has it; ``stale`` is a version that may be taken over. None: it is ours."""

    def renew(self) -> bool:
        """Shows that the owner runs; returns False where another has taken the lock over."""

    def release(self) -> None:
        """Gives the lock back."""


class _FileLock:
    """A file under flock."""

    poll = 0.5

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._mine = b""
        self._made = False  # whether the folder was made for the lock

    def take(self, me: Owner, stale: str | None) -> _Holder | None:
        self._made |= not self._path.parent.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # its owner has just released it and deleted the folder
            return _Holder(None, "", certain=False)
        try:
            kernel = _flock(file)
            content = os.pread(file, 1 << 16, 0)
            owner, version = Owner.parse(content), f"{os.fstat(file).st_mtime_ns} {content!r}"
            if kernel is False or not _is_at(file, self._path):  # its owner deletes the file before the lock ends
                return _Holder(owner, version, certain=kernel is False)
            # the kernel of this machine frees its locks; that of another may not share them with this one
            free = owner is None or owner.group == me.group or owner.is_gone() or version == stale
            if not free and not (kernel and owner and owner.machine == me.machine):
                return _Holder(owner, version, certain=False)
            self._mine = me.to_bytes()
            os.ftruncate(file, 0)
            os.pwrite(file, self._mine, 0)
            self._file, file = file, -1
            return None
        finally:
            if file >= 0:
                os.close(file)

    def renew(self) -> bool:
        os.utime(self._file)
        return os.pread(self._file, 1 << 16, 0) == self._mine

    def release(self) -> None:
        try:
            if _is_at(self._file, self._path) and os.pread(self._file, 1 << 16, 0) == self._mine:
                self._path.unlink()
                if self._made and self._path.name == storage.LOCK:  # nothing came of what the folder was locked for
                    with contextlib.suppress(OSError):
                        self._path.parent.rmdir()
        finally:
            os.close(self._file)


class _ObjectLock:
    """An object that its owner puts anew now and then."""

    poll = 2.0

    def __init__(self, url: str) -> None:
        self._url = url
        self._me: Owner | None = None
        self._renewals = 0

    def take(self, me: Owner, stale: str | None) -> _Holder | None:
        self._me = me
        known = storage.read_version(self._url)
        if known is None:
            if storage.create(self._url, me.to_bytes()):
                return None
            known = storage.read_version(self._url)
            if known is None:  # released between the two looks
                return _Holder(None, "", certain=False)
        content, etag = known
        owner, version = Owner.parse(content), f"{etag} {content!r}"
        if owner and owner.id == me.id:  # put by an attempt whose answer was lost
            return None
        free = owner is None or owner.group == me.group or owner.is_gone() or version == stale
        if free and storage.replace(self._url, me.to_bytes(), etag):
            return None
        return _Holder(owner, version, certain=False)

    def renew(self) -> bool:
        assert self._me
        known = storage.read_version(self._url)
        owner = Owner.parse(known[0]) if known else None
        if known is None or owner is None or owner.id != self._me.id:
            return False
        self._renewals += 1
        storage.replace(self._url, self._me.to_bytes(self._renewals), known[1])  # refused: the next renewal sees by whom
        return True

    def release(self) -> None:
        assert self._me
        known = storage.read_version(self._url)
        owner = Owner.parse(known[0]) if known else None
        if owner and owner.id == self._me.id:
            storage.remove(self._url)


@contextlib.contextmanager
def lock_folder(
    folder: str,
    advice: str = "choose another output",
    patience: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Keeps other processes of this package from writing to ``folder``.

    Args:
        folder: folder or URL.
        advice: what a second one is told to do.
        patience: seconds that it waits for an owner that runs, in case that is about to end; None for 10. For one that may
            be dead it waits a minute.
        stopped: asked while it waits, whether to give up.

    Raises:
        ConfigError: another process has it; says which.
        Preempted: ``stopped`` said so.
    """
    patience = _WAIT_FOR_RUNNING if patience is None else patience
    with _held(storage.join(folder, storage.LOCK), folder, Owner.this_process(), patience, stopped, advice):
        yield


@contextlib.contextmanager
def lock_stage(
    store: str, key: str, group: str | None = None, stopped: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Entered once nobody else works on the stage ``key`` of ``store``, however long that takes.

    Args:
        store: folder or URL.
        key: of the stage.
        group: see `Owner`.
        stopped: asked while it waits, whether to give up.

    Raises:
        Preempted: ``stopped`` said so.
    """
    url = storage.join(store, f"{storage.LOCK}-{key}")
    with _held(url, f"stage {key} of {store}", Owner.this_process(group), float("inf"), stopped):
        yield


@contextlib.contextmanager
def _held(url: str, what: str, me: Owner, patience: float, stopped: Callable[[], bool], advice: str = "") -> Iterator[None]:
    path = storage.local_path(url)
    place: _LockBackend = _ObjectLock(url) if path is None else _FileLock(path)
    _acquire(place, what, me, patience, stopped, advice)
    done = threading.Event()
    thread = threading.Thread(target=_keep_renewing, args=(place, what, done), name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        try:
            place.release()
        except (OSError, AvvpError) as error:
            LOGGER.warning("%s: the lock was not released (%s); others wait a minute for it", what, error)


def _acquire(place: _LockBackend, what: str, me: Owner, patience: float, stopped: Callable[[], bool], advice: str) -> None:
    """Waits for the lock; no longer than ``patience`` once its owner is known to run."""
    started = changed = time.monotonic()
    version, stale, certain, told = None, None, False, False
    while (taken := place.take(me, stale)) is not None:
        now = time.monotonic()
        if version not in (None, taken.version):
            certain = True  # renewed, or another's by now
        if version != taken.version:
            version, changed = taken.version, now
        stale = taken.version if now - changed > _STALE_AFTER and not taken.certain else None
        owner = taken.owner or "a process that has not said who it is"
        if (certain or taken.certain) and now - started > patience:
            raise ConfigError(f"{what}: in use by {owner}; {advice}, or wait until that process has ended")
        if stopped():
            raise Preempted(f"asked to stop while waiting for {owner}: the same command goes on from there")
        if not told:
            limit = f"; giving up after {patience:g} s if it runs on" if patience < float("inf") else ""
            LOGGER.info("%s: waiting for %s%s", what, owner, limit)
            told = True
        time.sleep(place.poll)


def _keep_renewing(place: _LockBackend, what: str, done: threading.Event) -> None:
    while not done.wait(_RENEW_INTERVAL):
        try:
            if not place.renew():
                LOGGER.error("%s: another process has taken the lock over; stop one of the two", what)
                return
        except (OSError, AvvpError) as error:
            LOGGER.warning("%s: the lock could not be renewed (%s)", what, error)


def _flock(file: int) -> bool | None:
    """Whether this process has the kernel's lock now; None where the disk has no such locks."""
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
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no passwd entry
        return f"user {os.getuid()}"
