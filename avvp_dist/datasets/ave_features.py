"""AVE's official feature arrays as the source of a pack: read one video at a time, whatever their size.

The visual features keep their 7x7 regions (VGG-19, pool5, averaged over the frames of a second); audio features are VGGish.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.datasets import ave, hdf5
from avvp_dist.datasets.catalog import AVE
from avvp_dist.datasets.flaws import Annotations
from avvp_dist.errors import DataError
from avvp_dist.shards.feature_source import FeatureReport, OddFile
from avvp_dist.shards.spec import Stream
from avvp_dist.text.plural import plural
from avvp_dist.types import VideoRecord

_LARGEST = float(np.finfo(np.float16).max)


class AveFeatures:
    """The features of AVE's videos, and of its background videos if the annotations contain them.

    Args:
        folder: path of the folder with the HDF5 files.
        annotations: of the videos, whose rows in the arrays they contain.

    Raises:
        ConfigError: the folder is not on this machine.
        DataError: lists every file that is missing, unreadable, or of another shape or type.
    """

    def __init__(self, folder: str | os.PathLike[str], annotations: Annotations) -> None:
        path = hdf5.local_folder(folder).absolute()
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; it must contain AVE's feature files")
        self._folder = path
        self._rows = annotations.rows
        self._annotated, background = annotations.array_rows
        self._files = {False: ave.FEATURE_FILES, **({True: ave.BACKGROUND_FEATURE_FILES} if background else {})}
        counts = {False: self._annotated, True: background}
        problems: list[str] = []
        for noisy, files in self._files.items():
            for stream in AVE.streams:
                _check(path / files[stream.name], (counts[noisy], AVE.segments, *stream.shape), problems)
        if problems:
            raise DataError(problems, f"{path}: not the official feature files of these annotations")
        self._readers = {
            (noisy, stream.name): hdf5.RowReader(path / files[stream.name], ave.ARRAY)
            for noisy, files in self._files.items()
            for stream in AVE.streams
        }

    def fingerprint(self, records: Sequence[VideoRecord]) -> str:
        """Identify the rows of ``records``, and the files by name, size and modification time."""
        digest = hashlib.sha256()
        for noisy in {self._rows[record.id] >= self._annotated for record in records}:
            for name in self._files[noisy].values():
                status = (self._folder / name).stat()
                digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
        for record in records:
            digest.update(f"{record.id} {self._rows[record.id]}\n".encode())
        return digest.hexdigest()

    def examine(self, record: VideoRecord) -> FeatureReport:
        """Report everything that is wrong or unusual about the features of one video.

        Raises:
            ConfigError: this machine, which may not be the one that planned the pack, has no access to the folder.
        """
        problems: list[str] = []
        odd: list[OddFile] = []
        for stream in AVE.streams:
            try:
                values = self._read_stream(record, stream)
            except DataError as error:
                problems += error.problems
                continue
            if not values.any():
                odd.append(OddFile("all-zero", f"{self._place(record, stream)[0]}/{record.id}"))
        return FeatureReport(tuple(problems), tuple(odd))

    def read(self, record: VideoRecord) -> np.ndarray:
        """Read the streams of one video, each segment flattened, concatenated to float16 [T,width].

        Raises:
            DataError: values are not finite, do not fit float16, or cannot be read.
        """
        return np.concatenate([self._read_stream(record, stream) for stream in AVE.streams], axis=-1)

    def _place(self, record: VideoRecord, stream: Stream) -> tuple[str, int, bool]:
        """File name and row of one stream of a video, and whether it is a background video."""
        row = self._rows[record.id]
        noisy = row >= self._annotated
        return self._files[noisy][stream.name], row - self._annotated * noisy, noisy

    def _read_stream(self, record: VideoRecord, stream: Stream) -> NDArray[np.float16]:
        """Read one stream of one video as float16 [T,dim]."""
        file, row, noisy = self._place(record, stream)
        values = self._readers[noisy, stream.name].row(row)
        finite = np.isfinite(values)
        if not finite.all():
            first = np.argwhere(~finite)[0].tolist()
            bad = int(finite.size - finite.sum())
            values_are = plural(bad, "value is", "values are")
            raise DataError(f"{file}: row {row}: {bad} {values_are} not finite, the first at {first}")
        with np.errstate(over="ignore"):
            packed = values.astype(np.float32).reshape(AVE.segments, stream.dim).astype(np.float16)
        if not np.isfinite(packed).all():
            raise DataError(
                f"{file}: row {row}: values up to {np.abs(values).max():.4g} do not fit float16 (at most {_LARGEST:.0f})"
            )
        return packed


def _check(path: Path, shape: tuple[int, ...], problems: list[str]) -> None:
    try:
        with hdf5.opened(path, ave.ARRAY) as array:
            wrong = hdf5.misfit(array, path.name, shape, "f")
            problems += [wrong] if wrong else []
    except DataError as error:
        problems += error.problems
