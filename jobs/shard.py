r"""Packs annotations and features into shards as a Ray job; takes the arguments of `avvp data pack`.

    ray job submit --working-dir . --entrypoint-num-cpus 8 -- \
        python jobs/shard.py llp --annotations /mnt/llp --features /mnt/llp --out s3://bucket/llp --workers 8

It runs in the job's own process and its child processes, on a node with the requested CPUs, which must be able to read the
features. With launch=ray instead of --workers it runs in tasks on all nodes, which must all be able to read the features;
its own process then needs no CPUs. If it was stopped and is submitted again, it packs the missing shards.
"""

import sys

from avvp_dist.cli.main import main

if __name__ == "__main__":
    main(["data", "pack", *sys.argv[1:]])
