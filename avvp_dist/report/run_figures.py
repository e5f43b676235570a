"""The figures of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.metrics.denoising import Levels
from avvp_dist.report import curves, denoising, timeline
from avvp_dist.report.runs import TaskInfo
from avvp_dist.shards.index import Labels
from avvp_dist.tasks import TASKS

_TIMELINE_VIDEOS = 6


def draw(
    folder: Path,
    *,
    classes: Sequence[str],
    history: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    truth: Labels,
    predicted: Mapping[str, NDArray[np.bool_]],
    removed: Mapping[str, Levels],
) -> list[Path]:
    """Draw curves, per-class bars, a timeline and, for each label refiner, the labels that it removed.

    Args:
        folder: folder of the PNGs.
        classes: names of the C classes.
        history: one row per epoch, over all stages.
        result: the content of result.json.
        truth: labels of the test split.
        predicted: predictions on the test split by track, [N,T,C] each.
        removed: name of a figure -> labels removed from the training split, as `metrics.denoising.compare_labels` returns
            them.

    Returns:
        the files, in reading order.
    """
    synthetic = result["data"]["synthetic"]
    names = ["curves", "classes", "timeline", *removed]
    paths = {name: folder / f"{name}.png" for name in names}
    recipe = result["recipe"]
    task = TaskInfo.of(result)
    curves.loss_and_scores(history, task, paths["curves"], f"{recipe}: losses and scores", synthetic)
    per_class = result["scores"]["test"][task.view]["per_class"]
    title = f"{recipe}: scores per class, test, {task.views[task.view].title}"
    curves.class_bars(per_class, task, paths["classes"], title, synthetic)
    rows = _example_rows(truth)
    timeline.events(
        [timeline.TimelineVideo(truth.ids[row], tuple(np.array(classes)[truth.weak[row]].tolist())) for row in rows],
        classes,
        None if truth.truth is None else {track: of_track[rows] for track, of_track in truth.truth.items()},
        {track: of_track[rows] for track, of_track in predicted.items()},
        paths["timeline"],
        f"{recipe}: events in test videos",
        synthetic,
        TASKS[task.name].background,
    )
    for name, levels in removed.items():
        denoising.removed_labels(classes, levels, paths[name], synthetic)
    return list(paths.values())


def _example_rows(labels: Labels) -> NDArray[np.int64]:
    """Return videos with several weak labels, if there are enough, evenly spread over the split.

    The choice does not depend on predictions.
    """
    order = np.argsort(-labels.weak.sum(axis=1).clip(max=2), kind="stable")
    count = min(_TIMELINE_VIDEOS, len(order))
    several = max(count, int((labels.weak.sum(axis=1) > 1).sum()))
    if several == count:  # too few of them: spread over all videos
        several = len(order)
    return np.sort(order[:several][np.linspace(0, several - 1, count).astype(np.int64)])
