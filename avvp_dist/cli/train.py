"""The command ``avvp train``: trains a recipe."""

from __future__ import annotations

import os

from avvp_dist import storage
from avvp_dist.cli.output import echo
from avvp_dist.cli.run_options import OVERRIDES, RECIPE, load_config, print_scores
from avvp_dist.dist.world import rank


def train(recipe: RECIPE, overrides: OVERRIDES = None) -> None:
    """Train a recipe: run all its stages, score the best network, draw figures, and track the run.

    data=URL is required. Running the same command again resumes from the last checkpoint and reuses finished stages. To
    train in several processes, use torchrun --nproc-per-node 2 -m avvp_dist train ..., in a Slurm job
    srun --ntasks 2 python -m avvp_dist train ..., or launch=ray launch.workers=2.

    SIGTERM and Ctrl-C write a checkpoint and end the run with exit code 75; a second Ctrl-C ends it immediately.
    """
    from avvp_dist.launch.start import launch_run  # importing torch takes seconds

    config = load_config(recipe, overrides or []).absolute()
    result = launch_run(config)
    if rank(os.environ) == 0 or config.launch.name == "ray":
        print_scores({config.recipe: result})
        echo(f"scores {storage.join(config.output, 'result.json')}")
        figures = storage.join(config.output, "figures")
        if storage.names(figures):  # none are drawn with AVVP_FIGURES=0
            echo(f"figures {figures}")
