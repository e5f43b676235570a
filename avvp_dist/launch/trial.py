"""Runs one trial of a sweep with `run_experiment`, and reports its scores to Ray Tune."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.actor import ActorHandle
from ray.tune.integration.ray_train import TuneReportCallback

from avvp_dist import storage
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.dist.world import World
from avvp_dist.errors import AvvpError
from avvp_dist.experiments.recipe import LaunchConfig, RunConfig
from avvp_dist.experiments.result import finished
from avvp_dist.experiments.run import planned_stages, run_experiment
from avvp_dist.experiments.sweep import SweepConfig, SweepPoint, applicable, label, make_trial
from avvp_dist.launch import ray_train
from avvp_dist.launch.leases import Lease, leases
from avvp_dist.launch.ray_metrics import RunMetrics
from avvp_dist.report.console import set_up_logging
from avvp_dist.storage import locks
from avvp_dist.storage.config import StorageConfig
from avvp_dist.text.escape import VisibleRecords
from avvp_dist.text.redacted_output import redacted_errors
from avvp_dist.train import checkpoint

DRIVER_CPUS = 0.1  # CPUs of a trial's own process if its workers belong to Ray Train
SCORES, FAILURE = "scores.json", "failure.json"
_DONOR = "checkpoint of the trial whose weights are copied"
_SHUTDOWN_SECONDS = 600  # for a trial that ends early to close its files and its connection to a slow tracking server


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share.

    Attributes:
        name: short name of the sweep.
        sweep: the sweep, with absolute paths.
        overrides: the user's ``key=value`` overrides.
        fingerprint: fingerprint of the data.
        output: absolute folder or URL of the sweep.
        parent: reference of the sweep's own tracked run, for ``tracking.parent_run``; None without one.
        storage: the driver's settings of object storage.
        lease_server: gives leases of shared stages.
        tracking_uri: the driver's MLflow tracking URI, since a trial's environment may define another one; None to use that.
    """

    name: str
    sweep: SweepConfig
    overrides: tuple[str, ...]
    fingerprint: str
    output: str
    parent: str | None
    storage: StorageConfig
    lease_server: ActorHandle | None = None
    tracking_uri: str | None = None

    def config(self, point: Mapping[str, Any], seed: int, run: str | None = None) -> RunConfig:
        """Return a trial's config, with its folder in the sweep's folder and its parent in tracking.

        Args:
            point: swept keys with their values.
            seed: seed of the trial.
            run: name of the run's folder; None for the name that follows from point and seed.
        """
        todo = make_trial(self.sweep, dict(point), seed, self.overrides, self.fingerprint)
        tracking, name = todo.config.tracking, run or todo.name
        tracked = {
            "run_name": f"{label(point)}, seed {seed}{name.removeprefix(todo.name)}",
            "parent_run": self.parent,
            "uri": self.tracking_uri or tracking.uri,
            "tags": {**tracking.tags, "sweep": self.name, "setting": label(point)},
        }
        update = {
            "output": storage.join(self.output, "runs", name),
            "store": storage.join(self.output, "stages"),
            "tracking": tracking.model_copy(update=tracked),
        }
        return todo.config.model_copy(update=update)


@redacted_errors()
def run_trial(chosen: Mapping[str, Any], *, context: TrialContext) -> None:
    """Run one trial; Tune calls this with a config ``chosen``, see `chosen_point`.

    A trial that was started before resumes. It first reports its earlier scores again, so that a restarted scheduler makes
    the same decisions.
    """
    set_up_logging()
    storage.configure(context.storage)
    # time for this trial to end before the next one reuses its process; Tune's default of 2 s would make the next one fail
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(_SHUTDOWN_SECONDS)
    point, seed = chosen_point(chosen, context.sweep)
    population = context.sweep.scheduler.name == "pbt"
    config = context.config(point, seed, chosen.get("trial", {}).get("run"))
    if population and tune.get_checkpoint():  # weights copied from a member, possibly itself: a separate run
        config = context.config(point, seed, _name(context.config(point, seed)) + _generation())
    with _log_file(config.output):
        failure = storage.join(config.output, FAILURE)
        if storage.exists(failure):  # a retry by Tune, which would fail in the same way
            raise AvvpError(json.loads(storage.read_text(failure)))
        try:
            score = final_score(_result(config, context, population), context.sweep.metric)
        except AvvpError as error:
            storage.write_text(failure, json.dumps(str(error)))
            raise
    tune.report({"score": score, "epoch": config.train.epochs + 1, "run": _name(config)})


def chosen_point(chosen: Mapping[str, Any], sweep: SweepConfig) -> tuple[SweepPoint, int]:
    """Return point and seed from Tune's config: ``trial`` with both, or a search algorithm's keys and the seed's index."""
    if "trial" in chosen:
        return dict(chosen["trial"]["setting"]), chosen["trial"]["seed"]
    return applicable(sweep, chosen), sweep.seeds[chosen["__trial_index__"]]


def final_score(result: Mapping[str, Any], metric: str | None) -> float:
    """Return a metric of a finished run's best epoch on val, under the task's own view."""
    return result["scores"]["val"][result["task"]["view"]]["metrics"][metric]


def _result(config: RunConfig, context: TrialContext, population: bool) -> Mapping[str, Any]:
    scores = _ScoreReporter(config, context.sweep.metric)
    scores.report_previous()
    known = finished(config.output)
    if known:
        return known
    if config.launch.workers > 1:
        reserved = config.model_copy(update={"launch": reserve_driver_cpus(config.launch)})
        return ray_train.train(reserved, [_ForwardScores(scores)], context.lease_server, _SHUTDOWN_SECONDS)
    torch.set_num_threads(max(1, int(context.sweep.cpus_per_trial)))
    runtime_class = PopulationRuntime if population else TrialRuntime
    runtime = runtime_class(config, scores, leases(context.lease_server) if context.lease_server else None)
    try:
        return run_experiment(config, runtime)
    finally:
        runtime.close()


