"""Trains in this process: alone, or as one of torchrun's ranks."""

from __future__ import annotations

from typing import Any

from avvp_dist import app
from avvp_dist.dist.runtime import LocalRuntime, stop_on_sigterm
from avvp_dist.errors import ConfigError
from avvp_dist.recipe import RunConfig


def train(config: RunConfig) -> dict[str, Any]:
    """Runs to the end and returns the content of result.json.

    Raises:
        ConfigError: several workers are asked for, which this process is not.
        Preempted: SIGTERM came; a checkpoint is left.
    """
    if config.launch.workers > 1:
        raise ConfigError(
            f"launch.workers={config.launch.workers}: launch=local is one process; use launch=ray, or, without it, "
            f"`torchrun --nproc-per-node {config.launch.workers} -m avvp_dist train {config.recipe}`"
        )
    runtime = LocalRuntime(config.output, config.train.device)
    try:
        with stop_on_sigterm(runtime.stop.set):
            return app.run(config, runtime)
    finally:
        runtime.close()
