r"""Packs annotations and features into shards as a Ray job; the arguments are those of `avvp data pack`.

    ray job submit --working-dir . --entrypoint-num-cpus 8 -- \
        python jobs/shard.py llp --annotations /mnt/llp --features /mnt/llp --out s3://bucket/llp --workers 8

It runs in the job's own process and its children, on a node with the CPUs asked for; that node must see the features.
With launch=ray in place of --workers it runs in tasks on all nodes, which all must see the features; its own process then
needs no CPUs. Stopped, and submitted again, it goes on with the shards that are missing.
"""

import sys

from avvp_dist.cli.main import main

if __name__ == "__main__":
    main(["data", "pack", *sys.argv[1:]])
