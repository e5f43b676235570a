r"""Trains a recipe as a Ray job; the arguments are those of `avvp train`, with launch=ray unless they say otherwise.

    ray job submit --working-dir . -- \
        python jobs/train.py jomold data=s3://bucket/llp output=s3://bucket/runs/a launch.workers=4

The job's log has an epoch a line, the MLflow run and the table of scores. It succeeds (exit code 0) when the run is
finished. Submitted again with the same output, it goes on where it stopped.
"""

import sys

from avvp_dist.cli.main import main

if __name__ == "__main__":
    recipe, overrides = sys.argv[1:2], sys.argv[2:]
    main(["train", *recipe, *(["launch=ray"] if recipe else []), *overrides])
