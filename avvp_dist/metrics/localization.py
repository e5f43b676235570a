"""Scores of audio-visual event localization: one class or background per segment.

All figures are ratios of sums of counts over segments, so that they can be recomputed for any multiset of videos (bootstrap,
permutation tests) from the counts of each video. Their definitions reproduce the figures printed in the paper on temporal
label refinement (AVEL), which reports them in percent:

    accuracy              segments with the correct one of the C + 1 classes
    weighted_f1           F1 of each of the C + 1 classes, weighted by the number of its segments in the truth
    background_*          recall, precision and F1 of "background", as a binary problem
    event_recall          event segments with the correct class, of all event segments of the truth
    event_precision       the same segments, of all segments predicted as any event
    event_f1              their harmonic mean

Shapes: N videos, T segments, C event classes, K = C + 1 classes with the background, which is the last unless stated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FIGURES = (
    "accuracy",
    "weighted_f1",
    "background_recall",
    "background_precision",
    "background_f1",
    "event_recall",
    "event_precision",
    "event_f1",
)

Floats = NDArray[np.float64]
Labels = NDArray[np.integer]


def score(predicted: Labels, truth: Labels, background: int) -> dict[str, float]:
    """Score predicted segments.

    Args:
        predicted, truth: class of each segment, integers [N,T].
        background: number of the background class.

    Returns:
        every figure of `FIGURES`, in percent; 0 where its denominator is 0.

    Raises:
        ValueError: the arrays differ in shape, or contain negative numbers or no integers.
    """
    largest = max(int(np.max(labels, initial=background)) for labels in (predicted, truth))
    sums = counts(predicted, truth, largest).sum(axis=0)
    return {name: float(value) for name, value in figures(sums, background).items()}


def counts(predicted: Labels, truth: Labels, classes: int) -> NDArray[np.int64]:
    """Count the segments of each video by class; sums over videos are what `figures` needs.

    Args:
        predicted, truth: class of each segment, integers 0 to C, [N,T].
        classes: number of event classes C.

    Returns:
        [N,3K]: correct segments of each of the K = C + 1 classes, then predicted ones, then those of the truth.

    Raises:
        ValueError: the arrays differ in shape, contain numbers outside 0 to C, or no integers.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"predicted {predicted.shape} and truth {truth.shape}: expected two arrays [N,T] of one shape")
    for name, labels in (("predicted", predicted), ("truth", truth)):
        if labels.dtype.kind not in "iu":
            raise ValueError(f"{name}: expected integers, got {labels.dtype}")
        if labels.size and not 0 <= labels.min() <= labels.max() <= classes:
            raise ValueError(f"{name}: classes {labels.min()} to {labels.max()}, expected 0 to {classes}")
    everywhere = np.ones(truth.shape, bool)
    return np.concatenate(
        [
            _by_class(truth, predicted == truth, classes + 1),
            _by_class(predicted, everywhere, classes + 1),
            _by_class(truth, everywhere, classes + 1),
        ],
        axis=1,
    )


def figures(sums: ArrayLike, background: int | None = None) -> dict[str, Floats]:
    """Compute every figure of `FIGURES` from sums of `counts`.

    Args:
        sums: [...,3K]; the leading axes are arbitrary, such as resamples. Weighted counts are allowed.
        background: number of the background class; None for the last one.

    Returns:
        arrays [...] in percent; 0 where the denominator is 0.
    """
    correct, predicted, true = _split(sums)
    background = correct.shape[-1] - 1 if background is None else background
    of_class = _f1(correct, predicted, true)
    total = true.sum(axis=-1)
    numbers = {
        "accuracy": _ratio(correct.sum(axis=-1), total),
        "weighted_f1": _ratio((of_class * true).sum(axis=-1), total),
    }
    only = [part[..., background] for part in (correct, predicted, true)]
    events = [part.sum(axis=-1) - alone for part, alone in zip((correct, predicted, true), only, strict=True)]
    for name, (hits, found, wanted) in (("background", only), ("event", events)):
        numbers[f"{name}_recall"] = _ratio(hits, wanted)
        numbers[f"{name}_precision"] = _ratio(hits, found)
        numbers[f"{name}_f1"] = _f1(hits, found, wanted)
    return {name: 100 * numbers[name] for name in FIGURES}


def per_class(sums: ArrayLike) -> dict[str, Floats]:
    """Compute precision, recall and F1 of each class, from sums of `counts`.

    Args:
        sums: [...,3K].

    Returns:
        ``precision``, ``recall`` and ``f1``, [...,K] in percent. Precision is NaN for a class that is never predicted,
        recall for one that the truth does not contain, F1 for one that neither contains.
    """
    correct, predicted, true = _split(sums)
    return {
        "precision": 100 * _ratio(correct, predicted, np.nan),
        "recall": 100 * _ratio(correct, true, np.nan),
        "f1": 100 * _f1(correct, predicted, true, np.nan),
    }


def repeat(classes: Labels, segments: int) -> Labels:
    """Predict one class per video, [N], in all of its segments: [N,T]; "AVE-repeat" for a network's class of the video."""
    return np.repeat(np.asarray(classes)[:, None], segments, axis=1)


def gt_repeat(truth: Labels, background: int) -> Labels:
    """Predict the event of each video in all of its segments, as "GT-repeat" does.

    Args:
        truth: class of each segment [N,T].
        background: number of the background class.

    Returns:
        [N,T]. A video with several events has the one with most segments, the lowest number among equals; a video without
        event is background.
    """
    truth = np.asarray(truth)
    if not truth.size:
        return truth.copy()
    events = _by_class(truth, truth != background, max(int(truth.max()), background) + 1)
    classes = np.where(events.any(axis=1), events.argmax(axis=1), background)
    return repeat(classes, truth.shape[1])


def majority(truth_of_train: Labels, shape: tuple[int, int]) -> Labels:
    """Predict the class with most segments in the training split everywhere.

    Args:
        truth_of_train: class of each segment of the training split, of any shape; at least one.
        shape: (N, T) of the result.

    Returns:
        ``shape``. Among equally frequent classes it is the lowest number.
    """
    return np.full(shape, np.bincount(np.ravel(truth_of_train)).argmax())


def _by_class(labels: Labels, selected: NDArray[np.bool_], width: int) -> NDArray[np.int64]:
    """Count the selected segments of each video by class, [N,K]."""
    cells = labels.astype(np.int64) + width * np.arange(len(labels))[:, None]
    return np.bincount(cells[selected], minlength=len(labels) * width).reshape(len(labels), width)


def _split(sums: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return the correct, predicted and true segments of each class, [...,K] each."""
    correct, predicted, true = np.split(np.asarray(sums, dtype=np.float64), 3, axis=-1)
    return correct, predicted, true


def _f1(correct: Floats, predicted: Floats, true: Floats, undefined: float = 0.0) -> Floats:
    """Return the harmonic mean of precision and recall, which is the Dice coefficient of two sets."""
    return _ratio(2 * correct, predicted + true, undefined)


def _ratio(numerator: Floats, denominator: Floats, undefined: float = 0.0) -> Floats:
    result = np.full(np.shape(denominator), undefined)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result
