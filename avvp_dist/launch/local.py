"""Trains in this process, alone or as one rank of torchrun or srun."""

from __future__ import annotations

from typing import Any

from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.errors import ConfigError
from avvp_dist.experiments.recipe import RunConfig
from avvp_dist.experiments.run import run_experiment
from avvp_dist.launch.signals import stop_on_signals

STOP_EFFECT = "a checkpoint is written at the next step that all ranks agree on"


def train(config: RunConfig) -> dict[str, Any]:
    """Run to the end and return the content of result.json.

    Raises:
        ConfigError: the config requests several workers, but this is one process.
        Preempted: SIGTERM or Ctrl-C was received; a checkpoint was written.
    """
    if config.launch.workers > 1:
        raise ConfigError(
            f"launch.workers={config.launch.workers}: launch=local is a single process; use launch=ray, or "
            f"`torchrun --nproc-per-node {config.launch.workers} -m avvp_dist train {config.recipe}`"
        )
    runtime = LocalRuntime(config.output, config.train.device)
    try:
        with stop_on_signals(runtime.stop.set, STOP_EFFECT):
            return run_experiment(config, runtime)
    finally:
        runtime.close()
