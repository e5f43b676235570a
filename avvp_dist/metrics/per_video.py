"""Statistics of every video, stored next to result.json for paired tests; the metrics in result.json follow from them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.errors import DataError

FILE = "per_video.npz"

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VideoStatistics:
    """Statistics of the videos of each evaluated split; the run's task computes metrics from them.

    Attributes:
        ids: ids of the N videos of each split, in the order of the rows.
        values: (split, view) -> float64 [N,S], see `tasks.base.Scores.statistics`.
    """

    ids: Mapping[str, tuple[str, ...]]
    values: Mapping[tuple[str, str], Floats]

    def to_bytes(self) -> bytes:
        """Serialize as an .npz that is readable without pickle; the same content gives the same bytes."""
        arrays = {f"{split}/ids": np.array(ids) for split, ids in self.ids.items()}
        for (split, view), statistics in self.values.items():
            arrays[f"{split}/{view}"] = statistics
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def load(cls, url: str) -> VideoStatistics:
        """Read the result of `to_bytes`.

        Raises:
            FileNotFoundError: the file does not exist.
            DataError: it is not such a file.
        """
        return cls.from_bytes(storage.read_bytes(url), url)

    @classmethod
    def from_bytes(cls, content: bytes, url: str) -> VideoStatistics:
        """Like `load`; ``url`` names the file in messages."""
        ids: dict[str, tuple[str, ...]] = {}
        values: dict[tuple[str, str], Floats] = {}
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                for name in arrays.files:
                    split, _, view = name.partition("/")
                    if view == "ids":
                        ids[split] = tuple(map(str, arrays[name]))
                    else:
                        values[split, view] = np.asarray(arrays[name], dtype=np.float64)
        except Exception as error:  # a damaged zip file can raise almost any exception
            raise DataError(f"{url}: not a file of statistics per video: {' '.join(str(error).split())[:200]}") from None
        width = max((found.shape[-1] for found in values.values() if found.ndim), default=0)
        wrong = [
            f"{split}/{view}" for (split, view), found in values.items() if found.shape != (len(ids.get(split, ())), width)
        ]
        if wrong or not values:
            raise DataError(f"{url}: not a file of statistics per video: {', '.join(wrong) or 'empty'}")
        return cls(ids, values)
