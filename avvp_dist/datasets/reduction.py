"""Reduces the rows of a feature file to one row per segment, once, when they are packed.

Each reduction is linear along the rows with weights that sum to 1. Therefore it commutes with a network's first linear layer
including its bias: what the published networks do after that layer can be done before it, on a fraction of the numbers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from avvp_dist.shards.spec import Stream

_BANDS, _UPSAMPLED = 2, 1024
_CUBIC = -0.75  # the free parameter of cubic convolution, as in torch


def to_segments(values: NDArray, stream: Stream, segments: int) -> NDArray:
    """Reduce the rows [R,D] of one file to segments [T,D] by the stream's ``reduction``."""
    if stream.reduction == "clap-map":
        return clap_weights(segments, len(values)) @ values.astype(np.float64)
    return values.reshape(segments, -1, values.shape[1]).mean(axis=1)


@lru_cache
def clap_weights(segments: int, rows: int) -> NDArray[np.float64]:
    """Weights [T,R] that reduce the rows of a CLAP feature map to segments (VALOR, NeurIPS 2023; published code).

    The rows are two bands of R/2 columns along time. The network upsamples the columns to 1024 by bicubic interpolation,
    applies its first linear layer, averages both bands, and reduces the result to segments by adaptive average pooling.
    """
    columns = rows // _BANDS
    stretched = np.zeros((_UPSAMPLED, columns))
    places = (np.arange(_UPSAMPLED) + 0.5) * columns / _UPSAMPLED - 0.5
    left = np.floor(places)
    for offset in (-1, 0, 1, 2):
        column = np.clip(left + offset, 0, columns - 1).astype(int)  # replicates the outermost columns
        np.add.at(stretched, (np.arange(_UPSAMPLED), column), _cubic(np.abs(places - left - offset)))
    starts = [number * _UPSAMPLED // segments for number in range(segments)]
    stops = [-(-(number + 1) * _UPSAMPLED // segments) for number in range(segments)]  # rounded up, so they may overlap
    pooled = np.stack([stretched[start:stop].mean(axis=0) for start, stop in zip(starts, stops, strict=True)])
    return np.tile(pooled / _BANDS, _BANDS)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight of a column at a ``distance`` of 0 to 2 columns (Keys' cubic convolution)."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
    return np.where(distance <= 1, near, far)
