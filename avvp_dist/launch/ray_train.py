"""Trains on Ray: W workers of Ray Train run the same loop as a plain process."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
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
from avvp_dist.experiments.recipe import LaunchConfig, RunConfig
from avvp_dist.experiments.result import read_result
from avvp_dist.experiments.run import open_data, run_experiment
from avvp_dist.launch import resources
from avvp_dist.launch.leases import Lease, leases
from avvp_dist.launch.local import STOP_EFFECT
from avvp_dist.launch.periodic import PeriodicTask
from avvp_dist.launch.ray_group import GroupConfig
from avvp_dist.launch.ray_metrics import RunMetrics
from avvp_dist.launch.ray_start import start_ray
from avvp_dist.launch.signals import stop_on_signals
from avvp_dist.loading.split import check_plan
from avvp_dist.report.console import set_up_logging
from avvp_dist.storage import locks
from avvp_dist.storage.config import StorageConfig
from avvp_dist.text.credentials import errors_without_secrets

_log = logging.getLogger(__name__)
_KINDS = (ConfigError, DataError, StorageError, TrainingError, Preempted)
_ERRORS: dict[str, type[AvvpError]] = {error.__name__: error for error in _KINDS}
_EXPERIMENT, _CHECKPOINT, _STATE = "train", "checkpoint_", "checkpoint.pt"  # folders of Ray's, and a file of ours in them
_STOP_POLL_SECONDS = 2.0  # seconds between two looks for the mark that asks a run to stop
_CHECKPOINT_RECORD = "checkpoint_manager_snapshot.json"  # Ray's list of the checkpoints it knows
# Ray looks for dead nodes every 20 seconds and until then waits for them, by default a minute a time
_WAIT_FOR_NODES = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")


class RayRuntime:
    """`dist.runtime.Runtime` inside a Ray Train worker; checkpoints go through Ray."""

    launcher = "ray"
    lineage = ""

    def __init__(self, output: str, group: str, lease: Lease | None = None) -> None:
        self._stop_marker = _stop_marker(output)
        self._folder = storage.join(output, "ray", _EXPERIMENT)
        self._stop = threading.Event()
        # an object store answers in 20 to 100 ms, for which no step should wait
        self._watch = PeriodicTask(
            "looking for the mark that asks this run to stop", self._poll_stop_marker, _STOP_POLL_SECONDS
        )
        self._lease, self._group = lease, group
        self.device: torch.device = get_device()
        several = ray.train.get_context().get_world_size() > 1
        self.collective: Collective = TorchCollective() if several else LocalCollective()
        self._metrics = RunMetrics(output, self.collective.rank)

    def close(self) -> None:
        """Ends what goes on beside the run."""
        self._watch.stop()
        self._metrics.close()

    def report(self, metrics: Mapping[str, Any], checkpoint: bytes | None) -> None:
        """See `Runtime`; a barrier, since Ray waits for all ranks. Epochs become Ray's custom metrics too."""
        self._metrics.epoch(metrics)
        if checkpoint is None:
            ray.train.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _STATE).write_bytes(checkpoint)
            ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder))

    def checkpoints(self) -> list[str]:
        """See `Runtime`; Ray names the newest. Without Ray's record (`_drop_damaged_record`) all in the folder count."""
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
        """See `Runtime`; the driver leaves a mark in the run's folder, and a thread of rank 0 looks for it."""
        if self.collective.rank == 0:
            self._watch.start()
        return self._stop.is_set()

    def hold(self, output: str) -> AbstractContextManager[None]:
        """See `Runtime`; the driver holds it, and its workers come and go."""
        return nullcontext()

    def lease(self, store: str, key: str) -> AbstractContextManager[None]:
        """See `Runtime`; a lock in the store, and before it the sweep's lease_server where there is one."""
        return self._lease(store, key) if self._lease else locks.lease_stage(store, key, self._group, self.stop_requested)

    def clear_checkpoints(self) -> None:
        """See `Runtime`; Ray keeps the newest two by itself."""

    def _poll_stop_marker(self) -> None:
        if storage.exists(self._stop_marker):
            self._stop.set()


def train(
    config: RunConfig,
    callbacks: list[UserCallback] | None = None,
    lease_server: ActorHandle | None = None,
    patience: float | None = None,
) -> dict[str, Any]:
    """Runs ``config`` on Ray workers and returns the content of result.json.

    Uses the cluster that RAY_ADDRESS names (as it does inside a Ray job), or starts Ray on this machine for the run.

    Args:
        config: the run.
        callbacks: told of every report of the workers.
        lease_server: gives out the stages that this run shares with others (see `launch.claims`).
        patience: see `locks.hold_folder`.

    Raises:
        ConfigError, DataError: before any worker starts where that can be known; too few resources; or another run works on
            the output.
        Preempted: SIGTERM or Ctrl-C came; a checkpoint is left.
        TrainingError: a worker's loss stopped being finite, or Ray gave up on the workers.
    """
    index, labels = open_data(config)
    check_plan(config.data, index, labels, config.train.batch_size, config.launch.workers)
    with locks.hold_folder(config.output, patience=patience):
        return _train(config, callbacks, lease_server)


