"""The official scores of audio-visual video parsing on LLP, and the protocols that turn probabilities into predictions.

Shape letters: N videos, T segments, C classes. F-scores follow the evaluation code published with HAN, which later papers
use too. Each is a mean over videos, so that all videos have the same weight, however many events they contain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avvp_dist.metrics.names import KINDS, LEVELS, PROTOCOLS, Protocol

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Scores:
    """The ten official scores, and the scores per video whose means they are.

    Attributes:
        segment, event: F-scores in percent of ``audio``, ``visual``, ``audio_visual``, ``type`` (mean of these three) and
            ``event`` (events of both modalities counted together), at segment and at event level.
        per_video: float64 [N,8], F-scores in 0..1: audio, visual, event, audio_visual at segment level, then at event level.
    """

    segment: dict[str, float]
    event: dict[str, float]
    per_video: NDArray[np.float64]


def score(pred_audio: Bools, pred_visual: Bools, true_audio: Bools, true_visual: Bools) -> Scores:
    """Compute the official scores; they equal those of the published code.

    F1 is computed per video for every class with anything predicted or true and averaged over these classes; it is 1 for a
    video without any. The score is the mean over videos. An audio-visual event is an event in both modalities at the same
    time. An event is a run of consecutive seconds; a predicted event is correct if its intersection with a true event is at
    least half of their union.

    Args:
        pred_audio: predicted audio events, bool [N,T,C].
        pred_visual: predicted visual events, bool [N,T,C].
        true_audio: annotated audio events, bool [N,T,C].
        true_visual: annotated visual events, bool [N,T,C].

    Raises:
        ValueError: the arrays are not bool, have different shapes, or are empty.
    """
    return _scores(_count(pred_audio, pred_visual, true_audio, true_visual))


def per_class(
    pred_audio: Bools, pred_visual: Bools, true_audio: Bools, true_visual: Bools
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Compute the F-score of each class, from hits and misses pooled over all videos.

    There is no published definition per class. Here, a video with more events has a larger weight, so that the mean over
    classes is not the official score.

    Args:
        pred_audio: predicted audio events, bool [N,T,C].
        pred_visual: predicted visual events, bool [N,T,C].
        true_audio: annotated audio events, bool [N,T,C].
        true_visual: annotated visual events, bool [N,T,C].

    Returns:
        Level (``segment``, ``event``) -> kind (``audio``, ``visual``, ``audio_visual``) -> percent [C]; NaN for a class that
        is never true or predicted.

    Raises:
        ValueError: see `score`.
    """
    return _per_class(_count(pred_audio, pred_visual, true_audio, true_visual))


