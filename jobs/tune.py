"""Runs a sweep as a Ray job; takes the arguments of `avvp sweep`.

    ray job submit --working-dir . -- python jobs/tune.py jomold-denoising data=s3://bucket/llp --output s3://bucket/sweeps/a

The job's log ends with the table of trials. If it is submitted again with the same output (or
`--resume s3://bucket/sweeps/a`), the sweep resumes with the trials that are left.
"""

import sys

from avvp_dist.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