def _train(config: RunConfig, callbacks: list[UserCallback] | None, lease_server: ActorHandle | None) -> dict[str, Any]:
    """What `train` does once it has the output for itself."""
    for leftover in (_failure(config), _stop_marker(config.output)):
        storage.remove(leftover)
    started_here = not ray.is_initialized()
    if started_here:
        start_ray()
    try:
        if lease_server is None:  # else a trial: its sweep has asked for all of them
            resources.wait_for(_resource_request(config.launch), config.launch.wait, "launch.wait")
        _drop_damaged_record(config.output)
        _fit(_trainer(config, callbacks, lease_server), config.output)
    except ray.train.TrainingFailedError as error:
        _raise_failure(config)
        causes = "; ".join(f"worker {rank}: {cause}" for rank, cause in getattr(error, "worker_failures", {}).items())
        raise TrainingError(f"Ray gave up after {config.launch.max_failures} restarts: {causes or error}") from error
    finally:
        if started_here:
            ray.shutdown()
    _raise_failure(config)
    return read_result(config.output)


def _drop_damaged_record(output: str) -> None:
    """Removes Ray's record of its checkpoints if Ray could not start from it.

    Ray overwrites the record in place: a driver killed at that moment leaves an empty or truncated file. The checkpoints
    themselves lie beside it, each with its checksum.
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
        _log.warning(
            "%s: damaged, lacks %s; using the checkpoints in the folder instead", record, ", ".join(sorted(missing))
        )
        storage.remove(record)


def _resource_request(launch: LaunchConfig) -> resources.ResourceRequest:
    """What a run needs to start; an elastic one starts with less than it asks for."""
    fewer = "fewer launch.workers, or less for each (launch.cpus_per_worker, launch.gpus_per_worker)"
    return resources.ResourceRequest("worker", launch.min_workers or launch.workers, _worker_resources(launch), {}, fewer)


def _worker_resources(launch: LaunchConfig) -> dict[str, float]:
    return {"CPU": launch.cpus_per_worker} | ({"GPU": launch.gpus_per_worker} if launch.gpus_per_worker else {})


def _trainer(config: RunConfig, callbacks: list[UserCallback] | None, lease_server: ActorHandle | None) -> TorchTrainer:
    launch = config.launch
    scaling: dict[str, Any] = {"num_workers": launch.workers}
    if launch.min_workers is not None:
        os.environ.setdefault(*_WAIT_FOR_NODES)
        workers = (launch.min_workers, launch.workers)
        scaling = {"num_workers": workers, "elastic_resize_monitor_interval_s": launch.resize_every}
    return TorchTrainer(
        _worker_main,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "storage": storage.settings().model_dump(),
            "lease_server": lease_server,
            "group": uuid.uuid4().hex,  # workers that are started again take over what those before them had locked
        },
        torch_config=GroupConfig(backend="nccl" if launch.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            **scaling, use_gpu=bool(launch.gpus_per_worker), resources_per_worker=_worker_resources(launch)
        ),
        run_config=ray.train.RunConfig(
            # an explicit name: the same output goes on where it stopped, another starts anew
            name=_EXPERIMENT,
            **storage_arguments(storage.join(config.output, "ray")),
            failure_config=FailureConfig(max_failures=launch.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=callbacks,  # type: ignore[arg-type]  # Ray's own base class is private
        ),
    )


def storage_arguments(url: str) -> dict[str, Any]:
    """Where Ray keeps checkpoints, through our filesystem and its settings: Ray's own knows neither them nor our retries."""
    if storage.local_path(url) is not None:
        return {"storage_path": url}
    filesystem, path = storage.arrow_filesystem(url)
    return {"storage_path": path, "storage_filesystem": filesystem}


@errors_without_secrets()
def _worker_main(arguments: dict[str, Any]) -> None:
    """What each worker runs. Mistakes and losses gone bad would come again on every restart, so they end the run instead.

    They may come to one worker alone (a bad shard), while the others wait for it: then it fails, Ray ends them all, and the
    workers that Ray starts in their place find the failure written down and return. Not so an object store that was away:
    the workers are started again, from the last checkpoint.
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
        if runtime.collective.world_size > 1 and not isinstance(error, Preempted):  # which all workers agree upon
            raise
    finally:
        runtime.close()


def _stop_marker(output: str) -> str:
    return storage.join(output, "ray", "stop")


def _fit(trainer: TorchTrainer, output: str) -> None:
    """Trains; SIGTERM and Ctrl-C of the driver ask the workers to stop.

    A trial of a sweep is no main thread and leaves signals alone. In the main thread Ray Train would take Ctrl-C for an
    order to end without a checkpoint, so it gets a thread of its own there.
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
    told = json.loads(storage.read_text(_failure(config)))
    kind = _ERRORS[told["error"]]
    if issubclass(kind, UserError):
        raise kind(told["lines"], told["title"])
    raise kind("\n".join(told["lines"]))
