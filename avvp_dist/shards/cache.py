"""Shards as checked files of this node: local ones where they lie, remote ones from a cache that all its processes share.

    <folder>/shards/<sha256>   one shard, whole; it appears by a rename, so it is all there or not at all
    <folder>/partial/*         what is being written now, or what a killed writer left; gone with the next write
    <folder>/locks/*.lock      kernel locks, which die with their process; at most 257 empty files, never swept

Entries are named by content, so equal shards of two URLs are one entry. Nothing is written down about them: an entry's size
is its file's, the time of its last use is its file's access time. So there is no state that a kill could leave wrong.

A reader holds the entry open and share-locked; eviction passes over such entries, and if it did not, an open file stays
readable after its name is gone. That is why the cache hands out open files, and no paths.

The first time that a process opens a file it hashes all of it (about 1 GB a second and core, a fraction of what fetching
takes), and again whenever the file is another or has changed, also while it is open (`checked_file.py`). What is damaged is
fetched again. No fsync: what a crash of
the machine leaves is found in the same way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import filelock
import tenacity

from avvp_dist import storage
from avvp_dist.errors import DataError
from avvp_dist.shards.checked_file import RESUME_HINT, CheckedFile, OpenShard, ShardInMemory, Stamp
from avvp_dist.storage.user_folders import user_cache

if TYPE_CHECKING:
    from avvp_dist.shards.index import ShardInfo
    from avvp_dist.shards.reference import ShardRef

LOGGER = logging.getLogger(__name__)

DEFAULT_GB = 50.0
GB = 10**9
_ATTEMPTS = 4
_RESUME_PACK = "complete shards are kept"
_WAIT_LOG_INTERVAL = 20.0  # a process that waits for another says so this often
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PARTIAL_NAME = re.compile(r"[0-9a-f]{32}")


class Usage(NamedTuple):
    """How many entries, and their bytes."""

    entries: int
    bytes: int


class ContentMismatch(Exception):
    """What came is not what the index recorded."""


def default_folder() -> Path:
    """$AVVP_CACHE, else avvp_dist in the user's cache directory ($XDG_CACHE_HOME or ~/.cache).

    Raises:
        ConfigError: the user has no home folder.
    """
    if chosen := os.environ.get("AVVP_CACHE"):
        return Path(chosen)
    return user_cache("AVVP_CACHE") / "avvp_dist"


class ShardCache:
    """The shards of any data set, each fetched once a node however many processes ask for it.

    Threads may share one; each process makes its own (it may be pickled), all of the same folder.

    Args:
        folder: where; None for `default_folder`. Looked up and made when first needed: local data sets never need it.
        limit_bytes: what all entries together may take; those used longest ago make room.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, limit_bytes: int = int(DEFAULT_GB * GB)) -> None:
        self._given = folder
        self.limit_bytes = limit_bytes
        self._checked: dict[Path, Stamp | None] = {}
        self._warned = False

    @property
    def folder(self) -> Path:
        """Where the entries lie; may not exist yet."""
        return Path(self._given) if self._given else default_folder()

    def open(self, url: str, shard: ShardInfo | ShardRef) -> OpenShard:
        """The file of one shard of the data set at ``url``, at its beginning, its bytes checked; the caller closes it.

        Where the cache cannot keep it (disk full, folder not writable), one warning says so and what to do, and the shard
        comes from memory.

        Raises:
            DataError: it is missing, or not what the index recorded, after several attempts where it is remote.
        """
        source = storage.join(url, shard.name)
        here = storage.local_path(source)
        if here is not None:
            return self._local(here, shard)
        return self._find(shard) or self._fetch_once(source, shard)

    def usage(self) -> Usage:
        """What the cache holds now."""
        sizes = [found.st_size for _, found in self._entries()]
        return Usage(len(sizes), sum(sizes))

    def clear(self) -> Usage:
        """Deletes all entries but those that a process is reading now.

        Returns:
            what is left.

        Raises:
            DataError: a file cannot be deleted.
        """
        if self.folder.is_dir():
            try:
                with self._lock("room", "another process writes to it"):
                    self._sweep()
                    for path, _ in self._entries():
                        _remove_unused(path)
            except OSError as error:
                raise DataError(f"{self.folder}: cannot be cleared: {error}") from None
        return self.usage()

    def _local(self, path: Path, shard: ShardInfo | ShardRef) -> CheckedFile:
        storage.check_file(path)
        try:
            handle = self._open_checked(path, shard, cached=False)
        except FileNotFoundError:
            raise DataError(f"{shard.name}: missing; pack again ({_RESUME_PACK})") from None
        except OSError as error:
            raise DataError(f"{shard.name}: cannot be read: {error}") from None
        if handle is None:
            size = path.stat().st_size
            what = (
                "content differs from what the index recorded"
                if size == shard.bytes
                else (f"{size} bytes, the index says {shard.bytes}")
            )
            raise DataError(f"{shard.name}: {what}; delete it and pack again ({_RESUME_PACK})")
        return handle

    def _find(self, shard: ShardInfo | ShardRef) -> CheckedFile | None:
        """The entry of ``shard``, or None where there is none that can be used."""
        try:
            handle = self._open_checked(self._entry(shard), shard, cached=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            LOGGER.warning("%s in the cache %s cannot be read (%s); fetched again", shard.name, self.folder, error)
            return None
        if handle is None:
            LOGGER.warning("%s in the cache %s is damaged; fetched again", shard.name, self.folder)
            return None
        with contextlib.suppress(OSError):  # another user's entry
            os.utime(handle.fileno(), ns=(time.time_ns(), os.fstat(handle.fileno()).st_mtime_ns))
        return handle

    def _open_checked(self, path: Path, shard: ShardInfo | ShardRef, cached: bool) -> CheckedFile | None:
        """The open file, or None when it does not hold the shard."""
        remedy = (
            f"{RESUME_HINT}, and fetches it again"
            if cached
            else f"restore it, or delete it and pack again ({_RESUME_PACK}); {RESUME_HINT}"
        )
        with contextlib.ExitStack() as stack:
            handle = stack.enter_context(CheckedFile(path, shard, remedy, changes=not cached))
            if cached:
                _try_lock(handle, fcntl.LOCK_SH)  # refused while it is being evicted: then it stays readable all the same
            stamp = handle.stamp
            if self._checked.get(path, ()) != stamp:
                if not handle.is_intact():
                    return None
                self._checked[path] = stamp
            stack.pop_all()
            return handle

    def _fetch_once(self, source: str, shard: ShardInfo | ShardRef) -> OpenShard:
        """Fetches the shard, unless another process has done so when this one's turn comes."""
        try:
            with self._lock(shard.sha256[:2], f"another process fetches {shard.name}"):
                return self._find(shard) or self._store(shard, _fetch(source, shard))
        except OSError as error:
            self._warn_once(shard, error)
            return ShardInMemory(_fetch(source, shard), shard)

    def _store(self, shard: ShardInfo | ShardRef, content: bytes) -> OpenShard:
        """Publishes ``content`` as an entry and opens it."""
        partial = self.folder / "partial" / uuid.uuid4().hex
        try:
            with self._lock("room", "another process writes to it"):
                self._make_room(len(content))
                for folder in (partial.parent, self._entry(shard).parent):
                    folder.mkdir(exist_ok=True)
                try:
                    partial.write_bytes(content)
                    partial.replace(self._entry(shard))
                finally:
                    partial.unlink(missing_ok=True)
        except OSError as error:
            self._warn_once(shard, error)
            return ShardInMemory(content, shard)
        return self._find(shard) or ShardInMemory(content, shard)

    def _make_room(self, needed: int) -> None:
        """Evicts until ``needed`` more bytes are within the limit; the caller holds the lock ``room``.

        Raises:
            OSError: they do not fit.
        """
        self._sweep()
        entries = sorted(self._entries(), key=lambda entry: entry[1].st_atime_ns)
        left = self.limit_bytes - needed - sum(found.st_size for _, found in entries)
        if needed > self.limit_bytes:
            raise OSError(errno.EFBIG, "it is larger than the limit")
        for path, found in entries:
            if left >= 0:
                return
            if _remove_unused(path):
                left += found.st_size
        if left < 0:
            raise OSError(errno.ENOSPC, "the limit is reached, and all that is there is being read")

    def _sweep(self) -> None:
        """Deletes what killed writers left: who holds the lock ``room`` is the only writer."""
        for path in (self.folder / "partial").glob("*"):
            if _PARTIAL_NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in (self.folder / "shards").glob("*"):
            if not _SHA256.fullmatch(path.name):  # somebody else's file: never deleted
                continue
            with contextlib.suppress(FileNotFoundError):  # evicted while we look
                yield path, path.stat()

    def _entry(self, shard: ShardInfo | ShardRef) -> Path:
        if not _SHA256.fullmatch(shard.sha256):  # from an index, so perhaps from a stranger: it must not become a path
            raise DataError(f"{shard.name}: the index records no sha256 for it, but {shard.sha256[:80]!r}; pack again")
        return self.folder / "shards" / shard.sha256

    @contextlib.contextmanager
    def _lock(self, name: str, held_because: str) -> Iterator[None]:
        """One process and thread at a time; the kernel frees the lock of a process that dies."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{name}.lock")
        while True:
            try:
                lock.acquire(timeout=_WAIT_LOG_INTERVAL)
                break
            except filelock.Timeout:
                LOGGER.info("waiting for the cache %s: %s", self.folder, held_because)
        try:
            yield
        finally:
            lock.release()

    def _warn_once(self, shard: ShardInfo | ShardRef, error: OSError) -> None:
        if not self._warned:
            LOGGER.warning(
                "the shard cache cannot keep %s (%.3g MB): %s. Going on without it, so what does not fit is fetched again "
                "whenever it is needed. Its folder is %s, its limit %.4g GB: free some room there, or set data.cache to a "
                "folder with room, or raise data.cache_gb",
                shard.name,
                shard.bytes / 1e6,
                error,
                self.folder,
                self.limit_bytes / GB,
            )
        self._warned = True


def _remove_unused(path: Path) -> bool:
    """Deletes an entry unless a process is reading it."""
    try:
        with path.open("rb") as handle:
            if not _try_lock(handle, fcntl.LOCK_EX):
                return False
            path.unlink()
    except FileNotFoundError:
        pass  # another process has just deleted it: as it should be
    return True


def _try_lock(handle: BinaryIO, how: int) -> bool:
    """Locks an open file until its last descriptor is gone; False where another holds it."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a disk without locks: what is deleted stays readable to whoever has it open
        LOGGER.debug("no lock on %s: %s", handle.name, error)
    return True


def _fetch(source: str, shard: ShardInfo | ShardRef) -> bytes:
    """The whole shard from a remote store.

    Raises:
        DataError: as `ShardCache.open`.
    """
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
        retry=tenacity.retry_if_exception_type(ContentMismatch),  # storage has tried again whatever else may pass
        before_sleep=tenacity.before_sleep_log(LOGGER, logging.WARNING),
        reraise=True,
    )
    try:
        return retrying(fetch_verified, source, shard)
    except FileNotFoundError:
        raise DataError(f"{shard.name}: missing; pack again ({_RESUME_PACK})") from None
    except ContentMismatch as error:
        raise DataError(f"{shard.name}: {error}, {_ATTEMPTS} times; delete it there and pack again") from None


def fetch_verified(source: str, shard: ShardInfo | ShardRef) -> bytes:
    """All bytes of a shard from where it lies, of the length and hash in the index.

    Raises:
        ContentMismatch: they are others.
    """
    content = storage.read_bytes(source)
    if len(content) != shard.bytes:
        raise ContentMismatch(f"{len(content)} bytes came, {shard.bytes} are in the index")
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise ContentMismatch("content differs from what the index recorded")
    return content
