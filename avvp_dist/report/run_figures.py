"""The figures of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.metrics.denoising import Levels
from avvp_dist.report import curves, denoising, timeline
from avvp_dist.shards.index import Labels

_TIMELINE_VIDEOS = 6


def draw(
    folder: Path,
    *,
    classes: Sequence[str],
    history: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    protocol: str,
    truth: Labels,
    predicted: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    removed: Mapping[str, Levels],
) -> list[Path]:
    """Draw curves, per-class bars, a parsing timeline and, for each label refiner, the labels that it removed.

    Args:
        folder: folder of the PNGs.
        classes: names of the C classes.
        history: one row per epoch, over all stages.
        result: the content of result.json.
        protocol: evaluation protocol of the per-class scores.
        truth: labels of the test split.
        predicted: audio and visual predictions on the test split, [N,T,C] each.
        removed: name of a figure -> labels removed from the training split, as `metrics.denoising.compare_labels` returns
            them.

    Returns:
        the files, in reading order.
    """
    synthetic = result["data"]["synthetic"]
    names = ["curves", "classes", "timeline", *removed]
    paths = {name: folder / f"{name}.png" for name in names}
    recipe = result["recipe"]
    curves.loss_and_scores(history, paths["curves"], f"{recipe}: losses and scores", synthetic)
    per_class = result["scores"]["test"][protocol]["per_class"]
    curves.class_bars(per_class, paths["classes"], f"{recipe}: F per class, test, {protocol} protocol", synthetic)
    rows = _example_rows(truth)
    timeline.parsing(
        [timeline.TimelineVideo(truth.ids[row], tuple(np.array(classes)[truth.weak[row]].tolist())) for row in rows],
        classes,
        None if truth.truth is None else truth.truth["audio"][rows],
        None if truth.truth is None else truth.truth["visual"][rows],
        predicted[0][rows],
        predicted[1][rows],
        paths["timeline"],
        f"{recipe}: parsing of test videos",
        synthetic,
    )
    for name, levels in removed.items():
        denoising.removed_labels(classes, levels, paths[name], synthetic)
    return list(paths.values())


def _example_rows(labels: Labels) -> NDArray[np.int64]:
    """Return the first videos of the split with several weak labels; the choice does not depend on predictions."""
    order = np.argsort(-labels.weak.sum(axis=1).clip(max=2), kind="stable")
    return np.sort(order[:_TIMELINE_VIDEOS])
