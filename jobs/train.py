r"""Trains a recipe as a Ray job; takes the arguments of `avvp train`, with launch=ray as the default.

    ray job submit --working-dir . -- \
        python jobs/train.py jomold data=s3://bucket/llp output=s3://bucket/runs/a launch.workers=4

The job's log contains one line per epoch, the id of the MLflow run and the table of scores. The job succeeds (exit code 0)
when the run is finished. If it is submitted again with the same output, the run resumes.
"""

import sys

from avvp_dist.cli.main import main

if __name__ == "__main__":
    recipe, overrides = sys.argv[1:2], sys.argv[2:]
    main(["train", *recipe, *(["launch=ray"] if recipe else []), *overrides])
