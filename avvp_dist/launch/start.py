"""Starts runs and sweeps: in this process, under torchrun, or on Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from avvp_dist import storage
from avvp_dist.dist.world import rank
from avvp_dist.experiments.recipe import LaunchConfig, RunConfig, load
from avvp_dist.experiments.sweep import SweepConfig, with_metric
from avvp_dist.launch import ray_environment, ray_job
from avvp_dist.shards import worker_pool
from avvp_dist.storage import locks
from avvp_dist.storage.probe import refuse_unwritable
from avvp_dist.text.credentials import redact_all, redact_setting
from avvp_dist.tracking.address import check_address

if TYPE_CHECKING:
    from avvp_dist.launch.sweep_plan import SweepPlan


def launch_run(config: RunConfig) -> dict[str, Any]:
    """Run ``config`` as its launch section says and return the content of result.json.

    Raises:
        ConfigError: the run is invalid, the address of its tracking server can never work, or its output is in the folder of
            a Ray job.
    """
    storage.configure(config.storage)
    check_address(config.tracking)
    config = _for_ray_job(config)
    if rank(os.environ) == 0:
        refuse_unwritable(folders=_output_folders(config), files=_files_blocked_by_folders(config))
    if config.launch.name == "ray":
        ray_environment.prepare()
        from avvp_dist.launch.ray_train import train  # ray takes seconds to import and may not be installed

        return train(config)
    from avvp_dist.launch.local import train as train_here

    return train_here(config)


def launch_sweep(name: str, spec: SweepConfig, overrides: Sequence[str], output: str) -> dict[str, Any]:
    """Run a sweep with absolute paths (see `sweep.with_absolute_paths`) on Ray Tune; see `launch.ray_tune.run`.

    Raises:
        ConfigError: the sweep is invalid, or its output is in the folder of a Ray job.
    """
    overrides = [redact_setting(override) for override in overrides]
    base = load(spec.recipe, [*spec.overrides, *overrides])
    spec = with_metric(spec, base)
    check_address(base.tracking)
    if ray_job.submission_id():
        _refuse_job_folder(base, output)
    storage.configure(base.storage)
    refuse_unwritable(folders={"--output": output})
    overrides = redact_all(overrides)  # Ray Tune writes them to a file
    ray_environment.prepare()
    from avvp_dist.launch import ray_tune

    with locks.lock_folder(storage.absolute(output)):
        return ray_tune.run(name, spec, overrides=overrides, output=output)


def pack_pool(name: str, wait: float = LaunchConfig().wait) -> worker_pool.OpenPool:
    """Return the ``open_pool`` of `shards.pack.pack`: local processes, or tasks of a Ray cluster.

    Args:
        name: ``local`` or ``ray``.
        wait: seconds to wait until a cluster can run a task.
    """
    if name == "local":
        return worker_pool.pool
    ray_environment.prepare()
    from avvp_dist.launch import ray_pack

    return partial(ray_pack.pool, wait=wait)


def plan_sweep(spec: SweepConfig, overrides: Sequence[str], output: str) -> SweepPlan:
    """Return what `launch_sweep` would do, see `launch.sweep_plan.plan`."""
    base = load(spec.recipe, [*spec.overrides, *overrides])
    spec = with_metric(spec, base)
    check_address(base.tracking)
    ray_environment.prepare()
    from avvp_dist.launch import sweep_plan

    return sweep_plan.plan(spec, overrides, output)


def _for_ray_job(config: RunConfig) -> RunConfig:
    """Check that results outlast the Ray job, if this is one, and tag the tracked run with it."""
    _refuse_job_folder(config, config.output)
    tags = {**config.tracking.tags, **ray_job.tags()}
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"tags": tags})})


def _output_folders(config: RunConfig) -> dict[str, str | None]:
    """Return the folders that a run writes to, by the key that sets them; on disk, including existing subfolders."""
    folders = {"output": config.output, "store": config.store}
    path = storage.local_path(config.output)
    if path is not None:
        own = ["checkpoints", "figures", *(["stages"] if config.store is None else [])]
        own += ["tracking"] if config.tracking.name != "none" else []
        folders |= {f"output ({name})": str(path / name) for name in own if os.path.lexists(path / name)}
    return folders


def _files_blocked_by_folders(config: RunConfig) -> dict[str, str | None]:
    """Return the files of a run that cannot be written because a folder of their name exists."""
    path = storage.local_path(config.output)
    names = ("config.yaml", "result.json", "model.safetensors", "per_video.npz", "history.json")
    return {f"output ({name})": str(path / name) for name in names if path is not None and (path / name).is_dir()}


def _refuse_job_folder(config: RunConfig, output: str) -> None:
    uri = config.tracking.uri if config.tracking.name != "none" else None
    ray_job.refuse_own_folder({"output": output, "store": config.store, "tracking.uri": uri})
