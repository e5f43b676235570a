"""An open shard that was checked against its hash, and that notices when it is changed under its reader.

Videos are read through a descriptor, never through a memory map: a map of a file that another process truncates ends its
reader by SIGBUS, while a read is short and can be told. The memory is the same, the system's page cache, of which a node has
one copy. A file that is deleted, or replaced by a rename, stays readable as it was. One that is overwritten or truncated in
place has another size or time of change after the read that could have met it: it is hashed again then, and what was read
meanwhile is read again (if the content is the recorded one, someone has only touched it) or refused.
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

RESUME_HINT = "the same command then goes on from the last checkpoint"
_BLOCK = 1 << 20  # bytes hashed at a time
_TRIES = 5  # reads of a file that changes all the time
Stamp = tuple[int, ...]


class CheckedFile(io.FileIO):
    """The open file of one shard; `is_intact` tells whether its content is the recorded one.

    Args:
        path: of the file.
        shard: name, size and hash.
        remedy: what to do where it is found changed.
        changes: whether any change of the inode counts (local data sets). In a cache the time of last use is set by every
            process that opens an entry, which changes the inode and not the content.
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
        """What differs after a write to the file."""
        found = os.fstat(self.fileno())
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns if self._changes else 0

    def is_intact(self) -> bool:
        """Whether size and hash are the recorded ones; reads all of it."""
        if os.fstat(self.fileno()).st_size != self.shard.bytes:
            return False
        digest, block, offset = hashlib.sha256(), bytearray(_BLOCK), 0
        while count := os.preadv(self.fileno(), [block], offset):
            digest.update(memoryview(block)[:count])
            offset += count
        return digest.hexdigest() == self.shard.sha256

    def read_into(self, parts: list[memoryview], offset: int) -> None:
        """Reads what begins at ``offset`` into ``parts``, one after the other; use it inside `read_consistently`."""
        if os.preadv(self.fileno(), parts, offset) != sum(map(len, parts)):
            self.stamp = None  # cut off, now or a moment ago

    def was_modified(self) -> bool:
        """Whether something was written to the file since the last look, but it is whole now.

        Raises:
            DataError: it is not whole.
        """
        now = self.current_stamp()
        if now == self.stamp:
            return False
        if not self.is_intact():
            size = os.fstat(self.fileno()).st_size
            what = "its content differs" if size == self.shard.bytes else f"{size} bytes, the index says {self.shard.bytes}"
            raise DataError(f"{self.shard.name}: overwritten or truncated while it is being read ({what}); {self._remedy}")
        self.stamp = now
        return True


class ShardInMemory(io.BytesIO):
    """The bytes of a shard in this process's own memory, as a `CheckedFile` that nobody else can change."""

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
    """Calls ``read``, again where a file was written to meanwhile, so that what it read is what the index recorded.

    Args:
        read: `CheckedFile.read_into` of some of ``files``.
        files: all that it reads.

    Raises:
        DataError: a file is not whole any more, or cannot be read.
    """
    for _ in range(_TRIES):
        try:
            read()
            disturbed = [file.shard.name for file in files if file.was_modified()]
        except OSError as error:
            raise DataError(f"{' or '.join(sorted(file.shard.name for file in files))}: cannot be read: {error}") from None
        if not disturbed:
            return
    raise DataError(f"{', '.join(disturbed)}: another process writes to it all the time; stop that, {RESUME_HINT}")
