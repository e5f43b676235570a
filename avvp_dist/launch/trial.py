"""What runs inside one trial of a sweep: the same `run_experiment` as everywhere, telling Ray Tune how far it came."""

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
from avvp_dist.text.credentials import errors_without_secrets
from avvp_dist.text.escape import VisibleRecords
from avvp_dist.train import checkpoint

DRIVER_CPUS = 0.1  # of a trial whose workers are Ray Train's
SCORES, FAILURE = "scores.json", "failure.json"
_DONOR = "checkpoint of the trial whose weights are taken over"
_WIND_DOWN = 600  # seconds for a trial that ends early to close what it has open, a tracking server that is slow included


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share.

    Attributes:
        name: short name of the sweep.
        overrides: the user's ``key=value``.
        fingerprint: of the data.
        output: folder or URL of the sweep, absolute.
        parent: names the sweep's own tracked run, for ``tracking.parent_run``; None without.
        storage: how the driver reaches object storage.
        lease_server: gives out shared stages.
        tracking_uri: the driver's MLflow tracking URI: a trial's own environment may name another one; None for that one.
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

    def config(self, setting: Mapping[str, Any], seed: int, run: str | None = None) -> RunConfig:
        """A trial's config, with its place in the sweep's folder and below the sweep's tracked run.

        Args:
            setting: swept keys with their values.
            seed: of the trial.
            run: name of the run's folder, where it is not the one that follows from setting and seed.
        """
        todo = make_trial(self.sweep, dict(setting), seed, self.overrides, self.fingerprint)
        tracking, name = todo.config.tracking, run or todo.name
        named = {
            "run_name": f"{label(setting)}, seed {seed}{name.removeprefix(todo.name)}",
            "parent_run": self.parent,
            "uri": self.tracking_uri or tracking.uri,
            "tags": {**tracking.tags, "sweep": self.name, "setting": label(setting)},
        }
        placed = {
            "output": storage.join(self.output, "runs", name),
            "store": storage.join(self.output, "stages"),
            "tracking": tracking.model_copy(update=named),
        }
        return todo.config.model_copy(update=placed)


@errors_without_secrets()
def run_trial(chosen: Mapping[str, Any], *, context: TrialContext) -> None:
    """The function Tune calls; see `chosen_point` for what ``chosen`` holds.

    A trial that was started before goes on where it stopped; its scores so far are scores again first, so that a scheduler
    which has lost its memory decides as it did.
    """
    set_up_logging()
    storage.configure(context.storage)
    # Tune waits so long for this trial to end before another takes over its process, and then fails the other; else 2 s
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(_WIND_DOWN)
    setting, seed = chosen_point(chosen, context.sweep)
    population = context.sweep.scheduler.name == "pbt"
    config = context.config(setting, seed, chosen.get("trial", {}).get("run"))
    if population and tune.get_checkpoint():  # weights came from a member, be it from itself: a run of its own
        config = context.config(setting, seed, _name(context.config(setting, seed)) + _generation())
    with _log_file(config.output):
        previous = storage.join(config.output, FAILURE)
        if storage.exists(previous):  # a retry: what was wrong is still wrong
            raise AvvpError(json.loads(storage.read_text(previous)))
        try:
            score = final_score(_result(config, context, population), config.evaluate.protocol, context.sweep.metric)
        except AvvpError as error:
            storage.write_text(previous, json.dumps(str(error)))
            raise
    tune.report({"score": score, "epoch": config.train.epochs + 1, "run": _name(config)})


def chosen_point(chosen: Mapping[str, Any], sweep: SweepConfig) -> tuple[SweepPoint, int]:
    """Point and seed of what Tune gave a trial: ``trial`` with both, or a searcher's keys and the number of the seed."""
    if "trial" in chosen:
        return dict(chosen["trial"]["setting"]), chosen["trial"]["seed"]
    return applicable(sweep, chosen), sweep.seeds[chosen["__trial_index__"]]


def final_score(result: Mapping[str, Any], protocol: str, metric: str) -> float:
    """The score on val of a finished run's best epoch; ``metric`` is level and name, e.g. segment.type."""
    level, name = metric.split(".")
    return result["scores"]["val"][protocol][level][name]


def _result(config: RunConfig, context: TrialContext, population: bool) -> Mapping[str, Any]:
    scores = _ScoreReporter(config, context.sweep.metric)
    scores.report_previous()
    known = finished(config.output)
    if known:
        return known
    if config.launch.workers > 1:
        beside = config.model_copy(update={"launch": beside_driver(config.launch)})
        return ray_train.train(beside, [_ForwardScores(scores)], context.lease_server, _WIND_DOWN)
    torch.set_num_threads(max(1, int(context.sweep.cpus_per_trial)))
    kind = PopulationRuntime if population else TrialRuntime
    runtime = kind(config, scores, leases(context.lease_server) if context.lease_server else None)
    try:
        return run_experiment(config, runtime)
    finally:
        runtime.close()


