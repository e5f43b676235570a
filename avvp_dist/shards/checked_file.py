"""An open shard whose hash was verified, and which detects when it is modified while it is open.

Videos are read through a file descriptor, never through a memory map: if another process truncates a mapped file, its
reader dies of SIGBUS, whereas a short read can be detected. Both use the same memory, the system's page cache, of which a
node has one copy. A file that is deleted, or replaced by a rename, remains readable unchanged. One that is overwritten or
truncated in place differs in size or modification time after any read that could be affected. It is then hashed again: if
it still has the recorded content (its timestamps were merely updated), the data are read again, otherwise refused.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from avvp_dist.errors import DataError

if TYPE_CHECKING:
    from avvp_dist.shards.index import ShardInfo
    from avvp_dist.shards.reference import ShardRef

RESUME_HINT = "the same command then resumes from the last checkpoint"
_BLOCK = 1 << 20  # bytes hashed at a time
_TRIES = 5  # reads of a file that keeps changing
Stamp = tuple[int, ...]


class CheckedFile(io.FileIO):
    """The open file of one shard; `is_intact` verifies its content.

    Args:
        path: of the file.
        shard: name, size and hash.
        remedy: what to do if it has changed, for messages.
        changes: whether any change of the inode counts as a modification (local data sets). In a cache, every process that
            opens an entry sets its access time, which changes the inode but not the content.
    """

    def __init__(self, path: str | os.PathLike[str], shard: ShardInfo | ShardRef, remedy: str, changes: bool = True) -> None:
        super().__init__(os.fspath(path), "rb")
        self.shard = shard
        self._remedy = remedy
        self._changes = changes
        self.stamp: Stamp | None = self.current_stamp()

    def __del__(self) -> None:
        self.close()

    def current_stamp(self) -> Stamp:
        """Metadata that a write to the file changes."""
        found = os.fstat(self.fileno())
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns if self._changes else 0

    def is_intact(self) -> bool:
        """Whether size and hash are the recorded ones; reads the whole file."""
        if os.fstat(self.fileno()).st_size != self.shard.bytes:
            return False
        digest, block, offset = hashlib.sha256(), bytearray(_BLOCK), 0
        while count := os.preadv(self.fileno(), [block], offset):
            digest.update(memoryview(block)[:count])
            offset += count
        return digest.hexdigest() == self.shard.sha256

    def read_into(self, parts: list[memoryview], offset: int) -> None:
        """Read the bytes from ``offset`` into consecutive ``parts``; call it inside `read_consistently`."""
        if os.preadv(self.fileno(), parts, offset) != sum(map(len, parts)):
            self.stamp = None  # the file has been truncated

    def was_modified(self) -> bool:
        """Whether the file was written to since the last check, but is intact.

        Raises:
            DataError: it is not intact.
        """
        now = self.current_stamp()
        if now == self.stamp:
            return False
        if not self.is_intact():
            size = os.fstat(self.fileno()).st_size
            size_problem = f"{size} bytes, but the index records {self.shard.bytes}"
            what = "its content differs" if size == self.shard.bytes else size_problem
            raise DataError(f"{self.shard.name}: overwritten or truncated while it is being read ({what}); {self._remedy}")
        self.stamp = now
        return True


class ShardInMemory(io.BytesIO):
    """A shard in the memory of this process, with the interface of a `CheckedFile`; no other process can modify it."""

    def __init__(self, content: bytes, shard: ShardInfo | ShardRef) -> None:
        super().__init__(content)
        self.shard = shard
        self._content = memoryview(content)

    def read_into(self, parts: list[memoryview], offset: int) -> None:
        """See `CheckedFile.read_into`."""
        for part in parts:
            part[:] = self._content[offset : offset + len(part)]
            offset += len(part)

    def was_modified(self) -> bool:
        """See `CheckedFile.was_modified`."""
        return False


OpenShard = CheckedFile | ShardInMemory


def read_consistently(read: Callable[[], None], files: Collection[OpenShard]) -> None:
    """Call ``read``, and repeat it if a file was modified in the meantime, so that it reads what the index recorded.

    Args:
        read: calls `CheckedFile.read_into` on some of ``files``.
        files: all files that it reads.

    Raises:
        DataError: a file is not intact any more, or cannot be read.
    """
    for _ in range(_TRIES):
        try:
            read()
            modified = [file.shard.name for file in files if file.was_modified()]
        except OSError as error:
            raise DataError(f"{' or '.join(sorted(file.shard.name for file in files))}: cannot be read: {error}") from None
        if not modified:
            return
    raise DataError(f"{', '.join(modified)}: another process keeps writing to it; stop that process, {RESUME_HINT}")
