"""Trains in this process: alone, or as one of torchrun's or srun's ranks."""

from __future__ import annotations

from typing import Any

from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.errors import ConfigError
from avvp_dist.experiments.recipe import RunConfig
from avvp_dist.experiments.run import run_experiment
from avvp_dist.launch.signals import stop_on_signals

STOP_EFFECT = "a checkpoint is written at the next step that all ranks agree on"


def train(config: RunConfig) -> dict[str, Any]:
    """Runs to the end and returns the content of result.json.

    Raises:
        ConfigError: several workers are asked for, which this process is not.
        Preempted: SIGTERM or Ctrl-C came; a checkpoint is left.
    """
    if config.launch.workers > 1:
        raise ConfigError(
            f"launch.workers={config.launch.workers}: launch=local is one process; use launch=ray, or, without it, "
            f"`torchrun --nproc-per-node {config.launch.workers} -m avvp_dist train {config.recipe}`"
        )
    runtime = LocalRuntime(config.output, config.train.device)
    try:
        with stop_on_signals(runtime.stop.set, STOP_EFFECT):
            return run_experiment(config, runtime)
    finally:
        runtime.close()
