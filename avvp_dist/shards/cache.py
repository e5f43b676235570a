"""Verified shard files for a node: local shards in place, remote ones from a cache that all processes of the node share.

    <folder>/shards/<sha256>   a complete shard; created by a rename, so it is never partial
    <folder>/partial/*         shards being written, or left by a killed writer; removed by the next write
    <folder>/locks/*.lock      kernel locks, which end with their process; at most 257 empty files, never removed

Entries are named by content, so equal shards of two URLs share one entry. No metadata is stored: the size of an entry is the
size of its file, and its last use is the access time of its file. Hence a killed process cannot leave inconsistent state.

A reader keeps its entry open with a shared lock, and eviction skips such entries. Even an evicted file remains readable
while it is open, which is why the cache returns open files instead of paths.

A process hashes a file completely when it first opens it (about 1 GB per second and core, a fraction of the time to fetch
it), and again whenever the file is replaced or changes, even while it is open (`checked_file.py`). A damaged file is fetched
again. There is no fsync, because damage by a machine crash is detected in the same way.
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
_WAIT_LOG_INTERVAL = 20.0  # seconds between two log lines of a process that waits for another
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PARTIAL_NAME = re.compile(r"[0-9a-f]{32}")


class Usage(NamedTuple):
    """Number of entries and their total size in bytes."""

    entries: int
    bytes: int


class ContentMismatch(Exception):
    """A shard does not have the content that the index recorded."""


def default_folder() -> Path:
    """$AVVP_CACHE, else avvp_dist in the user's cache directory ($XDG_CACHE_HOME or ~/.cache).

    Raises:
        ConfigError: the user has no home folder.
    """
    if chosen := os.environ.get("AVVP_CACHE"):
        return Path(chosen)
    return user_cache("AVVP_CACHE") / "avvp_dist"


class ShardCache:
    """Provides the shards of any data set, fetching each once per node, however many processes request it.

    Threads can share an instance. Processes use instances of their own (they can be pickled) with the same folder.

    Args:
        folder: of the entries; None for `default_folder`. Created on first use, since local data sets do not need it.
        limit_bytes: maximum total size of the entries; the least recently used ones are evicted.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, limit_bytes: int = int(DEFAULT_GB * GB)) -> None:
        self._given = folder
        self.limit_bytes = limit_bytes
        self._checked: dict[Path, Stamp | None] = {}
        self._warned = False

    @property
    def folder(self) -> Path:
        """Folder of the entries; it may not exist yet."""
        return Path(self._given) if self._given else default_folder()

    def open(self, url: str, shard: ShardInfo | ShardRef) -> OpenShard:
        """Open the verified file of one shard of the data set at ``url``, positioned at its start; the caller closes it.

        If the cache cannot store it (disk full, folder not writable), this is logged once with a remedy, and the shard is
        returned from memory.

        Raises:
            DataError: the shard is missing or differs from the index, if it is remote even after several attempts.
        """
        source = storage.join(url, shard.name)
        here = storage.local_path(source)
        if here is not None:
            return self._local(here, shard)
        return self._find(shard) or self._fetch_once(source, shard)

    def usage(self) -> Usage:
        """Current usage of the cache."""
        sizes = [found.st_size for _, found in self._entries()]
        return Usage(len(sizes), sum(sizes))

    def clear(self) -> Usage:
        """Delete all entries that no process is reading.

        Returns:
            The remaining usage.

        Raises:
            DataError: a file cannot be deleted.
        """
        if self.folder.is_dir():
            try:
                with self._lock("room", "another process is writing to it"):
                    self._remove_partial()
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
                else (f"{size} bytes, but the index records {shard.bytes}")
            )
            raise DataError(f"{shard.name}: {what}; delete it and pack again ({_RESUME_PACK})")
        return handle

    def _find(self, shard: ShardInfo | ShardRef) -> CheckedFile | None:
        """Open the entry of ``shard``; None if there is no usable one."""
        try:
            handle = self._open_checked(self._entry(shard), shard, cached=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            LOGGER.warning("%s in the cache %s cannot be read (%s), fetching it again", shard.name, self.folder, error)
            return None
        if handle is None:
            LOGGER.warning("%s in the cache %s is damaged, fetching it again", shard.name, self.folder)
            return None
        with contextlib.suppress(OSError):  # the entry belongs to another user
            os.utime(handle.fileno(), ns=(time.time_ns(), os.fstat(handle.fileno()).st_mtime_ns))
        return handle

    def _open_checked(self, path: Path, shard: ShardInfo | ShardRef, cached: bool) -> CheckedFile | None:
        """Open a file; None if it does not contain the shard."""
        remedy = (
            f"{RESUME_HINT}, and fetches it again"
            if cached
            else f"restore it, or delete it and pack again ({_RESUME_PACK}); {RESUME_HINT}"
        )
        with contextlib.ExitStack() as stack:
            handle = stack.enter_context(CheckedFile(path, shard, remedy, changes=not cached))
            if cached:
                _try_lock(handle, fcntl.LOCK_SH)  # fails while the entry is being evicted, but it remains readable
            stamp = handle.stamp
            if self._checked.get(path, ()) != stamp:
                if not handle.is_intact():
                    return None
                self._checked[path] = stamp
            stack.pop_all()
            return handle

    def _fetch_once(self, source: str, shard: ShardInfo | ShardRef) -> OpenShard:
        """Fetch the shard, unless another process has done so by the time this one gets the lock."""
        try:
            with self._lock(shard.sha256[:2], f"another process is fetching {shard.name}"):
                return self._find(shard) or self._store(shard, _fetch(source, shard))
        except OSError as error:
            self._warn_once(shard, error)
            return ShardInMemory(_fetch(source, shard), shard)

    def _store(self, shard: ShardInfo | ShardRef, content: bytes) -> OpenShard:
        """Store ``content`` as an entry and open it."""
        partial = self.folder / "partial" / uuid.uuid4().hex
        try:
            with self._lock("room", "another process is writing to it"):
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
        """Evict entries until ``needed`` more bytes fit within the limit; the caller holds the lock ``room``.

        Raises:
            OSError: they do not fit.
        """
        self._remove_partial()
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
            raise OSError(errno.ENOSPC, "the limit is reached, and all entries are being read")

    def _remove_partial(self) -> None:
        """Delete the files of killed writers; the process that holds the lock ``room`` is the only writer."""
        for path in (self.folder / "partial").glob("*"):
            if _PARTIAL_NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in (self.folder / "shards").glob("*"):
            if not _SHA256.fullmatch(path.name):  # not a file of this cache, so never deleted
                continue
            with contextlib.suppress(FileNotFoundError):  # evicted in the meantime
                yield path, path.stat()

    def _entry(self, shard: ShardInfo | ShardRef) -> Path:
        if not _SHA256.fullmatch(shard.sha256):  # the index may be untrusted, and this becomes a path
            raise DataError(f"{shard.name}: the index records {shard.sha256[:80]!r} instead of a sha256; pack again")
        return self.folder / "shards" / shard.sha256

    @contextlib.contextmanager
    def _lock(self, name: str, held_because: str) -> Iterator[None]:
        """Hold a lock between processes and threads; the kernel releases the locks of a process that dies."""
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
                "the shard cache cannot keep %s (%.3g MB): %s. Continuing without it, so what does not fit is fetched again "
                "whenever it is needed. Its folder is %s, its limit %.4g GB: free some space there, or set data.cache to a "
                "folder with enough space, or raise data.cache_gb",
                shard.name,
                shard.bytes / 1e6,
                error,
                self.folder,
                self.limit_bytes / GB,
            )
        self._warned = True


def _remove_unused(path: Path) -> bool:
    """Delete an entry unless a process is reading it."""
    try:
        with path.open("rb") as handle:
            if not _try_lock(handle, fcntl.LOCK_EX):
                return False
            path.unlink()
    except FileNotFoundError:
        pass  # another process has just deleted it
    return True


def _try_lock(handle: BinaryIO, operation: int) -> bool:
    """Lock an open file until its last descriptor is closed; return False if another process holds a lock."""
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a disk without locks: a deleted file remains readable while it is open
        LOGGER.debug("no lock on %s: %s", handle.name, error)
    return True


def _fetch(source: str, shard: ShardInfo | ShardRef) -> bytes:
    """Fetch a complete shard from a remote store.

    Raises:
        DataError: see `ShardCache.open`.
    """
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
        retry=tenacity.retry_if_exception_type(ContentMismatch),  # `storage` retries everything else
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
    """Read a shard and compare its size and hash with the index.

    Raises:
        ContentMismatch: they differ.
    """
    content = storage.read_bytes(source)
    if len(content) != shard.bytes:
        raise ContentMismatch(f"received {len(content)} bytes, but the index records {shard.bytes}")
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise ContentMismatch("content differs from what the index recorded")
    return content
