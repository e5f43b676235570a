"""Runs sweeps on Ray Tune: starts trials, shares their stages, and records how each trial ended."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from avvp_dist import storage
from avvp_dist.errors import ConfigError, UserError
from avvp_dist.experiments.inputs import open_data
from avvp_dist.experiments.recipe import LaunchConfig, RunConfig, describe_changes, load, run_identity
from avvp_dist.experiments.run import check_experiment
from avvp_dist.experiments.sweep import SweepConfig, Trial, label, points_to_check, refused_overrides, sweep_points, trials
from avvp_dist.launch import ray_job
from avvp_dist.launch.leases import start_lease_server
from avvp_dist.launch.ray_start import start_ray
from avvp_dist.launch.ray_train import storage_arguments
from avvp_dist.launch.resources import ResourceRequest, wait_for
from avvp_dist.launch.search import optuna_search, population_based_training
from avvp_dist.launch.signals import stop_on_signals
from avvp_dist.launch.sweep_recorder import RECORD, SweepRecorder, recorded_trials
from avvp_dist.launch.trial import DRIVER_CPUS, TrialContext, reserve_driver_cpus, run_trial
from avvp_dist.shards.index import Index
from avvp_dist.tracking.base import Status, Tracker
from avvp_dist.tracking.home import TrackingHome, open_home
from avvp_dist.tracking.tracker import open_tracker

LOGGER = logging.getLogger(__name__)
_CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}

_BUDGET = ("concurrency", "hours", "trials", "cpus_per_trial", "gpus_per_trial")  # may change when a sweep is resumed
_SIGNAL_INTERVAL = 0.5  # seconds between two signals to Tune, which may not handle them yet
_RETRIES = 1  # of a trial that crashed; it resumes from its last checkpoint


def run(name: str, sweep: SweepConfig, *, overrides: Sequence[str], output: str) -> dict[str, Any]:
    """Run all unfinished trials and return the content of ``<output>/sweep.json``.

    Each trial is an ordinary run in ``<output>/runs/<trial>``; stages are shared through ``<output>/stages``. The same call
    resumes an interrupted sweep; failed trials are tried again.

    Args:
        name: short name of the sweep.
        sweep: the sweep, with absolute paths.
        overrides: ``key=value`` for all trials, with absolute paths; data=URL is required.
        output: absolute folder or URL.

    Raises:
        ConfigError, DataError: the sweep is invalid; raised before anything runs.
    """
    # Tune would pass credentials to its workers in their runtime environment, which Ray writes to world-readable log files.
    # Workers on this machine inherit the variables; the nodes of a cluster have their own.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(_CREDENTIALS)
    base = load(sweep.recipe, [*sweep.overrides, *overrides])
    storage.configure(base.storage)
    index, planned = prepare(sweep, overrides)
    _check_same_sweep(sweep, base, output)
    started_here = not ray.is_initialized()
    try:
        if started_here:
            start_ray(log_to_driver=False)
        wait_for(_resource_request(sweep, base.launch), base.launch.wait, "launch.wait")
        context = TrialContext(
            name=name,
            sweep=sweep,
            overrides=tuple(overrides),
            fingerprint=index.fingerprint,
            output=output,
            parent=None,
            storage=storage.settings(),
            tracking_uri=base.tracking.uri,
        )
        return _run(context, planned, base)
    finally:
        if started_here:
            ray.shutdown()


def _run(context: TrialContext, planned: Sequence[Trial], base: RunConfig) -> dict[str, Any]:
    """Run a sweep that passed all checks; nothing is written before this."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it complains about files of disabled loggers
    home = open_home(context.output)
    tracker = _tracker(context, base, home)
    recorder = SweepRecorder(context.name, context.sweep, context.overrides, context.output, context.fingerprint, planned)
    stopped = threading.Event()
    error: BaseException | None = None
    try:
        with start_lease_server() as lease_server, _stopping(stopped):
            for phase in _phases(replace(context, parent=tracker.reference, lease_server=lease_server), recorder):
                if stopped.is_set():
                    break
                phase.fit()
    except BaseException as caught:
        error = caught
        raise
    finally:
        content = recorder.write()
        _finish(tracker, content, error)
        home.keep()
    return content


