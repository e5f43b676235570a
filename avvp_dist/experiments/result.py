"""The results of a run: result.json, statistics per video, the model, figures, and the end of its tracked run."""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from avvp_dist import storage
from avvp_dist.config import parse_yaml
from avvp_dist.dist.runtime import Runtime, named_device
from avvp_dist.errors import DataError
from avvp_dist.experiments.earlier_keys import present_keys
from avvp_dist.experiments.recipe import RunConfig
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.metrics.denoising import Levels, compare_labels, refinement_row
from avvp_dist.metrics.per_video import FILE as PER_VIDEO
from avvp_dist.metrics.per_video import VideoStatistics
from avvp_dist.shards.index import Index, Labels, LeftOut
from avvp_dist.storage import integrity
from avvp_dist.tasks.base import Rows, Scores, Task, Tracks, as_content, describe, evaluate
from avvp_dist.tasks.earlier import present_result
from avvp_dist.tracking.base import Tracker
from avvp_dist.train.loop import StageResult
from avvp_dist.train.stages import WEIGHTS, weights_bytes

LOGGER = logging.getLogger(__name__)
CONFIG, RESULT = "config.yaml", "result.json"
_RESTORE = "restore it from a copy, or train the run again"


@dataclass(frozen=True, eq=False)
class RunResult:
    """A run after its last stage.

    Attributes:
        task: the run's task.
        rows: outputs of the best network, by evaluated split.
        trained, collected: results of the stages by their names, in order.
        given: the refined labels of ``data.refined``, if any.
        left_out: bad videos that the run left out.
        cross_modal: forward option of the network in evaluation.
        provenance: see `provenance`.
    """

    config: RunConfig
    index: Index
    labels: Mapping[str, Labels]
    task: Task
    rows: Mapping[str, Rows]
    trained: Mapping[str, StageResult]
    collected: Mapping[str, Any]
    cross_modal: bool
    provenance: Mapping[str, Any]
    given: RefinedLabels | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def final(self) -> StageResult:
        """The stage whose network is evaluated."""
        return list(self.trained.values())[-1]

    def removed(self) -> dict[str, Levels]:
        """Score the removal of training labels as noise, by the key of result.json; empty if no labels were removed.

        ``denoising``: labels that the run removed, in its last epoch or by a refining stage; ``denoising_given``: labels
        that ``data.refined`` does not have.
        """
        train = self.labels["train"]
        found = [labels for labels in (self._last_epoch(), *self.collected.values()) if isinstance(labels, RefinedLabels)]
        levels: dict[str, Levels] = {}
        for name, labels in {"denoising": found[0] if found else None, "denoising_given": self.given}.items():
            if labels is not None:
                rows = labels.aligned(train.ids, self.index.classes, self.index.segments, name)
                levels[name] = compare_labels(train.weak, rows.tracks, train.truth, rows.windows)
        return levels

    def _last_epoch(self) -> RefinedLabels | None:
        """Return the weak labels without those that the final stage removed in its last epoch; None if it removes none."""
        removed, train = self.final.removed, self.labels["train"]
        if removed is None:
            return None
        about = {"refiner": self.config.method.name}
        return RefinedLabels.from_removed(removed, train.weak, train.ids, self.index.classes, about)

    def result(self) -> dict[str, Any]:
        """Return the content of result.json."""
        config, index = self.config, self.index
        removed = self.removed()
        return {
            "recipe": config.recipe,
            "method": config.method.name,
            "seed": config.seed,
            "data": {
                **describe_data(config, index),
                "left_out": {"count": len(self.left_out), "videos": [asdict(bad) for bad in self.left_out]},
            },
            "best": self.final.best,
            "evaluation": {"cross_modal": self.cross_modal},  # together with config.yaml, enough to score the model again
            "task": describe(self.task),
            "scores": {name: as_content(self.task, scores) for name, scores in self.scores.items()},
            "references": {
                name: self.task.references(rows, known_truth(self.labels[name]), self.labels["train"].truth)
                for name, rows in self.rows.items()
            },
            **{name: refinement_row(removed.get(name, {})) for name in ("denoising", "denoising_given")},
            "artifacts": {name: found for name, found in self.collected.items() if isinstance(found, dict)},
            "provenance": dict(self.provenance),
        }

    @functools.cached_property
    def scores(self) -> dict[str, dict[str, Scores]]:
        """Scores of each evaluated split under each view."""
        return {name: evaluate(self.task, rows, known_truth(self.labels[name])) for name, rows in self.rows.items()}

    def per_video(self) -> VideoStatistics:
        """Return the statistics per video, from which the scores in result.json follow."""
        return statistics_of(self.scores, {name: self.labels[name].ids for name in self.scores})

    def publish(self, result: Mapping[str, Any], tracker: Tracker) -> dict[str, Any]:
        """Write and track all results, result.json last: it lists the checksums of the files that are read later.

        Returns:
            the content of result.json: ``result`` with ``files`` and its own ``checksum``.
        """
        output = self.config.output
        model = weights_bytes(self.final.weights)
        config = self.config.to_yaml().encode()
        files = {WEIGHTS: model, PER_VIDEO: self.per_video().to_bytes(), CONFIG: config}
        listed = {name: integrity.describe(content) for name, content in files.items()}
        result = integrity.seal({**result, integrity.FILES: listed})
        for name in (WEIGHTS, PER_VIDEO):
            storage.write_bytes(storage.join(output, name), files[name])
        history = [row for stage in self.trained.values() for row in stage.history]
        storage.write_text(storage.join(output, "history.json"), json.dumps(history, indent=1))
        with tempfile.TemporaryDirectory() as scratch:
            for figure in self._draw(Path(scratch), history, result):
                storage.write_bytes(storage.join(output, "figures", figure.name), figure.read_bytes())
                tracker.artifact(figure, "figures")
            weights = Path(scratch) / WEIGHTS
            weights.write_bytes(model)
            tracker.artifact(weights, "checkpoints")
        storage.write_bytes(storage.join(output, CONFIG), config)
        storage.write_text(storage.join(output, RESULT), json.dumps(result, indent=1))
        tracker.text(RESULT, json.dumps(result, indent=1))
        tracker.metrics(_final_metrics(result), step=0)
        return result

    def _draw(self, folder: Path, history: list[dict[str, Any]], result: Mapping[str, Any]) -> list[Path]:
        """Draw the figures of the run into ``folder``; none if the environment variable AVVP_FIGURES is 0."""
        if os.environ.get("AVVP_FIGURES") == "0":
            return []
        from avvp_dist.report.run_figures import draw  # importing matplotlib takes a second

        return draw(
            folder,
            classes=self.index.classes,
            history=history,
            result=result,
            truth=self.labels["test"],
            predicted=self.task.predict(self.rows["test"], self.task.view),
            removed=self.removed(),
        )


