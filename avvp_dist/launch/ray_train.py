"""Trains on Ray: the workers of Ray Train run the same loop as a single process."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.actor import ActorHandle
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, get_device

from avvp_dist import storage
from avvp_dist.dist.collective import Collective, LocalCollective, TorchCollective
from avvp_dist.errors import AvvpError, ConfigError, DataError, Preempted, StorageError, TrainingError, UserError
from avvp_dist.experiments.inputs import open_checked_data
from avvp_dist.experiments.recipe import LaunchConfig, RunConfig
from avvp_dist.experiments.result import read_result
from avvp_dist.experiments.run import run_experiment
from avvp_dist.launch import resources
from avvp_dist.launch.leases import Lease, leases
from avvp_dist.launch.local import STOP_EFFECT
from avvp_dist.launch.periodic import PeriodicTask
from avvp_dist.launch.ray_group import GroupConfig
from avvp_dist.launch.ray_metrics import RunMetrics
from avvp_dist.launch.ray_start import start_ray
from avvp_dist.launch.signals import stop_on_signals
from avvp_dist.report.console import set_up_logging
from avvp_dist.storage import locks
from avvp_dist.storage.config import StorageConfig
from avvp_dist.text.redacted_output import redacted_errors

LOGGER = logging.getLogger(__name__)
_ERROR_TYPES = (ConfigError, DataError, StorageError, TrainingError, Preempted)
_ERRORS: dict[str, type[AvvpError]] = {error.__name__: error for error in _ERROR_TYPES}
_EXPERIMENT, _CHECKPOINT, _STATE = "train", "checkpoint_", "checkpoint.pt"  # Ray's folders, and this package's file in them
_STOP_POLL_SECONDS = 2.0  # between two checks for the marker file that requests a run to stop
_CHECKPOINT_RECORD = "checkpoint_manager_snapshot.json"  # Ray's list of its checkpoints
# Ray detects dead nodes every 20 seconds and until then waits for them, by default for a minute each time
_WAIT_FOR_NODES = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")


class RayRuntime:
    """`dist.runtime.Runtime` inside a Ray Train worker; checkpoints go through Ray."""

    launcher = "ray"
    lineage = ""

    def __init__(self, output: str, group: str, lease: Lease | None = None) -> None:
        self._stop_marker = _stop_marker(output)
        self._folder = storage.join(output, "ray", _EXPERIMENT)
        self._stop = threading.Event()
        # an object store responds in 20 to 100 ms, for which no step should wait
        self._watch = PeriodicTask("polling for a stop request", self._poll_stop_marker, _STOP_POLL_SECONDS)
        self._lease, self._group = lease, group
        self.device: torch.device = get_device()
        several = ray.train.get_context().get_world_size() > 1
        self.collective: Collective = TorchCollective() if several else LocalCollective()
        self._metrics = RunMetrics(output, self.collective.rank)

    def close(self) -> None:
        """Stop the background tasks."""
        self._watch.stop()
        self._metrics.close()

    def report(self, metrics: Mapping[str, Any], checkpoint: bytes | None) -> None:
        """See `Runtime`; a barrier, since Ray waits for all ranks. Also exports epochs as Ray's custom metrics."""
        self._metrics.epoch(metrics)
        if checkpoint is None:
            ray.train.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _STATE).write_bytes(checkpoint)
            ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder))

    def checkpoints(self) -> list[str]:
        """See `Runtime`; Ray knows the newest. Without Ray's record (`_drop_damaged_record`), all in the folder count."""
        names = [name for name in storage.names(self._folder) if name.startswith(_CHECKPOINT)]
        found = ray.train.get_checkpoint()
        if found is not None:
            newest = Path(found.path).name
            names = [name for name in names if name < newest] + [newest]
        return [storage.join(self._folder, name, _STATE) for name in reversed(names)]

    def read_checkpoint(self, name: str) -> bytes:
        """See `Runtime`."""
        return storage.read_bytes(name)

    def stop_requested(self) -> bool:
        """See `Runtime`; the driver writes a marker file to the run's folder, and a thread of rank 0 polls for it."""
        if self.collective.rank == 0:
            self._watch.start()
        return self._stop.is_set()

    def hold(self, output: str) -> AbstractContextManager[None]:
        """See `Runtime`; the driver holds the lock, because workers can be restarted."""
        return nullcontext()

    def lease(self, store: str, key: str) -> AbstractContextManager[None]:
        """See `Runtime`; the sweep's lease server if there is one, otherwise a lock in the store."""
        return self._lease(store, key) if self._lease else locks.lock_stage(store, key, self._group, self.stop_requested)

    def clear_checkpoints(self) -> None:
        """See `Runtime`; does nothing: Ray keeps only the newest two."""

    def _poll_stop_marker(self) -> None:
        if storage.exists(self._stop_marker):
            self._stop.set()


