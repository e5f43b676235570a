"""Arrays in HDF5 files, read by ranges of rows; the only module that opens such files for reading."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.errors import ConfigError, DataError

_BANDS = 2  # blocks of rows that a reader keeps
_BAND_BYTES = 64 * 2**20
_SHOWN = 120  # characters of an error of the HDF5 library
_KINDS = {"f": "a float of up to 64 bits", "iu": "integers"}  # in messages, by letters of dtypes
_RESTORE = "damaged or not completely downloaded; replace it"


def local_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder with HDF5 files.

    Raises:
        ConfigError: it is a remote URL, where rows cannot be read one range at a time.
    """
    path = storage.local_path(folder)
    if path is None:
        raise ConfigError(f"{os.fspath(folder)}: HDF5 files are read from a disk; copy them to a local or shared folder")
    return path


@contextmanager
def opened(path: Path, key: str) -> Iterator[h5py.Dataset]:
    """Open the array ``key`` of an HDF5 file.

    Raises:
        DataError: the file is missing, damaged or not HDF5, or has no such array of its own.
    """
    file = _open(path)
    try:
        yield _array(file, path.name, key)
    finally:
        file.close()


def _open(path: Path) -> h5py.File:
    storage.check_file(path)
    if not path.exists():
        raise DataError(f"{path.name}: missing from {path.parent}")
    try:
        return h5py.File(path, "r", locking=False)
    except Exception as error:  # a damaged file can make the library raise almost any error
        raise DataError(f"{path.name}: not a readable HDF5 file, {_RESTORE} ({_short(error)})") from None


def _array(file: h5py.File, name: str, key: str) -> h5py.Dataset:
    try:
        if key not in file:
            raise DataError(f"{name}: no array {key!r}; it contains {', '.join(sorted(file)) or 'none'}")
        # such links would read other files, which the file's author chooses
        found = file[key] if isinstance(file.get(key, getlink=True), h5py.HardLink) else None
        if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
            raise DataError(f"{name}: {key!r} is not an array that is stored in this file")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name}: {key!r} cannot be read, {_RESTORE} ({_short(error)})") from None
    return found


def misfit(array: h5py.Dataset, name: str, shape: tuple[int | None, ...], kinds: str) -> str | None:
    """Describe how an array differs from what is expected; None if it does not.

    Args:
        array: to compare.
        name: of its file.
        shape: expected; None for any length.
        kinds: letters of the dtypes allowed, as in `numpy.dtype.kind`.
    """
    expected = "[" + ", ".join("any" if length is None else str(length) for length in shape) + "]"
    fits = array.shape is not None and len(array.shape) == len(shape)
    if not fits or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        return f"{name}: shape {list(array.shape or ())}, expected {expected}"
    if array.dtype.kind not in kinds or array.dtype.itemsize > 8:
        return f"{name}: has dtype {array.dtype}, expected {_KINDS.get(kinds, 'numbers')}"
    return None


def read_all(path: Path, key: str, shape: tuple[int | None, ...], kinds: str, problems: list[str]) -> NDArray | None:
    """Read a small array as a whole; if it is unusable, add a problem and return None."""
    try:
        with opened(path, key) as array:
            wrong = misfit(array, path.name, shape, kinds)
            if wrong is None:
                return _read(array, path.name, slice(None))
            problems.append(wrong)
    except DataError as error:
        problems += error.problems
    return None


def _read(array: h5py.Dataset, name: str, rows: slice) -> NDArray:
    try:
        return array[rows]
    except Exception as error:
        where = "" if rows == slice(None) else f" rows {rows.start} to {rows.stop - 1}"
        raise DataError(f"{name}:{where} cannot be read, {_RESTORE} ({_short(error)})") from None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:_SHOWN] or type(error).__name__


class RowReader:
    """Reads single rows of an array, a block of rows at a time if that is how the file stores them.

    It can be sent to other processes, each of which opens the file when it first reads.

    Args:
        path: of the file.
        key: name of the array.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        self._file: h5py.File | None = None
        self._array: h5py.Dataset | None = None
        self._bands: OrderedDict[int, NDArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None, "_array": None, "_bands": OrderedDict()}

    def row(self, number: int) -> NDArray:
        """Read row ``number``.

        Raises:
            DataError: the file is missing or damaged.
            ConfigError: this machine has no access to the folder.
        """
        if self._array is None:
            if not self._path.parent.is_dir():  # else a machine without the features would report every video as bad
                raise ConfigError(
                    f"{os.uname().nodename}: has no folder {self._path.parent}; all machines that pack need access to the "
                    "features"
                )
            self._file = _open(self._path)
            self._array = _array(self._file, self._path.name, self._key)
        length = self._band_rows(self._array)
        band = number // length
        if band not in self._bands:
            while len(self._bands) >= _BANDS:
                self._bands.popitem(last=False)
            stop = min((band + 1) * length, self._array.shape[0])
            self._bands[band] = _read(self._array, self._path.name, slice(band * length, stop))
        self._bands.move_to_end(band)
        return self._bands[band][number - band * length]

    @staticmethod
    def _band_rows(array: h5py.Dataset) -> int:
        """Number of rows to read at a time: those of a compressed chunk, which can only be read as a whole."""
        if array.chunks is None:
            return 1
        row_bytes = max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize)
        return max(1, min(array.chunks[0], _BAND_BYTES // row_bytes))
