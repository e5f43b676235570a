"""How well removed labels agree with the truth, where the truth is known (planted or annotated data)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avvp_dist.types import MODALITIES

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


def removal_row(weak: Mask, removed: Mask, true_audio: Mask | None, true_visual: Mask | None) -> dict[str, float]:
    """What one epoch or one refiner removed, as a row of metrics.

    Args:
        weak: [N,C] weak labels.
        removed: [N,2,C] labels taken away, audio and visual.
        true_audio, true_visual: [N,T,C] the truth, or None where nobody knows it.

    Returns:
        ``removed/audio``, ``removed/visual`` and, where truth is known, ``removed/<modality>_precision`` and ``_recall``;
        shares of nothing are left out.
    """
    row = {}
    for number, (modality, truth) in enumerate(zip(MODALITIES, (true_audio, true_visual), strict=True)):
        row[f"removed/{modality}"] = float(removed[:, number].sum())
        if truth is not None:
            scores = removal_scores(weak, removed[:, number], np.asarray(truth.any(axis=1)))
            row |= {f"removed/{modality}_{key}": scores[key] for key in ("precision", "recall") if not np.isnan(scores[key])}
    return row