def apply_protocol(
    video: Floats,
    audio: Floats,
    visual: Floats,
    segments: Floats,
    protocol: Protocol,
    segment_threshold: float = 0.5,
    video_threshold: float = 0.5,
) -> tuple[Bools, Bools]:
    """Return predicted events: seconds whose probability reaches the threshold, in videos that pass the protocol's filter.

    Args:
        video: [N,C], probability of an event in the video, in either modality.
        audio: [N,C], probability of an event in the audio of the video.
        visual: [N,C], the same of the frames.
        segments: [N,T,2,C], probability of an event in that second and modality; audio, then visual.
        protocol: ``joint``: the video's joint probability must reach ``video_threshold`` (HAN); ``modality``: that of the
            modality (MA, JoMoLD); ``none``: no filter.
        segment_threshold: smallest probability of a second that counts as a prediction.
        video_threshold: smallest probability that passes the filter.

    Returns:
        pred_audio, pred_visual: bool [N,T,C].

    Raises:
        ValueError: an unknown protocol, or shapes that do not fit together.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; valid: {', '.join(PROTOCOLS)}")
    if segments.ndim != 4 or segments.shape[2] != 2:
        raise ValueError(f"segments: expected [N,T,2,C], got {list(segments.shape)}")
    expected = (segments.shape[0], segments.shape[3])
    for name, pooled in (("video", video), ("audio", audio), ("visual", visual)):
        if pooled.shape != expected:
            raise ValueError(f"{name}: expected [N,C] = {list(expected)} as in segments, got {list(pooled.shape)}")
    active = segments >= segment_threshold
    if protocol == "none":
        return active[:, :, 0], active[:, :, 1]
    heads = (video, video) if protocol == "joint" else (audio, visual)
    passed = [(head >= video_threshold)[:, None] for head in heads]
    return active[:, :, 0] & passed[0], active[:, :, 1] & passed[1]


def _count(pred_audio: Bools, pred_visual: Bools, true_audio: Bools, true_visual: Bools) -> NDArray[np.int64]:
    """Return hits and totals, int64 [2 levels, 3 kinds, 2, N, C]; a total counts predicted plus true seconds (or events).

    With h hits of p predicted and t true ones, F1 = 2h / (p + t), and TP + FP + FN > 0 is equivalent to p + t > 0.
    """
    named = {"pred_audio": pred_audio, "pred_visual": pred_visual, "true_audio": true_audio, "true_visual": true_visual}
    for name, array in named.items():
        if array.ndim != 3 or array.shape != pred_audio.shape or array.dtype != np.bool_:
            raise ValueError(
                f"{name}: expected bool [N,T,C] of the same shape as the others, got {array.dtype} {list(array.shape)}"
                f" (pred_audio: {list(pred_audio.shape)})"
            )
    if 0 in pred_audio.shape:
        raise ValueError(f"nothing to score: [N,T,C] is {list(pred_audio.shape)}")
    pairs = [(pred_audio, true_audio), (pred_visual, true_visual), (pred_audio & pred_visual, true_audio & true_visual)]
    return np.array([[_count_segments(*pair) for pair in pairs], [_count_events(*pair) for pair in pairs]])


def _count_segments(pred: Bools, true: Bools) -> NDArray[np.int64]:
    return np.stack([(pred & true).sum(axis=1), pred.sum(axis=1) + true.sum(axis=1)])


def _count_events(pred: Bools, true: Bools) -> NDArray[np.int64]:
    """Return hits and the number of predicted plus true events of each video and class, [2,N,C].

    Predicted events are separated by gaps, and so are true ones. Therefore a run of seconds in both ``pred`` and ``true`` is
    the complete intersection of one predicted and one true event, and no other pairs intersect. Two separate events cannot
    both overlap a third one by half of the union, so that matches are one to one, as in the published search.
    """
    videos, segments, classes = pred.shape
    (p_start, p_length), (t_start, t_length) = _runs(pred), _runs(true)
    start, length = _runs(pred & true)
    p_of = np.searchsorted(p_start, start, side="right") - 1
    t_of = np.searchsorted(t_start, start, side="right") - 1
    union = p_length[p_of] + t_length[t_of] - length
    hits, events = start[2 * length >= union], np.concatenate([p_start, t_start])
    rows = [np.bincount(starts // (segments + 1), minlength=videos * classes) for starts in (hits, events)]
    return np.stack(rows).reshape(2, videos, classes)


def _runs(active: Bools) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return start and length of every run along T, in ascending order of start.

    Starts are positions in the concatenation of all (video, class) rows with T + 1 elements each; the additional False
    element separates the runs of adjacent rows.
    """
    videos, segments, classes = active.shape
    line = np.zeros((videos, classes, segments + 1), dtype=np.int8)
    line[:, :, :-1] = active.transpose(0, 2, 1)
    change = np.diff(line.reshape(-1), prepend=np.int8(0))
    start = np.flatnonzero(change == 1)
    return start, np.flatnonzero(change == -1) - start


def _scores(counts: NDArray[np.int64]) -> Scores:
    audio, visual, audio_visual = np.moveaxis(counts, 1, 0)  # each [2 levels, 2, N, C]
    hits, totals = np.moveaxis(np.stack([audio, visual, audio + visual, audio_visual], axis=1), 2, 0)  # [2,4,N,C]
    occurring = (totals > 0).sum(axis=-1)
    total = _f1(hits, totals, empty=0.0).sum(axis=-1)
    per_video = np.where(occurring > 0, total / np.maximum(occurring, 1), 1.0)  # [2,4,N]
    segment, event = (_official(*means) for means in 100 * per_video.mean(axis=-1))
    return Scores(segment, event, per_video.reshape(-1, per_video.shape[-1]).T)


def _official(audio: float, visual: float, event: float, audio_visual: float) -> dict[str, float]:
    type_ = (audio + visual + audio_visual) / 3
    named = {"audio": audio, "visual": visual, "audio_visual": audio_visual, "type": type_, "event": event}
    return {name: float(value) for name, value in named.items()}


def _per_class(counts: NDArray[np.int64]) -> dict[str, dict[str, NDArray[np.float64]]]:
    hits, totals = np.moveaxis(counts.sum(axis=-2), 2, 0)  # each [2 levels, 3 kinds, C]
    percent = 100 * _f1(hits, totals, empty=np.nan)
    return {level: dict(zip(KINDS, of_level, strict=True)) for level, of_level in zip(LEVELS, percent, strict=True)}


def _f1(hits: NDArray[np.int64], totals: NDArray[np.int64], empty: float) -> NDArray[np.float64]:
    return np.divide(2 * hits, totals, out=np.full(hits.shape, empty), where=totals > 0)