def describe_data(config: RunConfig, index: Index) -> dict[str, Any]:
    """Return what result.json records of a data set."""
    return {
        "url": config.data.url,
        "fingerprint": index.fingerprint,
        "dataset": index.dataset,
        "synthetic": index.synthetic,
    }


def read_result(output: str) -> dict[str, Any]:
    """Return the content of a finished run's result.json, verified by its checksum.

    Raises:
        FileNotFoundError: there is no result.json.
        DataError: it is damaged.
    """
    try:
        return _present(output, integrity.read_sealed(storage.join(output, RESULT)))
    except DataError as error:
        raise DataError([f"{problem}; {_RESTORE}" for problem in error.problems]) from None


def finished(output: str) -> dict[str, Any] | None:
    """Return the result as `read_result`; None if there is none or, with a warning, if it is damaged."""
    try:
        return _present(output, integrity.read_sealed(storage.join(output, RESULT)))
    except FileNotFoundError:
        return None
    except DataError as error:
        LOGGER.warning("%s; the run is scored again", error)
        return None


def _present(output: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return a result in the present form, if an earlier version wrote it."""

    def settings() -> Mapping[str, Any]:
        url = storage.join(output, CONFIG)
        return present_keys(parse_yaml(storage.read_text(url), url)).get("task", {})

    return present_result(result, settings)


def check_files(output: str, result: Mapping[str, Any], names: Sequence[str]) -> None:
    """Verify files of a finished run by the checksums in its result.json, which earlier versions did not write.

    Raises:
        DataError: all files that are missing or damaged.
    """
    problems = []
    for name in names:
        try:
            integrity.read_listed(output, name, result)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError([f"{problem}; {_RESTORE}" for problem in problems])


def known_truth(labels: Labels) -> Tracks:
    """Return the ground truth of an evaluated split."""
    assert labels.truth is not None  # experiments.inputs.open_data refuses data without it
    return labels.truth


def statistics_of(scores: Mapping[str, Mapping[str, Scores]], ids: Mapping[str, tuple[str, ...]]) -> VideoStatistics:
    """Return the statistics per video of all splits and views."""
    values = {(split, view): of_view.statistics for split, views in scores.items() for view, of_view in views.items()}
    return VideoStatistics(ids, values)


def provenance(index: Index, config: RunConfig, runtime: Runtime) -> dict[str, Any]:
    """Return what is needed to reproduce the run: commit, data, versions, and how it was executed."""
    try:
        version = metadata.version("avvp_dist")
    except metadata.PackageNotFoundError:  # running from files that are not installed, such as a Ray job's upload
        version = "unknown"
    return {
        "git_commit": _commit() or os.environ.get("AVVP_COMMIT") or "unknown",
        "data_fingerprint": index.fingerprint,
        "data_synthetic": str(index.synthetic).lower(),
        "avvp_dist": version,
        "torch": torch.__version__,
        "world_size": runtime.collective.world_size,
        "device": named_device(runtime.device),
        "launcher": runtime.launcher,
        "precision": config.train.precision,
    }


def _commit() -> str | None:
    """Return the commit of the checkout that contains this package; None without a checkout or git."""
    here = str(Path(__file__).parent)
    try:
        commit, status = (
            subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("-dirty" if status else "")


def _final_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the final metrics under the task's own view, with names that sort well in MLflow's table."""
    task = result["task"]
    found: dict[str, float] = {}
    for split, views in result["scores"].items():
        for view in task["views"]:
            if task["view"] in (view["name"], view["of"]):
                prefix = f"{split}_{view['subset']}" if view["subset"] else split
                found |= {f"{prefix}/{name}": value for name, value in views[view["name"]]["metrics"].items()}
    return found