@contextmanager
def _stopping(stopped: threading.Event) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C stop Tune, through the signal that Tune uses for it. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, lambda *_: None)  # until Tune installs its handler
    done = threading.Event()

    def send() -> None:
        while not done.wait(_SIGNAL_INTERVAL):
            os.kill(os.getpid(), signal.SIGUSR1)

    sender = threading.Thread(target=send, daemon=True)

    def stop() -> None:
        stopped.set()
        sender.start()

    try:
        with stop_on_signals(stop, "trials end, and resume from their last checkpoints when the sweep is resumed"):
            yield
    finally:
        done.set()
        if stopped.is_set():
            sender.join()  # its signal would end a process without a handler
        signal.signal(signal.SIGUSR1, before)


def prepare(sweep: SweepConfig, overrides: Sequence[str]) -> tuple[Index, list[Trial]]:
    """Return the data's index and all trials that are known in advance, after checking them.

    Raises:
        ConfigError, DataError: all problems with them.
    """
    problems = refused_overrides(sweep, overrides)
    if problems:
        raise ConfigError(problems, "overrides of keys that the sweep sets")
    index, _ = open_data(load(sweep.recipe, [*sweep.overrides, *overrides]))
    planned = [] if sweep.search.name == "optuna" else trials(sweep, sweep_points(sweep), overrides, index.fingerprint)
    checked = list(planned)
    if sweep.search.name == "optuna" or sweep.scheduler.name == "pbt":  # which choose points during the sweep
        one_seed = sweep.model_copy(update={"seeds": sweep.seeds[:1], "trials": None})
        checked += trials(one_seed, points_to_check(sweep), overrides, index.fingerprint)
    _check_trials(sweep, checked)
    return index, planned


