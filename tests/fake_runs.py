"""Finished runs written without training: folders as `avvp train` leaves them, with scores chosen by the test; and
`avvp compare` on them."""

import json
import zlib
from pathlib import Path

import numpy as np
import typer
from typer.testing import CliRunner

from avvp_dist.cli.compare import compare
from avvp_dist.experiments.recipe import load
from avvp_dist.metrics.per_video import VideoStatistics
from avvp_dist.tasks.base import Task, describe

VIDEOS = {"val": 40, "test": 60}
CLASSES = ("Speech", "Frying_(food)")


def write_run(
    folder: Path,
    *overrides: str,
    recipe: str = "jomold",
    seed: int = 1,
    gain: float = 0.0,
    fingerprint: str = "0123456789abcdef",
    synthetic: bool = True,
    per_video: bool = True,
    **gains: float,
) -> str:
    """Write a run whose videos score 0.5 + ``gain`` on average, with noise by seed; all runs have the same videos.

    ``gains`` replace ``gain`` for one split, such as ``val=0.3``.
    """
    config = load(recipe, [f"output={folder}", "data=shards", f"seed={seed}", *overrides])
    task = config.task.build(CLASSES)
    ids, values = {}, {}
    for split, count in VIDEOS.items():
        hard = np.random.default_rng(len(split)).uniform(-0.2, 0.2, size=(count, 8))  # of each video
        luck = np.random.default_rng([seed, len(split), zlib.crc32(repr(overrides).encode())]).normal(
            0, 0.05, size=(count, 8)
        )
        ids[split] = tuple(f"{split}-{number}" for number in range(count))
        for number, view in enumerate(view for view in task.views if not view.of):
            base = 0.5 + gains.get(split, gain) + 0.01 * number
            values[split, view.name] = np.clip(base + hard + luck, 0, 1)
            for subset in (subset for subset in task.views if subset.of == view.name):
                values[split, subset.name] = np.clip(base + 0.1 + hard + luck, 0, 1)
    result = {
        "recipe": config.recipe,
        "seed": seed,
        "data": {"url": "shards", "fingerprint": fingerprint, "dataset": "llp", "synthetic": synthetic},
        "task": describe(task),
        "scores": {
            split: {view.name: _scores(task, values[split, view.name], not view.of) for view in task.views}
            for split in VIDEOS
        },
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "result.json").write_text(json.dumps(result))
    if per_video:
        (folder / "per_video.npz").write_bytes(VideoStatistics(ids, values).to_bytes())
    return str(folder)


def seeds(tmp_path, name, *overrides, count=3, **more):
    return [write_run(tmp_path / f"{name}-{seed}", *overrides, seed=seed, **more) for seed in range(1, count + 1)]


def two_settings(tmp_path):
    """Write two settings with three seeds each, the second clearly better."""
    worse = seeds(tmp_path, "worse", "method.temperature=0.1")
    return [*worse, *seeds(tmp_path, "better", "method.temperature=0.2", gain=0.1)]


def avvp_compare(*arguments):
    app = typer.Typer()
    app.command()(compare)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def one_line(text):
    return " ".join(text.split())


def _scores(task: Task, statistics: np.ndarray, all_classes: bool) -> dict:
    """Return the scores of a split under one view as result.json records them."""
    once = np.ones((1, len(statistics)))
    metrics = {
        metric.name: float(task.section.recompute(statistics, once, metric.name)[0]) for metric in task.section.metrics
    }
    per_class = {name: {metric.name: metrics[metric.name] for metric in task.section.class_metrics} for name in CLASSES}
    per_class[CLASSES[1]]["event.visual"] = None
    return {"settings": task.settings(), "metrics": metrics, "per_class": per_class if all_classes else {}}
