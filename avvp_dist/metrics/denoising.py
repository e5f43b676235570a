"""Agreement of removed labels with the ground truth, if it is known (synthetic or annotated data).

The same rule applies to every refiner: a weak label is removed from a video if the refined label there is 0, from a window
or segment if it is below 0.5. It was noise if no second of that video, window or segment contains the event in that track.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

WHOLE, WINDOWS, SEGMENTS = "removed", "removed_windows", "removed_segments"
"""Levels at which labels are removed: whole videos, windows, segments."""


class TrackLabels(NamedTuple):
    """Labels of one track at one level, elementwise: [N,C] of videos, [N,S,C] of windows, [N,T,C] of segments.

    Attributes:
        weak: the video's weak label, repeated for each of its windows or segments.
        removed: removed labels.
        true: whether the event occurs in this track of the element; None if unknown.
    """

    weak: Mask
    removed: Mask
    true: Mask | None


Levels = Mapping[str, Mapping[str, TrackLabels]]
"""Level -> track -> labels."""


def removal_scores(weak: Mask, removed: Mask, true: Mask) -> dict[str, float]:
    """Return precision and recall of the removed labels of one track, in percent.

    Args:
        weak: [...,C] weak labels.
        removed: [...,C] removed labels.
        true: [...,C] whether the event occurs in this track of the video (or window, or segment).

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


def removal_row(weak: Mask, removed: Mapping[str, Mask], truth: Mapping[str, Mask] | None) -> dict[str, float]:
    """Return the metrics of the labels removed in one epoch.

    Args:
        weak: [N,C] weak labels.
        removed: [N,C] removed labels by track.
        truth: [N,T,C] ground truth by track, or None if unknown.

    Returns:
        ``removed/<track>`` and, with ground truth, ``removed/<track>_precision`` and ``_recall``; undefined values are
        omitted.
    """
    row = {}
    for track, of_track in removed.items():
        row[f"removed/{track}"] = float(of_track.sum())
        if truth is not None:
            scores = removal_scores(weak, of_track, np.asarray(truth[track].any(axis=1)))
            row |= {f"removed/{track}_{key}": scores[key] for key in ("precision", "recall") if not np.isnan(scores[key])}
    return row


def compare_labels(
    weak: Mask,
    refined: Mapping[str, NDArray],
    truth: Mapping[str, Mask] | None,
    windows: Sequence[tuple[int, int]] | None = None,
) -> dict[str, dict[str, TrackLabels]]:
    """Compare refined labels with the weak labels, at every level for which they are defined.

    An event is in a window if any second of the window contains it. A label is removed from a whole video if it is removed
    from all of its segments or windows, so that refiners of any kind can be compared at that level.

    Args:
        weak: [N,C] weak labels.
        refined: refined labels by track, 0 for a removed label: [N,C] of videos, [N,T,C] of segments or [N,S,C] of windows.
            Soft labels of segments and windows count as removed below 0.5. Labels that they add to the weak labels are
            ignored.
        truth: [N,T,C] ground truth by track, or None if unknown.
        windows: segments [start, stop) of each of the S windows, if labels are of windows.

    Returns:
        level (`WHOLE`, and `WINDOWS` or `SEGMENTS` for finer labels) -> track -> its labels.
    """
    levels: dict[str, dict[str, TrackLabels]] = {WHOLE: {}}
    for track, labels in refined.items():
        of_track = None if truth is None else truth[track]
        kept = np.asarray(labels) >= 0.5 if np.ndim(labels) == 3 else np.asarray(labels) > 0
        in_video = None if of_track is None else np.asarray(of_track.any(axis=1))
        kept_in_video = kept.any(axis=1) if kept.ndim == 3 else kept
        levels[WHOLE][track] = TrackLabels(weak, weak & ~kept_in_video, in_video)
        if kept.ndim == 3:
            repeated = np.broadcast_to(weak[:, None], kept.shape)
            in_element = of_track if of_track is None or windows is None else _in_windows(of_track, windows)
            level = levels.setdefault(SEGMENTS if windows is None else WINDOWS, {})
            level[track] = TrackLabels(repeated, repeated & ~kept, in_element)
    return levels


def refinement_row(levels: Levels) -> dict[str, float]:
    """Return the metrics of a refiner's removed labels, as stored in result.json.

    Args:
        levels: result of `compare_labels` for the refiner's labels.

    Returns:
        ``<level>/<track>`` (labels removed) and ``<level>/<track>_labels``; with ground truth also ``_noise``,
        ``_precision``, ``_recall`` and ``_baseline``, as in `removal_scores`. Undefined values are omitted. Levels are
        ``removed`` (whole videos), ``removed_windows`` and ``removed_segments``.
    """
    row: dict[str, float] = {}
    for level, tracks in levels.items():
        for track, (labels, removed, true) in tracks.items():
            name = f"{level}/{track}"
            row |= {name: float(removed.sum()), f"{name}_labels": float(labels.sum())}
            if true is not None:
                scores = removal_scores(labels, removed, true)
                keys = ("noise", "precision", "recall", "baseline")
                row |= {f"{name}_{key}": scores[key] for key in keys if not np.isnan(scores[key])}
    return row


def _in_windows(truth: Mask, windows: Sequence[tuple[int, int]]) -> Mask:
    """Return whether any second of each window contains the event, [N,S,C]."""
    return np.stack([truth[:, start:stop].any(axis=1) for start, stop in windows], axis=1)
