"""Opens what a run reads: its data set and labels that replace the weak ones, checked against config and method."""

from __future__ import annotations

import numpy as np

from avvp_dist.errors import ConfigError, DataError
from avvp_dist.experiments.recipe import RunConfig
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.loading.split import check_plan
from avvp_dist.shards.index import Index, Labels, read_labels

EVALUATED = ("val", "test")
"""Splits that every run is scored on."""


def open_checked_data(config: RunConfig, world: int) -> tuple[Index, dict[str, Labels]]:
    """Open the run's data and check that ``world`` workers can divide its batches and shards.

    Raises:
        ConfigError, DataError: see `open_data` and `loading.split.check_plan`.
    """
    index, labels = open_data(config)
    check_plan(config.data, index, labels, config.train.batch_size, world)
    return index, labels


def open_data(config: RunConfig) -> tuple[Index, dict[str, Labels]]:
    """Open index and labels of the run's data, and check that they have what training and scoring need.

    Raises:
        ConfigError: data.url is not set.
        DataError: not a packed data set, another data set than data.dataset, or a missing split, ground truth or stream.
    """
    url = config.data.url
    if not url:
        raise ConfigError(
            "data: missing; give data=URL of a packed data set (`avvp data pack`, `avvp data synth OUT --layout shards`)"
        )
    index = Index.load(url)
    labels = read_labels(url, index)
    problems = [f"split {name}: missing" for name in ("train", *EVALUATED) if name not in labels]
    problems += [
        f"split {name}: no segment annotations, which scoring needs"
        for name in EVALUATED
        if name in labels and labels[name].truth is None
    ]
    if index.task != config.task.name:
        problems.append(
            f"the data set is for task {index.task}, but recipe {config.recipe} trains for task {config.task.name}"
        )
    if config.data.dataset not in (None, index.dataset):
        problems.append(f"data set {index.dataset}: recipe {config.recipe} requires {config.data.dataset} (data.dataset)")
    available = [stream.name for stream in index.streams]
    problems += [
        f"stream {name}: missing, but network {config.model.name} reads it; the data set has {', '.join(available)}"
        for name in config.model.streams
        if name not in available
    ]
    if problems:
        raise DataError(problems, f"{url}: cannot be used for this run")
    return index, labels


def read_refined_labels(config: RunConfig, index: Index, train: Labels) -> RefinedLabels | None:
    """Read the run's refined labels and check them against its data and method; None if it has none.

    Raises:
        ConfigError: the method requires segment-level labels, but there are none.
        DataError: the file does not exist or does not fit the data.
    """
    url, required = config.data.refined, config.method.segment_labels
    if config.data.video_labels == "durations":
        return _durations(config, index, train)
    reason = f"method {config.method.name} trains on segment-level labels"
    remedy = "make such a file with `avvp data labels` or `avvp data noisy-labels` and give it as data.refined=FILE"
    if not url:
        if required:
            raise ConfigError(f"data.refined: missing; {reason}; {remedy}")
        return None
    refined = RefinedLabels.load(url)
    if required and not refined.has_segment_labels:
        raise ConfigError(f"data.refined: {reason}, but those in {url} are of whole videos or of windows; {remedy}")
    if set(refined.tracks) != set(config.task.tracks):
        given, wanted = ", ".join(refined.tracks), ", ".join(config.task.tracks)
        raise DataError(f"{url}: labels of the tracks {given}, but task {config.task.name} has {wanted}")
    refined.aligned(train.ids, index.classes, index.segments, url)  # raises if they do not fit, before anything is written
    return refined


def _durations(config: RunConfig, index: Index, train: Labels) -> RefinedLabels:
    """Return the share of segments that contain each class as video-level labels; the labels of tracks stay weak.

    Raises:
        ConfigError: they are combined with ``data.refined``, or the ground truth of the training videos is unknown.
    """
    if config.data.refined:
        raise ConfigError("data.video_labels=durations: cannot be combined with data.refined")
    if train.truth is None:
        raise ConfigError("data.video_labels=durations: needs the ground truth of the training videos, which is unknown")
    any_track = np.any(list(train.truth.values()), axis=0)  # [N,T,C]
    weak = train.weak.astype(np.float32)
    durations = any_track.mean(axis=1).astype(np.float32)
    return RefinedLabels(
        train.ids, index.classes, durations, dict.fromkeys(config.task.tracks, weak), {"refiner": "durations"}
    )
