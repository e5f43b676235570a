"""Trains on Ray: W workers of Ray Train run the same loop as a plain process."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from avvp_dist import app, storage
from avvp_dist.data.source import check_plan
from avvp_dist.dist.collective import Collective, LocalCollective, TorchCollective
from avvp_dist.errors import AvvpError, ConfigError, DataError, TrainingError, UserError
from avvp_dist.recipe import RunConfig
from avvp_dist.report.console import set_up_logging

_ERRORS: dict[str, type[AvvpError]] = {error.__name__: error for error in (ConfigError, DataError, TrainingError)}


class RayRuntime:
    """`dist.runtime.Runtime` inside a Ray Train worker; checkpoints go through Ray."""

    def __init__(self) -> None:
        self.device: torch.device = get_device()
        several = ray.train.get_context().get_world_size() > 1
        self.collective: Collective = TorchCollective() if several else LocalCollective()

    def report(self, metrics: Mapping[str, float], checkpoint: bytes | None) -> None:
        """See `Runtime`; a barrier, since Ray waits for all ranks."""
        if checkpoint is None:
            ray.train.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "checkpoint.pt").write_bytes(checkpoint)
            ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder))

    def latest_checkpoint(self) -> bytes | None:
        """See `Runtime`."""
        found = ray.train.get_checkpoint()
        if found is None:
            return None
        with found.as_directory() as folder:
            return (Path(folder) / "checkpoint.pt").read_bytes()

    def clear_checkpoints(self) -> None:
        """See `Runtime`; Ray keeps the newest two by itself."""


def train(config: RunConfig) -> dict[str, Any]:
    """Runs ``config`` on Ray workers and returns the content of result.json.

    Uses the cluster that RAY_ADDRESS names (as it does inside a Ray job), or starts Ray on this machine for the run.

    Raises:
        ConfigError, DataError: before any worker starts where that can be known.
        TrainingError: a worker's loss stopped being finite, or Ray gave up on the workers.
    """
    index, labels = app.open_data(config)
    check_plan(config.data, index, labels, config.train.batch_size, config.launch.workers)
    storage.remove(_failure(config))
    started_here = not ray.is_initialized()
    if started_here:
        _start_ray()
    try:
        _trainer(config).fit()
    except ray.train.TrainingFailedError as error:
        _raise_failure(config)
        causes = "; ".join(f"worker {rank}: {cause}" for rank, cause in getattr(error, "worker_failures", {}).items())
        raise TrainingError(f"Ray gave up after {config.launch.max_failures} restarts: {causes or error}") from error
    finally:
        if started_here:
            ray.shutdown()
    _raise_failure(config)
    return json.loads(storage.read_text(storage.join(config.output, "result.json")))


def _start_ray() -> None:
    ray.init(address=os.environ.get("RAY_ADDRESS", "local"), logging_level=logging.WARNING)


def _trainer(config: RunConfig) -> TorchTrainer:
    launch = config.launch
    resources = {"CPU": launch.cpus_per_worker} | ({"GPU": launch.gpus_per_worker} if launch.gpus_per_worker else {})
    return TorchTrainer(
        _work,
        train_loop_config={"config": config.model_dump(mode="json")},
        torch_config=TorchConfig(backend="nccl" if launch.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=launch.workers, use_gpu=bool(launch.gpus_per_worker), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            # an explicit name: the same output goes on where it stopped, another starts anew
            name="train",
            storage_path=storage.join(config.output, "ray"),
            failure_config=FailureConfig(max_failures=launch.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )


def _work(arguments: dict[str, Any]) -> None:
    """What each worker runs. Mistakes and losses gone bad would come again on every restart, so they end the run instead.

    They may come to one worker alone (a bad shard), while the others wait for it: then it fails, Ray ends them all, and the
    workers that Ray starts in their place find the failure written down and return.
    """
    set_up_logging()
    config = RunConfig.model_validate(arguments["config"])
    if storage.exists(_failure(config)):
        return
    runtime = RayRuntime()
    try:
        app.run(config, runtime)
    except (UserError, TrainingError) as error:
        kind = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS), TrainingError.__name__)
        lines = error.problems if isinstance(error, UserError) else [str(error)]
        title = error.title if isinstance(error, UserError) else ""
        storage.write_text(_failure(config), json.dumps({"error": kind, "lines": lines, "title": title}))
        if runtime.collective.world_size > 1:
            raise


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