def reserve_driver_cpus(launch: LaunchConfig) -> LaunchConfig:
    """Reduce the workers' CPUs by those of the trial's own process: two cores must be enough for two workers."""
    share = max(launch.cpus_per_worker - DRIVER_CPUS / launch.workers, DRIVER_CPUS)
    return launch.model_copy(update={"cpus_per_worker": share})


class _ScoreReporter:
    """Collects the score of each epoch of the last stage: for reports to Tune, and in a file of the run."""

    def __init__(self, config: RunConfig, metric: str | None) -> None:
        self.stage = planned_stages(config)[-1].stage.name
        self._url = storage.join(config.output, SCORES)
        self._metric = f"val/{metric}"
        self._run = _name(config)
        self._known: dict[int, float] = {}
        if storage.exists(self._url):
            self._known = {int(epoch): score for epoch, score in json.loads(storage.read_text(self._url)).items()}

    def report_previous(self) -> None:
        """Report the scores of earlier attempts to Tune."""
        for epoch, score in self._known.items():
            tune.report({"score": score, "epoch": epoch, "run": self._run})

    def record(self, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
        """Record a run's report; returns the report for Tune, or None if it is not the end of an epoch of the last stage."""
        if metrics.get("stage") != self.stage or metrics["epoch"] in self._known:
            return None
        self._known[metrics["epoch"]] = metrics[self._metric]
        storage.write_text(self._url, json.dumps(self._known))
        return {"score": metrics[self._metric], "epoch": metrics["epoch"], "run": self._run}


class TrialRuntime(LocalRuntime):
    """Runtime of a trial with one process; checkpoints are files of the run, as in local mode."""

    def __init__(self, config: RunConfig, scores: _ScoreReporter, lease: Lease | None) -> None:
        super().__init__(config.output, config.train.device, World())  # ignores ranks in the environment
        self.launcher = "ray tune"
        self._scores = scores
        self._lease = lease
        self._metrics = RunMetrics(config.output, rank=0)

    def close(self) -> None:
        """See `LocalRuntime.close`."""
        self._metrics.close()
        super().close()

    def hold(self, output: str) -> AbstractContextManager[None]:
        """See `Runtime`; the previous process of this trial may still be shutting down."""
        return locks.lock_folder(output, patience=_SHUTDOWN_SECONDS, stop_requested=self.stop_requested)

    def lease(self, store: str, key: str) -> AbstractContextManager[None]:
        """See `Runtime`; the sweep's lease server serves the whole cluster."""
        return self._lease(store, key) if self._lease else super().lease(store, key)

    def report(self, metrics: Mapping[str, Any], checkpoint: bytes | None) -> None:
        """See `Runtime`; reports to Tune once the checkpoint is saved. Also exports epochs as Ray's custom metrics."""
        super().report(metrics, checkpoint)
        self._metrics.epoch(metrics)
        score = self._scores.record(metrics)
        if score:
            self.report_score(score, checkpoint)

    def report_score(self, score: dict[str, Any], checkpoint: bytes | None) -> None:
        """Report one epoch's score to Tune, which may end the trial here."""
        tune.report(score)


class PopulationRuntime(TrialRuntime):
    """Runtime of a member of a population, which can continue from another member's weights with its own settings."""

    def __init__(self, config: RunConfig, scores: _ScoreReporter, lease: Lease | None) -> None:
        super().__init__(config, scores, lease)
        # with copied weights, the last stage is not determined by the settings alone
        self.lineage = config.output
        self._last = planned_stages(config, self.lineage)[-1]

    def report_score(self, score: dict[str, Any], checkpoint: bytes | None) -> None:
        """See `TrialRuntime.report_score`; with the checkpoint, which other members can copy."""
        assert checkpoint is not None
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "checkpoint.pt").write_bytes(checkpoint)
            tune.report(score, checkpoint=tune.Checkpoint.from_directory(folder))

    def checkpoints(self) -> list[str]:
        """See `Runtime`; a donor's checkpoint counts as the oldest of this run."""
        return [*super().checkpoints(), *([_DONOR] if tune.get_checkpoint() else [])]

    def read_checkpoint(self, name: str) -> bytes:
        """See `Runtime`."""
        found = tune.get_checkpoint() if name == _DONOR else None
        if found is None:
            return super().read_checkpoint(name)
        with found.as_directory() as folder:
            return checkpoint.rekeyed((Path(folder) / "checkpoint.pt").read_bytes(), self._last.key)


class _ForwardScores(TuneReportCallback):
    """Reports the last stage's epochs to Tune if the trial's workers belong to Ray Train."""

    def __init__(self, scores: _ScoreReporter) -> None:
        super().__init__()
        self._scores = scores

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """See `TuneReportCallback`; the checkpoint stays with Ray Train."""
        score = self._scores.record(metrics[0])
        if score:
            super().after_report(run_context, [score], None)


def _name(config: RunConfig) -> str:
    """Return the name of the run's folder."""
    return config.output.rsplit("/", 1)[-1]


def _generation() -> str:
    """Return a suffix that distinguishes the runs of a population's member, one for each copy of weights."""
    return f"-{tune.get_context().get_trial_id()}-{Path(tune.get_checkpoint().path).name.rsplit('_', 1)[-1]}"


@contextmanager
def _log_file(output: str) -> Iterator[None]:
    """Write the trial's log to a file in its folder, because several trials log at the same time."""
    folder = storage.local_path(output)
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "train.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.addFilter(VisibleRecords())
    logger = logging.getLogger("avvp_dist")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
