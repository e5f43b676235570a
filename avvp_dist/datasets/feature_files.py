"""Folders with one feature file ``<id>.npy`` per video, on a disk of this machine or in object storage."""

from __future__ import annotations

import io
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from avvp_dist import storage
from avvp_dist.errors import AvvpError, ConfigError, DataError
from avvp_dist.shards.feature_source import OddFile


class FeatureFolder(Protocol):
    """A folder of feature files. It is sent to the machines that pack, so it must be picklable."""

    def version(self, name: str) -> str:
        """A string that changes when a file does, determined without reading it; "missing" if there is no file."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            FileNotFoundError: there is no such file.
            ConfigError: this machine has no access to the folder.
        """
        ...


def find(folders: list[str]) -> FeatureFolder | None:
    """The first of ``folders`` (paths or URLs) that exists."""
    for folder in folders:
        here = storage.local_path(folder)
        if here is None:
            if storage.exists(folder):
                return _Remote(folder)
        elif here.is_dir():
            return _Local(here)
    return None


def load(folder: FeatureFolder, file: str, name: str) -> tuple[np.ndarray, int]:
    """Read the array in ``file`` without unpickling; return it with the number of bytes that follow it.

    Args:
        folder: of the file.
        file: name of the file.
        name: of the file in messages.

    Raises:
        DataError: the file is missing, or does not contain such an array.
        ConfigError: this machine has no access to the folder.
        StorageError: object storage refuses or does not answer, which does not concern the file.
    """
    try:
        with folder.open(file) as handle:
            values = np.lib.format.read_array(handle, allow_pickle=False)
            end = handle.tell()
            return values, handle.seek(0, io.SEEK_END) - end
    except FileNotFoundError:
        raise DataError(f"{name}: missing") from None
    except AvvpError:
        raise
    except Exception as error:  # a damaged header can make numpy raise almost any error
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{name}: not a readable .npy array ({detail})") from None


def oddities(values: np.ndarray, trailing: int, name: str) -> tuple[OddFile, ...]:
    """List unusual properties of a file that contains ``values`` and ``trailing`` more bytes."""
    kinds = {
        values.dtype.name: values.dtype.itemsize != 4,
        "big-endian": values.dtype.str.startswith(">"),
        "fortran-order": values.flags.f_contiguous and not values.flags.c_contiguous,
        "all-zero": not values.any(),
        "trailing-bytes": trailing > 0,
    }
    return tuple(OddFile(kind, name) for kind, found in kinds.items() if found)


@dataclass(frozen=True)
class _Local:
    path: Path

    def version(self, name: str) -> str:
        try:
            status = (self.path / name).stat()
        except OSError:
            return "missing"
        return f"{status.st_size} {status.st_mtime_ns}"

    def open(self, name: str) -> BinaryIO:
        storage.check_file(self.path / name)
        try:
            return (self.path / name).open("rb")
        except FileNotFoundError:
            if self.path.is_dir():
                raise
            # else a machine without the features would report every video as bad
            raise ConfigError(
                f"{socket.gethostname()}: has no folder {self.path}; all machines that pack need access to the features"
            ) from None


@dataclass
class _Remote:
    url: str
    _versions: dict[str, str] | None = field(default=None, init=False)

    def version(self, name: str) -> str:
        if self._versions is None:  # a single listing, since querying each file would take longer than reading it
            self._versions = storage.versions(self.url)
        return self._versions.get(name, "missing")

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(storage.read_bytes(storage.join(self.url, name)))

    def __reduce__(self) -> tuple[type[_Remote], tuple[str]]:  # workers only read
        return (_Remote, (self.url,))
