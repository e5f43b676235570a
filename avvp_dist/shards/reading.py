"""Reads single videos from shards by the byte ranges of the index, and validates every one of them.

Imports neither torch nor webdataset (which imports torch), so that reader processes start within tenths of a second and take
30 MB each instead of 250 MB. The shards are WebDataset's, and their arrays are the same either way; if a shard differs from
the index, `members.diagnose` reads it through WebDataset's own iteration and explains the difference.
"""

from __future__ import annotations

import functools
import io
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import DataError
from avvp_dist.shards.cache import ShardCache
from avvp_dist.shards.checked_file import OpenShard, read_consistently
from avvp_dist.shards.reference import FEATURES, ShardRef
from avvp_dist.text.plural import plural

if TYPE_CHECKING:
    from avvp_dist.shards.index import ShardInfo

_MAGIC = b"\x93NUMPY\x01\x00"
_TAR_BLOCK = 512
_LEAD = 768  # bytes read before an array, to check its tar header and .npy header (128 bytes)
_NOT_FINITE = 0x7C00  # exponent bits of a float16 that is infinite or NaN
REMEDY = "data.on_bad=skip leaves out bad videos, which are searched for when a run starts"


_PARSING = threading.Lock()  # numpy parses headers with ast, which is not thread-safe in Python 3.11


class ShardFile:
    """An open shard with the recorded hash; not thread-safe.

    Args:
        file: the tar.
        shape: T and width of a video's features.
    """

    def __init__(self, file: OpenShard, shape: tuple[int, int]) -> None:
        self._file = file
        self._name = file.shard.name
        self._shape = shape
        self._lead = bytearray(_LEAD)
        self._headers = {_header(shape)}  # headers of arrays that were found valid

    def read(self, video: str, offset: int, out: NDArray[np.float16]) -> None:
        """Read a video's features, whose data start at byte ``offset``, into ``out`` [T,width].

        Raises:
            DataError: the array is missing, of another shape or type, or has values that are not finite; or the shard was
                overwritten since it was opened.
        """
        member, start = f"{video}.{FEATURES}", min(_LEAD, offset)
        lead = memoryview(self._lead)[:start]
        parts = [lead, out.reshape(-1).view(np.uint8).data]
        read_consistently(lambda: self._file.read_into(parts, offset - start), [self._file])
        if not self._is_array(bytes(lead), member):
            raise DataError(f"{self._name}: {self._diagnose(member)}; pack into another folder")
        bits = out.view(np.uint16)
        if ((bits & _NOT_FINITE) == _NOT_FINITE).any():
            where = np.argwhere(~np.isfinite(out))
            raise DataError(
                f"{self._name}: member {member} contains {len(where)} "
                f"{plural(len(where), 'value that is', 'values that are')} not finite, the first at segment "
                f"{where[0][0]}, column {where[0][1]}; fix its feature files and pack into another folder"
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _is_array(self, lead: bytes, member: str) -> bool:
        """Whether ``lead`` ends with a tar header of ``member`` and the header of an array of the right shape and type."""
        magic = lead.rfind(_MAGIC)
        if magic < _TAR_BLOCK or lead[magic - _TAR_BLOCK :].split(b"\0", 1)[0] != member.encode():
            return False
        header = lead[magic + len(_MAGIC) :]
        if header in self._headers:
            return True
        try:
            with _PARSING:
                kind = np.lib.format.read_array_header_1_0(io.BytesIO(header))
        except ValueError:
            return False
        if kind != (self._shape, False, np.dtype("<f2")):
            return False
        self._headers.add(header)
        return True

    def _diagnose(self, member: str) -> str:
        from avvp_dist.shards import members  # imports torch, which readers need only in this case

        self._file.seek(0)
        return members.diagnose(self._file, member, self._shape)


@functools.cache
def _header(shape: tuple[int, int]) -> bytes:
    """The .npy header of such an array, after the magic bytes."""
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return written.getvalue()[len(_MAGIC) :]


class ShardStore(NamedTuple):
    """Location of a data set's shards, and the cache of this node through which they are read.

    Attributes:
        url: folder or URL of the data set.
        cache: of the node.
    """

    url: str
    cache: ShardCache

    def open(self, shard: ShardRef | ShardInfo, shape: tuple[int, int]) -> ShardFile:
        """Open one shard after verifying its hash.

        Args:
            shard: name, size and hash.
            shape: T and width of its videos.

        Raises:
            DataError: it is missing, or its content differs from the index.
        """
        return ShardFile(self.cache.open(self.url, shard), shape)
