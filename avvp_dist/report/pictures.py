"""The pictures a finished run leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.metrics.denoising import Levels
from avvp_dist.report import curves, denoising, timeline
from avvp_dist.shards.index import Labels

_SHOWN = 6  # videos on the timeline


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
    """Draws curves, per-class bars, a parsing timeline and, for each refiner of labels, what it removed.

    Args:
        folder: where the PNGs go.
        classes: names of the C classes.
        history: one row an epoch, over all stages.
        result: the content of result.json.
        protocol: whose per-class scores are drawn.
        truth: labels of the test split.
        predicted: audio and visual predictions on it, [N,T,C] each.
        removed: name of a picture -> labels of the training split that were removed, as `metrics.denoising.scoring` tells.

    Returns:
        the files, in the order a reader wants them.
    """
    synthetic = result["data"]["synthetic"]
    names = ["curves", "classes", "timeline", *removed]
    paths = {name: folder / f"{name}.png" for name in names}
    curves.loss_and_scores(history, paths["curves"], synthetic)
    per_class = result["scores"]["test"][protocol]["per_class"]
    curves.class_bars(per_class, paths["classes"], f"{result['recipe']}: F per class, test, {protocol} protocol", synthetic)
    rows = _telling(truth)
    timeline.parsing(
        [timeline.TimelineVideo(truth.ids[row], tuple(np.array(classes)[truth.weak[row]].tolist())) for row in rows],
        classes,
        None if truth.audio is None else truth.audio[rows],
        None if truth.visual is None else truth.visual[rows],
        predicted[0][rows],
        predicted[1][rows],
        paths["timeline"],
        synthetic,
    )
    for name, levels in removed.items():
        denoising.removed_labels(classes, levels, paths[name], synthetic)
    return list(paths.values())


def _telling(labels: Labels) -> NDArray[np.int64]:
    """Videos whose weak label holds several events, the first of the split; chosen without a look at predictions."""
    order = np.argsort(-labels.weak.sum(axis=1).clip(max=2), kind="stable")
    return np.sort(order[:_SHOWN])
