"""Starts runs: in this process, under torchrun, or on Ray."""

from __future__ import annotations

import os
from typing import Any

from avvp_dist import storage
from avvp_dist.recipe import RunConfig


def launch(config: RunConfig) -> dict[str, Any]:
    """Trains ``config`` the way its launch section says; returns the content of result.json."""
    storage.configure(config.storage)
    if config.launch.name == "ray":
        if "RAY_ADDRESS" not in os.environ:  # a Ray of our own listens on loopback only; read when ray is imported
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        from avvp_dist.launch.ray_train import train  # ray takes seconds to import and may not be installed

        return train(config)
    from avvp_dist.launch.local import train as train_here

    return train_here(config)
