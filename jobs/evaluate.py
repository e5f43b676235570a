"""Scores a finished run again as a Ray job; the arguments are those of `avvp evaluate`.

    ray job submit --working-dir . --entrypoint-num-gpus 1 -- python jobs/evaluate.py s3://bucket/runs/a

It runs in the job's own process: ask for a GPU or CPUs with --entrypoint-num-gpus and --entrypoint-num-cpus, and Ray starts
it on a node that has them, not on the head.
"""

import sys

from avvp_dist.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
