"""Evaluates a finished run as a Ray job; takes the arguments of `avvp evaluate`.

    ray job submit --working-dir . --entrypoint-num-gpus 1 -- python jobs/evaluate.py s3://bucket/runs/a

It runs in the job's own process. Request a GPU or CPUs with --entrypoint-num-gpus and --entrypoint-num-cpus, so that Ray
starts it on a node that has them instead of on the head.
"""

import sys

from avvp_dist.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