def train(
    config: RunConfig,
    callbacks: list[UserCallback] | None = None,
    lease_server: ActorHandle | None = None,
    patience: float | None = None,
) -> dict[str, Any]:
    """Run ``config`` on Ray workers and return the content of result.json.

    Connects to the cluster of RAY_ADDRESS (which is set inside a Ray job), or starts Ray on this machine for the run.

    Args:
        config: config of the run.
        callbacks: called for every report of the workers.
        lease_server: gives leases of the stages that this run shares with others, see `launch.leases`.
        patience: see `locks.lock_folder`.

    Raises:
        ConfigError, DataError: the run is invalid, resources are insufficient, or another run is using the output.
        Preempted: SIGTERM or Ctrl-C was received; a checkpoint was written.
        TrainingError: a worker's loss is no longer finite, or Ray gave up restarting the workers.
    """
    open_checked_data(config, config.launch.workers)
    with locks.lock_folder(config.output, patience=patience):
        return _train(config, callbacks, lease_server)


def _train(config: RunConfig, callbacks: list[UserCallback] | None, lease_server: ActorHandle | None) -> dict[str, Any]:
    """Train, once the output folder is locked."""
    for leftover in (_failure(config), _stop_marker(config.output)):
        storage.remove(leftover)
    started_here = not ray.is_initialized()
    if started_here:
        start_ray()
    try:
        if lease_server is None:  # otherwise a trial, whose sweep has requested the resources
            resources.wait_for(_resource_request(config.launch), config.launch.wait, "launch.wait")
        _drop_damaged_record(config.output)
        trainer = _trainer(config, callbacks, lease_server)
        trainer.ray_ends_with_it = started_here and os.environ.get("RAY_ADDRESS", "local") == "local"
        _fit(trainer, config.output)
    except ray.train.TrainingFailedError as error:
        _raise_failure(config)
        causes = "; ".join(f"worker {rank}: {cause}" for rank, cause in getattr(error, "worker_failures", {}).items())
        raise TrainingError(f"Ray gave up after {config.launch.max_failures} restarts: {causes or error}") from error
    finally:
        if started_here:
            ray.shutdown()
    _raise_failure(config)
    return read_result(config.output)


class _Trainer(TorchTrainer):
    """A trainer without helper processes that nothing uses; each would take one to two seconds of CPU time at every start.

    Ray's list of callbacks is private: under other names in another version they stay, and the run is only slower.

    Attributes:
        ray_ends_with_it: whether Ray was started for this run alone, which then leaves no placement groups.
    """

    ray_ends_with_it = False

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"}  # for Ray Data
        if self.ray_ends_with_it:
            unused.add("PlacementGroupCleanerCallback")
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # Ray's annotations hide it
        return [callback for callback in callbacks if type(callback).__name__ not in unused]


