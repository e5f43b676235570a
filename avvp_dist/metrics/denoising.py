"""Agreement of removed labels with the ground truth, if it is known (synthetic or annotated data).

The same rule applies to every refiner: a weak label is removed from a video, window or segment if the refined label there is
0, and it was noise if no second of that video, window or segment contains the event in that modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avvp_dist.types import MODALITIES

Mask = NDArray[np.bool_]

WHOLE, WINDOWS, SEGMENTS = "removed", "removed_windows", "removed_segments"
"""Levels at which labels are removed: whole videos, windows, segments."""


class ModalityLabels(NamedTuple):
    """Labels of one modality at one level, elementwise: [N,C] of videos, [N,S,C] of windows, [N,T,C] of segments.

    Attributes:
        weak: the video's weak label, repeated for each of its windows or segments.
        removed: removed labels.
        true: whether the event occurs in this modality of the element; None if unknown.
    """

    weak: Mask
    removed: Mask
    true: Mask | None


Levels = Mapping[str, Mapping[str, ModalityLabels]]
"""Level -> modality -> labels."""


def removal_scores(weak: Mask, removed: Mask, true: Mask) -> dict[str, float]:
    """Return precision and recall of the removed labels of one modality, in percent.

    Args:
        weak: [...,C] weak labels.
        removed: [...,C] removed labels.
        true: [...,C] whether the event occurs in this modality of the video (or window, or segment).

    Returns:
        ``labels``, ``removed``, ``noise`` (counts), ``precision`` (NaN if nothing was removed), ``recall`` (NaN without
        noise) and ``baseline``: the share of noise among the labels, which is the precision of removing labels at random
        (NaN without labels).
    """
    noise = weak & ~true
    hits, total, expected, labels = (float(mask.sum()) for mask in (removed & noise, removed, noise, weak))
    return {
        "labels": labels,
        "removed": total,
        "noise": expected,
        "precision": 100 * hits / total if total else float("nan"),
        "recall": 100 * hits / expected if expected else float("nan"),
        "baseline": 100 * expected / labels if labels else float("nan"),
    }


def removal_row(weak: Mask, removed: Mask, true_audio: Mask | None, true_visual: Mask | None) -> dict[str, float]:
    """Return the metrics of the labels removed in one epoch.

    Args:
        weak: [N,C] weak labels.
        removed: [N,2,C] removed labels, audio and visual.
        true_audio, true_visual: [N,T,C] ground truth, or None if unknown.

    Returns:
        ``removed/audio``, ``removed/visual`` and, with ground truth, ``removed/<modality>_precision`` and ``_recall``;
        undefined values are omitted.
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
) -> dict[str, dict[str, ModalityLabels]]:
    """Compare refined labels with the weak labels, at every level for which they are defined.

    An event is in a window if any second of the window contains it. A label is removed from a whole video if it is removed
    from all of its segments or windows, so that refiners of any kind can be compared at that level.

    Args:
        weak: [N,C] weak labels.
        audio, visual: refined labels, 0 for a removed label: [N,C] of videos, [N,T,C] of segments or [N,S,C] of windows.
            Labels that they add to the weak labels are ignored.
        true_audio, true_visual: [N,T,C] ground truth, or None if unknown.
        windows: segments [start, stop) of each of the S windows, if labels are of windows.

    Returns:
        level (`WHOLE`, and `WINDOWS` or `SEGMENTS` for finer labels) -> modality -> its labels.
    """
    levels: dict[str, dict[str, ModalityLabels]] = {WHOLE: {}}
    for modality, labels, truth in zip(MODALITIES, (audio, visual), (true_audio, true_visual), strict=True):
        kept = np.asarray(labels) > 0
        in_video = None if truth is None else np.asarray(truth.any(axis=1))
        kept_in_video = kept.any(axis=1) if kept.ndim == 3 else kept
        levels[WHOLE][modality] = ModalityLabels(weak, weak & ~kept_in_video, in_video)
        if kept.ndim == 3:
            repeated = np.broadcast_to(weak[:, None], kept.shape)
            in_element = truth if truth is None or windows is None else _in_windows(truth, windows)
            level = levels.setdefault(SEGMENTS if windows is None else WINDOWS, {})
            level[modality] = ModalityLabels(repeated, repeated & ~kept, in_element)
    return levels


def refinement_row(levels: Levels) -> dict[str, float]:
    """Return the metrics of a refiner's removed labels, as stored in result.json.

    Args:
        levels: result of `compare_labels` for the refiner's labels.

    Returns:
        ``<level>/<modality>`` (labels removed) and ``<level>/<modality>_labels``; with ground truth also ``_noise``,
        ``_precision``, ``_recall`` and ``_baseline``, as in `removal_scores`. Undefined values are omitted. Levels are
        ``removed`` (whole videos), ``removed_windows`` and ``removed_segments``.
    """
    row: dict[str, float] = {}
    for level, modalities in levels.items():
        for modality, (labels, removed, true) in modalities.items():
            name = f"{level}/{modality}"
            row |= {name: float(removed.sum()), f"{name}_labels": float(labels.sum())}
            if true is not None:
                scores = removal_scores(labels, removed, true)
                keys = ("noise", "precision", "recall", "baseline")
                row |= {f"{name}_{key}": scores[key] for key in keys if not np.isnan(scores[key])}
    return row


def _in_windows(truth: Mask, windows: Sequence[tuple[int, int]]) -> Mask:
    """Return whether any second of each window contains the event, [N,S,C]."""
    return np.stack([truth[:, start:stop].any(axis=1) for start, stop in windows], axis=1)
