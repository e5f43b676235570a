"""The scores of every video, stored next to result.json for paired tests; the scores in result.json are their means."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.errors import DataError
from avvp_dist.metrics.names import KINDS, LEVELS

FILE = "per_video.npz"
_COLUMNS = ("audio", "visual", "event", "audio_visual")  # of each level, as in `metrics.parsing.Scores.per_video`

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PerVideo:
    """F-scores of the videos of each evaluated split.

    Attributes:
        ids: ids of the N videos of each split, in the order of the rows.
        values: (split, protocol, without Speech) -> F-scores in 0..1, float64 [N,8], as returned by
            `metrics.parsing.per_video`.
    """

    ids: Mapping[str, tuple[str, ...]]
    values: Mapping[tuple[str, str, bool], Floats]

    def scores(self, split: str, protocol: str, level: str, metric: str, without_speech: bool = False) -> Floats | None:
        """Return scores in percent, whose mean is the official score, [N]; None if there are none."""
        values = self.values.get((split, protocol, without_speech))
        if values is None:
            return None
        start = len(_COLUMNS) * LEVELS.index(level)
        columns = dict(zip(_COLUMNS, 100 * values.T[start : start + len(_COLUMNS)], strict=True))
        return np.mean([columns[kind] for kind in KINDS], axis=0) if metric == "type" else columns[metric]

    def to_bytes(self) -> bytes:
        """Serialize as an .npz that is readable without pickle; the same content gives the same bytes."""
        arrays = {f"{split}/ids": np.array(ids) for split, ids in self.ids.items()}
        for (split, protocol, without_speech), scores in self.values.items():
            arrays[_name(split, protocol, without_speech)] = scores
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def load(cls, url: str) -> PerVideo:
        """Read the result of `to_bytes`.

        Raises:
            FileNotFoundError: the file does not exist.
            DataError: it is not such a file.
        """
        return cls.from_bytes(storage.read_bytes(url), url)

    @classmethod
    def from_bytes(cls, content: bytes, url: str) -> PerVideo:
        """Like `load`; ``url`` names the file in messages."""
        ids: dict[str, tuple[str, ...]] = {}
        values: dict[tuple[str, str, bool], Floats] = {}
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                for name in arrays.files:
                    split, _, rest = name.partition("/")
                    if rest == "ids":
                        ids[split] = tuple(map(str, arrays[name]))
                    else:
                        protocol, _, without = rest.partition("/")
                        values[split, protocol, bool(without)] = np.asarray(arrays[name], dtype=np.float64)
        except Exception as error:  # a damaged zip file can raise almost any exception
            raise DataError(f"{url}: not a file of scores per video: {' '.join(str(error).split())[:200]}") from None
        width = len(LEVELS) * len(_COLUMNS)
        wrong = [_name(*key) for key, scores in values.items() if scores.shape != (len(ids.get(key[0], ())), width)]
        if wrong or not values:
            raise DataError(f"{url}: not a file of scores per video: {', '.join(wrong) or 'empty'}")
        return cls(ids, values)


def _name(split: str, protocol: str, without_speech: bool) -> str:
    return f"{split}/{protocol}/without_speech" if without_speech else f"{split}/{protocol}"