def beside_driver(launch: LaunchConfig) -> LaunchConfig:
    """A trial's workers leave its own process what it asks for: two cores must hold a trial of two workers."""
    share = max(launch.cpus_per_worker - DRIVER_CPUS / launch.workers, DRIVER_CPUS)
    return launch.model_copy(update={"cpus_per_worker": share})


class _ScoreReporter:
    """Score of each epoch of the last stage: scores to Tune, and kept beside the run."""

    def __init__(self, config: RunConfig, metric: str) -> None:
        self.stage = planned_stages(config)[-1].stage.name
        self._url = storage.join(config.output, SCORES)
        self._metric = f"val/{metric}"
        self._run = _name(config)
        self._known: dict[int, float] = {}
        if storage.exists(self._url):
            self._known = {int(epoch): score for epoch, score in json.loads(storage.read_text(self._url)).items()}

    def report_previous(self) -> None:
        """Tells what was scores before."""
        for epoch, score in self._known.items():
            tune.report({"score": score, "epoch": epoch, "run": self._run})

    def record(self, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
        """What to tell of one report of a run; None for nothing: another stage, or no end of an epoch."""
        if metrics.get("stage") != self.stage or metrics["epoch"] in self._known:
            return None
        self._known[metrics["epoch"]] = metrics[self._metric]
        storage.write_text(self._url, json.dumps(self._known))
        return {"score": metrics[self._metric], "epoch": metrics["epoch"], "run": self._run}


class TrialRuntime(LocalRuntime):
    """One process that is a trial; checkpoints are files of the run, as in local mode."""

    def __init__(self, config: RunConfig, scores: _ScoreReporter, lease: Lease | None) -> None:
        super().__init__(config.output, config.train.device, World())  # whatever the environment says of ranks
        self.launcher = "ray tune"
        self._scores = scores
        self._lease = lease
        self._metrics = RunMetrics(config.output, rank=0)

    def close(self) -> None:
        """See `LocalRuntime.close`."""
        self._metrics.close()
        super().close()

    def hold(self, output: str) -> AbstractContextManager[None]:
        """See `Runtime`; the process that had this trial before may be winding down."""
        return locks.hold_folder(output, patience=_WIND_DOWN, stopped=self.stop_requested)

    def lease(self, store: str, key: str) -> AbstractContextManager[None]:
        """See `Runtime`; the sweep's lease_server serves the whole cluster."""
        return self._lease(store, key) if self._lease else super().lease(store, key)

    def report(self, metrics: Mapping[str, Any], checkpoint: bytes | None) -> None:
        """See `Runtime`; Tune is scores once the checkpoint is safe. Epochs become Ray's custom metrics too."""
        super().report(metrics, checkpoint)
        self._metrics.epoch(metrics)
        scores = self._scores.record(metrics)
        if scores:
            self.report_score(scores, checkpoint)

    def report_score(self, score: dict[str, Any], checkpoint: bytes | None) -> None:
        """Hands one epoch's score to Tune, which may end the trial here."""
        tune.report(score)


class PopulationRuntime(TrialRuntime):
    """A member of a population: may go on from another member's weights, under settings of its own."""

    def __init__(self, config: RunConfig, scores: _ScoreReporter, lease: Lease | None) -> None:
        super().__init__(config, scores, lease)
        # weights from elsewhere make the last stage another one than its settings say
        self.lineage = config.output
        self._last = planned_stages(config, self.lineage)[-1]

    def report_score(self, score: dict[str, Any], checkpoint: bytes | None) -> None:
        """See `TrialRuntime.report_score`; with the checkpoint, which others may take over."""
        assert checkpoint is not None
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "checkpoint.pt").write_bytes(checkpoint)
            tune.report(score, checkpoint=tune.Checkpoint.from_directory(folder))

    def checkpoints(self) -> list[str]:
        """See `Runtime`; a donor's checkpoint is the oldest, as one of this run."""
        return [*super().checkpoints(), *([_DONOR] if tune.get_checkpoint() else [])]

    def read_checkpoint(self, name: str) -> bytes:
        """See `Runtime`."""
        found = tune.get_checkpoint() if name == _DONOR else None
        if found is None:
            return super().read_checkpoint(name)
        with found.as_directory() as folder:
            return checkpoint.rekeyed((Path(folder) / "checkpoint.pt").read_bytes(), self._last.key)


class _ForwardScores(TuneReportCallback):
    """Tells Tune of the last stage's epochs when the trial's workers are Ray Train's."""

    def __init__(self, scores: _ScoreReporter) -> None:
        super().__init__()
        self._scores = scores

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """See `TuneReportCallback`; the checkpoint stays with Ray Train."""
        scores = self._scores.record(metrics[0])
        if scores:
            super().after_report(run_context, [scores], None)


def _name(config: RunConfig) -> str:
    """Of the run's folder."""
    return config.output.rsplit("/", 1)[-1]


def _generation() -> str:
    """Sets the runs of a population's member apart, one for each takeover."""
    return f"-{tune.get_context().get_trial_id()}-{Path(tune.get_checkpoint().path).name.rsplit('_', 1)[-1]}"


@contextmanager
def _log_file(output: str) -> Iterator[None]:
    """Keeps the trial's log lines in its folder: many trials talk at once."""
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
