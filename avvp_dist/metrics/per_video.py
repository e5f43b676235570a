"""The scores of every single video, kept beside result.json: what its figures are means of, for paired tests."""

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
_COLUMNS = ("audio", "visual", "event", "audio_visual")  # of one level; as in `metrics.parsing.Scores.per_video`

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PerVideo:
    """F-scores of the videos of each evaluated split.

    Attributes:
        ids: the N videos by split, in the order of the rows.
        values: (split, protocol, without Speech) -> F-scores in 0..1, float64 [N,8], as `metrics.parsing.per_video` returns
            them.
    """

    ids: Mapping[str, tuple[str, ...]]
    values: Mapping[tuple[str, str, bool], Floats]

    def scores(self, split: str, protocol: str, level: str, metric: str, without_speech: bool = False) -> Floats | None:
        """Scores in percent whose mean is the official score, [N]; None where the file has none."""
        found = self.values.get((split, protocol, without_speech))
        if found is None:
            return None
        start = len(_COLUMNS) * LEVELS.index(level)
        columns = dict(zip(_COLUMNS, 100 * found.T[start : start + len(_COLUMNS)], strict=True))
        return np.mean([columns[kind] for kind in KINDS], axis=0) if metric == "type" else columns[metric]

    def to_bytes(self) -> bytes:
        """One .npz, readable without pickle; the same content makes the same bytes."""
        arrays = {f"{split}/ids": np.array(ids) for split, ids in self.ids.items()}
        for (split, protocol, without_speech), scores in self.values.items():
            arrays[_name(split, protocol, without_speech)] = scores
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def load(cls, url: str) -> PerVideo:
        """Reads what `to_bytes` made.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is no such file.
        """
        return cls.from_bytes(storage.read_bytes(url), url)

    @classmethod
    def from_bytes(cls, content: bytes, url: str) -> PerVideo:
        """As `load`; ``url`` names the file in messages."""
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
        except Exception as error:  # of a damaged zip file, nearly anything
            raise DataError(f"{url}: no scores of videos: {' '.join(str(error).split())[:200]}") from None
        width = len(LEVELS) * len(_COLUMNS)
        wrong = [_name(*key) for key, scores in values.items() if scores.shape != (len(ids.get(key[0], ())), width)]
        if wrong or not values:
            raise DataError(f"{url}: no scores of videos: {', '.join(wrong) or 'nothing in it'}")
        return cls(ids, values)


def _name(split: str, protocol: str, without_speech: bool) -> str:
    return f"{split}/{protocol}/without_speech" if without_speech else f"{split}/{protocol}"