class _EndOnUserError(UserCallback):
    """Ends the run when a worker has written an error that would recur; otherwise Ray would start all workers once more."""

    def __init__(self, failure: str) -> None:
        self._failure, self._settings = failure, storage.settings()

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Called by Ray in its controller process."""
        storage.configure(self._settings)
        with suppress(StorageError):  # the store is unavailable: the restarted workers look again
            if storage.exists(self._failure):
                raise TrainingError(f"ended by the error in {self._failure}")


def _drop_damaged_record(output: str) -> None:
    """Remove Ray's record of its checkpoints if Ray could not resume from it.

    Ray overwrites the record in place: a driver killed at that moment leaves an empty or truncated file. The checkpoints
    are in the same folder, each with its checksum.
    """
    folder = storage.join(output, "ray", _EXPERIMENT)
    record = storage.join(folder, _CHECKPOINT_RECORD)
    try:
        listed = {result["checkpoint_dir_name"] for result in json.loads(storage.read_bytes(record))["checkpoint_results"]}
        missing = listed - set(storage.names(folder))
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, RecursionError):
        missing = {"its own content"}
    if missing:
        LOGGER.warning(
            "%s: damaged, %s missing; using the checkpoints in the folder instead", record, ", ".join(sorted(missing))
        )
        storage.remove(record)


def _resource_request(launch: LaunchConfig) -> resources.ResourceRequest:
    """Return the resources that a run needs to start; an elastic run can start with its minimum number of workers."""
    remedy = "use fewer launch.workers, or less for each (launch.cpus_per_worker, launch.gpus_per_worker)"
    return resources.ResourceRequest("worker", launch.min_workers or launch.workers, _worker_resources(launch), {}, remedy)


def _worker_resources(launch: LaunchConfig) -> dict[str, float]:
    return {"CPU": launch.cpus_per_worker} | ({"GPU": launch.gpus_per_worker} if launch.gpus_per_worker else {})


def _trainer(config: RunConfig, callbacks: list[UserCallback] | None, lease_server: ActorHandle | None) -> _Trainer:
    launch = config.launch
    scaling: dict[str, Any] = {"num_workers": launch.workers}
    if launch.min_workers is not None:
        os.environ.setdefault(*_WAIT_FOR_NODES)
        workers = (launch.min_workers, launch.workers)
        scaling = {"num_workers": workers, "elastic_resize_monitor_interval_s": launch.resize_every}
    return _Trainer(
        _worker_main,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "storage": storage.settings().model_dump(),
            "lease_server": lease_server,
            "group": uuid.uuid4().hex,  # restarted workers take over the locks of their predecessors
        },
        torch_config=GroupConfig(backend="nccl" if launch.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            **scaling, use_gpu=bool(launch.gpus_per_worker), resources_per_worker=_worker_resources(launch)
        ),
        run_config=ray.train.RunConfig(
            # an explicit name: the same output resumes, another output starts from scratch
            name=_EXPERIMENT,
            **storage_arguments(storage.join(config.output, "ray")),
            failure_config=FailureConfig(max_failures=launch.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[_EndOnUserError(_failure(config)), *(callbacks or ())],  # type: ignore[list-item]  # Ray's base is private
        ),
    )


def storage_arguments(url: str) -> dict[str, Any]:
    """Return Ray's arguments for storing at ``url`` through this package's filesystem, with its settings and retries."""
    if storage.local_path(url) is not None:
        return {"storage_path": url}
    filesystem, path = storage.arrow_filesystem(url)
    return {"storage_path": path, "storage_filesystem": filesystem}


@redacted_errors()
def _worker_main(arguments: dict[str, Any]) -> None:
    """Run one worker. User errors and losses that are not finite would recur on every restart, so they end the run.

    Such an error may occur on one worker only (a bad shard) while the others wait for it. It is then written to a file and
    raised: Ray ends all workers and `_EndOnUserError` the run. If the object store was unavailable, Ray starts the workers
    again, and they find the file and return, or resume from the last checkpoint.
    """
    set_up_logging()
    storage.configure(StorageConfig.model_validate(arguments["storage"]))
    config = RunConfig.model_validate(arguments["config"])
    if storage.exists(_failure(config)):
        return
    runtime = RayRuntime(
        config.output, arguments["group"], leases(arguments["lease_server"]) if arguments["lease_server"] else None
    )
    try:
        run_experiment(config, runtime)
    except (UserError, TrainingError, Preempted) as error:
        if isinstance(error, StorageError) and error.transient:
            raise
        kind = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS), TrainingError.__name__)
        lines = error.problems if isinstance(error, UserError) else [str(error)]
        title = error.title if isinstance(error, UserError) else ""
        storage.write_text(_failure(config), json.dumps({"error": kind, "lines": lines, "title": title}))
        if runtime.collective.world_size > 1 and not isinstance(error, Preempted):  # which all workers raise together
            raise
    finally:
        runtime.close()


def _stop_marker(output: str) -> str:
    return storage.join(output, "ray", "stop")


def _fit(trainer: TorchTrainer, output: str) -> None:
    """Train; SIGTERM and Ctrl-C of the driver request the workers to stop.

    A trial of a sweep does not run in the main thread and does not handle signals. In the main thread, Ray Train would end
    on Ctrl-C without a checkpoint, so it runs in another thread there.
    """
    if threading.current_thread() is not threading.main_thread():
        trainer.fit()
        return
    with ThreadPoolExecutor(1, "train") as thread, stop_on_signals(lambda: _request_stop(output), STOP_EFFECT):
        thread.submit(trainer.fit).result()


def _request_stop(output: str) -> None:
    storage.write_text(_stop_marker(output), "")


def _failure(config: RunConfig) -> str:
    return storage.join(config.output, "ray", "failure.json")


def _raise_failure(config: RunConfig) -> None:
    if not storage.exists(_failure(config)):
        return
    failure = json.loads(storage.read_text(_failure(config)))
    kind = _ERRORS[failure["error"]]
    if issubclass(kind, UserError):
        raise kind(failure["lines"], failure["title"])
    raise kind("\n".join(failure["lines"]))
