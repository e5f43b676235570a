"""How well removed labels agree with the truth, where the truth is known (planted or annotated data).

Every refiner is judged by one rule, whatever it labels: a weak label is removed from a video, a segment or a window when the
refiner leaves 0 there, and it was noise when the event is in no second of that video, segment or window in that modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avvp_dist.types import MODALITIES

Mask = NDArray[np.bool_]

WHOLE, WINDOWS, SEGMENTS = "removed", "removed_windows", "removed_segments"
"""Levels at which labels are removed: of whole videos, of windows, of segments."""


class Judged(NamedTuple):
    """Labels of one modality at one level, element for element: [N,C] of videos, [N,S,C] of windows, [N,T,C] of segments.

    Attributes:
        weak: the video's weak label, said of every element of it.
        removed: labels taken away.
        true: whether the event really is in this modality of the element; None where nobody knows.
    """

    weak: Mask
    removed: Mask
    true: Mask | None


Levels = Mapping[str, Mapping[str, Judged]]
"""Level -> modality -> labels."""


def removal_scores(weak: Mask, removed: Mask, true: Mask) -> dict[str, float]:
    """Precision and recall of removed labels of one modality, in percent.

    A weak label is noise in a modality when its event is in no second of it.

    Args:
        weak: [...,C] weak labels.
        removed: [...,C] labels taken away.
        true: [...,C] whether the event really is in this modality of the video (or of the segment, or window).

    Returns:
        ``labels``, ``removed``, ``noise`` (counts), ``precision`` (nan when nothing was removed), ``recall`` (nan without
        noise) and ``baseline``: the share of noise among the labels, which is the precision of removing any of them at
        random (nan without labels).
    """
    noise = weak & ~true
    hits, total, wanted, labels = (float(mask.sum()) for mask in (removed & noise, removed, noise, weak))
    return {
        "labels": labels,
        "removed": total,
        "noise": wanted,
        "precision": 100 * hits / total if total else float("nan"),
        "recall": 100 * hits / wanted if wanted else float("nan"),
        "baseline": 100 * wanted / labels if labels else float("nan"),
    }


def removal_row(weak: Mask, removed: Mask, true_audio: Mask | None, true_visual: Mask | None) -> dict[str, float]:
    """What one epoch removed, as a row of metrics.

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


def compare_labels(
    weak: Mask,
    audio: NDArray,
    visual: NDArray,
    true_audio: Mask | None,
    true_visual: Mask | None,
    windows: Sequence[tuple[int, int]] | None = None,
) -> dict[str, dict[str, Judged]]:
    """What refined labels took away, at every level they speak of.

    An event is in a window when any second of the window has it. A label is removed from a whole video when it is gone from
    all of its segments or windows, so that refiners of any kind can be compared at that level.

    Args:
        weak: [N,C] weak labels.
        audio, visual: refined labels, a label is gone where they are 0: [N,C] of videos, [N,T,C] of segments or [N,S,C] of
            windows. What they add to the weak labels is not looked at.
        true_audio, true_visual: [N,T,C] the truth, or None where nobody knows it.
        windows: segments [start, stop) of each of the S windows, where labels are of windows.

    Returns:
        level (`WHOLE`, and `WINDOWS` or `SEGMENTS` of labels that are finer) -> modality -> its labels.
    """
    levels: dict[str, dict[str, Judged]] = {WHOLE: {}}
    for modality, labels, truth in zip(MODALITIES, (audio, visual), (true_audio, true_visual), strict=True):
        kept = np.asarray(labels) > 0
        anywhere = None if truth is None else np.asarray(truth.any(axis=1))
        left = kept.any(axis=1) if kept.ndim == 3 else kept
        levels[WHOLE][modality] = Judged(weak, weak & ~left, anywhere)
        if kept.ndim == 3:
            said = np.broadcast_to(weak[:, None], kept.shape)
            inside = truth if truth is None or windows is None else _in_windows(truth, windows)
            level = levels.setdefault(SEGMENTS if windows is None else WINDOWS, {})
            level[modality] = Judged(said, said & ~kept, inside)
    return levels


def refinement_row(levels: Levels) -> dict[str, float]:
    """What a refiner removed and how rightly, as result.json holds it.

    Args:
        levels: what `compare_labels` returns for the refiner's labels.

    Returns:
        ``<level>/<modality>`` (labels removed) and ``<level>/<modality>_labels``; where truth is known ``_noise``,
        ``_precision``, ``_recall`` and ``_baseline`` too, as in `removal_scores`. Shares of nothing are left out. Levels are
        ``removed`` (whole videos), ``removed_windows`` and ``removed_segments``.
    """
    row: dict[str, float] = {}
    for level, modalities in levels.items():
        for modality, (labels, removed, true) in modalities.items():
            name = f"{level}/{modality}"
            row |= {name: float(removed.sum()), f"{name}_labels": float(labels.sum())}
            if true is not None:
                scores = removal_scores(labels, removed, true)
                told = ("noise", "precision", "recall", "baseline")
                row |= {f"{name}_{key}": scores[key] for key in told if not np.isnan(scores[key])}
    return row


def _in_windows(truth: Mask, windows: Sequence[tuple[int, int]]) -> Mask:
    """[N,S,C] whether any second of each window has the event."""
    return np.stack([truth[:, start:stop].any(axis=1) for start, stop in windows], axis=1)