def _check_trials(sweep: SweepConfig, checked: Sequence[Trial]) -> None:
    """Refuse settings whose trials would certainly fail: missing files, or data and values that do not fit.

    Raises:
        ConfigError: all of them.
    """
    problems: list[str] = []
    checked_parts = set()
    for todo in checked:
        parts = todo.config.model_dump_json(include={"data": True, "model": True, "method": True, "launch": {"workers"}})
        key = (parts, todo.config.train.batch_size)
        if key in checked_parts:
            continue
        checked_parts.add(key)
        try:
            check_experiment(todo.config, todo.config.launch.workers)
        except UserError as error:
            problems += [f"setting {label(todo.point)}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems, f"sweep {sweep.title!r}: settings that cannot be run")


def _phases(context: TrialContext, recorder: SweepRecorder) -> Iterator[tune.Tuner]:
    """Yield Tuners to run one after the other, each created when the previous one has ended."""
    sweep = context.sweep
    if sweep.scheduler.name == "pbt":
        for seed in sweep.seeds:  # weights are exchanged within a population, so each seed has its own population
            rows = [row for row in recorded_trials(context.output) if row["seed"] == seed]
            if any(row["status"] != "finished" for row in rows):
                yield _tuner(context, recorder, _known_trials(rows), _tune_config(sweep))
        return
    rows = recorded_trials(context.output)
    if rows:
        yield _tuner(context, recorder, _known_trials(rows), _tune_config(sweep))
    if sweep.search.name == "optuna":
        rest = optuna_search(sweep, recorded_trials(context.output))
        if rest:
            yield _tuner(context, recorder, {}, rest)


def _known_trials(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return known trials as a search space for Tune.

    A finished trial only reports its scores again, for the scheduler; an interrupted one resumes from its checkpoint.
    """
    known = [{"setting": row["setting"], "seed": row["seed"], "run": row["name"]} for row in rows]
    return {"trial": tune.grid_search(known)}


def _tune_config(sweep: SweepConfig) -> tune.TuneConfig:
    return tune.TuneConfig(max_concurrent_trials=sweep.concurrency)


def _tuner(context: TrialContext, recorder: SweepRecorder, space: Mapping[str, Any], config: tune.TuneConfig) -> tune.Tuner:
    sweep = context.sweep
    config.scheduler = _scheduler(context)
    if config.search_alg is None:  # a search algorithm has its own metric and mode
        config.metric, config.mode = "score", sweep.mode
    config.time_budget_s = sweep.hours * 3600 if sweep.hours else None
    config.reuse_actors = True  # importing torch takes seconds
    config.trial_dirname_creator = str  # short: the setting is in the name of the run's folder
    several = _base(context).launch.workers > 1
    # a trial with several workers is only their driver and must leave CPUs for them
    resources = {"cpu": DRIVER_CPUS} if several else {"cpu": sweep.cpus_per_trial, "gpu": sweep.gpus_per_trial}
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, context=context), resources),
        param_space=dict(space),
        tune_config=config,
        run_config=tune.RunConfig(
            name="tune",
            **storage_arguments(context.output),
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=_RETRIES),
            verbose=0,
        ),
    )


def _scheduler(context: TrialContext) -> TrialScheduler:
    scheduler = context.sweep.scheduler
    if scheduler.name == "fifo":
        return FIFOScheduler()
    if scheduler.name == "pbt":
        return population_based_training(context.sweep)
    epochs = _base(context).train.epochs
    return ASHAScheduler(
        time_attr="epoch",
        max_t=epochs + 1,  # a trial reports its final score after its last epoch
        grace_period=min(scheduler.grace_epochs, epochs),
        reduction_factor=scheduler.reduction,
    )


def _base(context: TrialContext) -> RunConfig:
    return load(context.sweep.recipe, [*context.sweep.overrides, *context.overrides])


def _resource_request(sweep: SweepConfig, launch: LaunchConfig) -> ResourceRequest:
    """Return the resources of one trial; the others wait until it ends."""
    if launch.workers > 1:
        share = reserve_driver_cpus(launch)
        each = {"CPU": share.cpus_per_worker} | ({"GPU": share.gpus_per_worker} if share.gpus_per_worker else {})
        remedy = "use fewer launch.workers, or less for each (launch.cpus_per_worker, launch.gpus_per_worker)"
        return ResourceRequest("worker", share.min_workers or share.workers, each, {"CPU": DRIVER_CPUS}, remedy)
    each = {"CPU": sweep.cpus_per_trial} | ({"GPU": sweep.gpus_per_trial} if sweep.gpus_per_trial else {})
    return ResourceRequest("trial", 1, each, {}, "use fewer --cpus or --gpus")


def _check_same_sweep(sweep: SweepConfig, base: RunConfig, output: str) -> None:
    """Refuse a folder that holds another sweep. Budgets, seeds, samples and the execution of trials may change.

    Raises:
        ConfigError: the folder holds another sweep; lists the keys that differ.
    """
    url = storage.join(output, RECORD)
    if not storage.exists(url):
        return
    content = json.loads(storage.read_text(url))
    new, recorded = sweep.model_dump(mode="json"), content["spec"]
    before = load(recorded["recipe"], [*recorded["overrides"], *content["overrides"]])
    for spec in (new, recorded):
        for key in (*_BUDGET, "seeds", "recipe", "overrides"):
            spec.pop(key, None)
        if spec["scheduler"]["name"] != "pbt":  # the size of a population must stay
            spec["search"].pop("samples", None)
    changes = describe_changes(recorded, new)
    changes += describe_changes(
        *(run_identity(config.model_dump(mode="json", exclude={"output"})) for config in (before, base))
    )
    if changes:
        raise ConfigError(changes, f"{output} holds another sweep; choose another --output or delete it")


def _tracker(context: TrialContext, base: RunConfig, home: TrackingHome) -> Tracker:
    """Open the sweep's own tracked run, under which its trials are nested."""
    config, sweep = base.tracking, context.sweep
    tags = {**config.tags, **ray_job.tags(), "sweep": context.name}
    named = config.model_copy(update={"run_name": config.run_name or f"sweep {context.name}", "tags": tags})
    tracker = open_tracker(named, home.folder)
    spec = sweep.model_dump(mode="json", exclude={"space", "overrides"})
    # MLflow refuses to change a param, so values that may change when a sweep is resumed are tags
    budget = {key: spec.pop(key) for key in (*_BUDGET, "seeds")} | {"samples": spec["search"].pop("samples")}
    tracker.tags({f"sweep.{key}": value for key, value in budget.items() if value is not None})
    tracker.params({"sweep": spec, "overrides": [*sweep.overrides, *context.overrides]})
    tracker.params({f"space.{key}": value.model_dump(exclude_defaults=True) for key, value in sweep.space.items()})
    return tracker


def _finish(tracker: Tracker, content: Mapping[str, Any], error: BaseException | None) -> None:
    tracker.text(RECORD, json.dumps(content, indent=1))
    states = [row["status"] for row in content["trials"]]
    tracker.metrics({f"trials/{state}": states.count(state) for state in ("finished", "stopped", "failed", "pending")}, 0)
    tracker.finish(_status(states, error))


def _status(states: Sequence[str], error: BaseException | None) -> Status:
    """Return FAILED if the sweep raised an error or all trials failed, KILLED if trials are left, else FINISHED."""
    if isinstance(error, Exception):
        return "FAILED"
    if error is not None or "pending" in states:
        return "KILLED"
    return "FAILED" if states and set(states) == {"failed"} else "FINISHED"
