"""How well removed labels agree with the truth, where the truth is known (planted or annotated data)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def removal_scores(weak: Mask, removed: Mask, true: Mask) -> dict[str, float]:
    """Precision and recall of removed labels of one modality, in percent.

    A weak label is noise in a modality when its event is in no second of it.

    Args:
        weak: [...,C] weak labels.
        removed: [...,C] labels taken away.
        true: [...,C] whether the event really is in this modality of the video.

    Returns:
        ``removed``, ``noise`` (counts), ``precision`` (nan when nothing was removed) and ``recall`` (nan without noise).
    """
    noise = weak & ~true
    hits, total, wanted = (float(mask.sum()) for mask in (removed & noise, removed, noise))
    return {
        "removed": total,
        "noise": wanted,
        "precision": 100 * hits / total if total else float("nan"),
        "recall": 100 * hits / wanted if wanted else float("nan"),
    }
