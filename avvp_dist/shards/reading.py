"""Reads single videos out of shards by the byte ranges of the index, and checks every one of them.

Imports neither torch nor webdataset (which imports torch), so that reader processes start in tenths of a second and take 30
MB each instead of 250. Shards are WebDataset's and their arrays are the same either way; `members.diagnose`, over
WebDataset's own iteration, tells what a shard holds when it is not what the index says.
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

if TYPE_CHECKING:
    from avvp_dist.shards.index import ShardInfo

_MAGIC = b"\x93NUMPY\x01\x00"
_TAR_BLOCK = 512
_LEAD = 768  # bytes looked at before an array: a tar header and the header of an .npy file, which takes 128
_NOT_FINITE = 0x7C00  # exponent bits of a float16 that is infinite or NaN
REMEDY = "data.on_bad=skip leaves bad videos out, which are looked for when a run starts"


_PARSING = threading.Lock()  # numpy evaluates headers with ast, of which Python 3.11 cannot do two at a time


class ShardFile:
    """An open shard with the hash that the index recorded; for one thread at a time.

    Args:
        file: the tar.
        shape: T and width of a video's features.
    """

    def __init__(self, file: OpenShard, shape: tuple[int, int]) -> None:
        self._file = file
        self._name = file.shard.name
        self._shape = shape
        self._lead = bytearray(_LEAD)
        self._headers = {_header(shape)}  # headers of arrays that were found right

    def read(self, video: str, offset: int, out: NDArray[np.float16]) -> None:
        """Reads a video's features, whose data begin at byte ``offset``, into ``out`` [T,width].

        Raises:
            DataError: it is not there, of another shape or type, or holds values that are not finite; or the shard was
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
                f"{self._name}: member {member} holds {len(where)} values that are not finite, the first at segment "
                f"{where[0][0]}, column {where[0][1]}; mend its feature files and pack into another folder"
            )

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _is_array(self, lead: bytes, member: str) -> bool:
        """Whether ``lead`` ends in a tar header of ``member`` and the header of an array of the right kind."""
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
        from avvp_dist.shards import members  # imports torch, which no reader needs while all is well

        self._file.seek(0)
        return members.diagnose(self._file, member, self._shape)


@functools.cache
def _header(shape: tuple[int, int]) -> bytes:
    """What numpy writes before such an array, after the magic bytes."""
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return written.getvalue()[len(_MAGIC) :]


class ShardStore(NamedTuple):
    """Where the shards of a data set are, and the cache through which they come to this node.

    Attributes:
        url: folder or URL of the data set.
        cache: of the node.
    """

    url: str
    cache: ShardCache

    def open(self, shard: ShardRef | ShardInfo, shape: tuple[int, int]) -> ShardFile:
        """One shard, after a look at its hash.

        Args:
            shard: which.
            shape: T and width of its videos.

        Raises:
            DataError: it is missing, or its content is not what the index recorded.
        """
        return ShardFile(self.cache.open(self.url, shard), shape)
