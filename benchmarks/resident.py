"""A split in memory in W processes at the same time: the shared page cache against one copy per process.

    python -m benchmarks.resident [--videos 2000] [--rounds 3] [--out benchmarks/results/resident.json]

Every process opens the same split from local shards, which are in the page cache (the first round is a warm-up and does not
count), assembles a first batch of 128, then all batches of an epoch. Measured: seconds to the first batch, seconds for
gathering the epoch's batches, and memory: the growth of all processes together (proportional set size, which counts a page
that k processes map as 1/k for each) plus, if shared, the shards in the page cache, once. Shared and private rounds
alternate in the same processes, which start each round together; medians are compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch

from avvp_dist.datasets import synthetic
from avvp_dist.loading import resident
from avvp_dist.loading.plan import EpochPlan
from avvp_dist.shards.cache import ShardCache
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.shards.reading import ShardStore

WORLDS = (1, 2, 4)
BATCH = 128


def pss() -> int:
    """Return the proportional set size of this process, in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def work(url: str, rounds: int, barrier: Barrier, found: Queue) -> None:
    """Run one of W processes."""
    torch.set_num_threads(1)
    index = Index.load(url)
    labels = read_labels(url, index)["train"]
    for number in range(-1, rounds):
        for share in (True, False):
            gc.collect()
            barrier.wait()
            before = pss()
            barrier.wait()
            started = time.perf_counter()
            split = resident.load(ShardStore(url, ShardCache()), index, labels, share=share)
            plan = EpochPlan(len(split), BATCH, 0, 0)
            order = plan.order()
            split.batch(order[:BATCH], BATCH)
            loaded = time.perf_counter()
            for step in range(plan.steps):
                split.batch(order[plan.rank_slice(step, 0, 1)], plan.total(step))
            finished = time.perf_counter()
            barrier.wait()
            growth = pss() - before
            barrier.wait()
            del split
            if number >= 0:
                found.put((share, number, loaded - started, finished - loaded, growth))


def measure(url: str, world: int, rounds: int, shards_mb: float) -> dict[str, dict[str, float]]:
    """Return medians over rounds for one number of processes: seconds of the slowest process, memory of all."""
    context = multiprocessing.get_context("spawn")
    barrier, found = context.Barrier(world), context.Queue()
    processes = [context.Process(target=work, args=(url, rounds, barrier, found)) for _ in range(world)]
    for process in processes:
        process.start()
    rows = [found.get(timeout=300) for _ in range(2 * rounds * world)]
    for process in processes:
        process.join()
    figures = {}
    for share, name in ((True, "shared"), (False, "private")):
        by_round = [np.array([row[2:] for row in rows if row[:2] == (share, number)]) for number in range(rounds)]
        figures[name] = {
            "seconds_to_first_batch": statistics.median(values[:, 0].max() for values in by_round),
            "seconds_of_gathers": statistics.median(values[:, 1].max() for values in by_round),
            "memory_mb": statistics.median(values[:, 2].sum() for values in by_round) / 1e6 + (shards_mb if share else 0),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    # otherwise the allocator keeps freed memory of a private round, and the next one seems to need less
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)
    report = {
        "what": f"{arguments.videos} synthetic videos in W processes, in the shared page cache or a copy each",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "videos": arguments.videos,
        "rounds": arguments.rounds,
        "worlds": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        splits = (arguments.videos, 1, 1)
        synthetic.write(folder, videos=None, seed=0, layout="shards", splits=splits)
        report["features_mb"] = sum(shard.bytes for shard in Index.load(folder).shards if shard.split == "train") / 1e6
        for world in WORLDS:
            figures = measure(folder, world, arguments.rounds, report["features_mb"])
            shared, private = figures["shared"], figures["private"]
            ratio = {name: shared[name] / private[name] for name in shared}
            report["worlds"][world] = {**figures, "shared_to_private": ratio}
            print(
                f"W={world}: memory {shared['memory_mb']:.0f} MB shared, {private['memory_mb']:.0f} MB private "
                f"({ratio['memory_mb']:.2f} x); first batch after {shared['seconds_to_first_batch']:.2f} s, "
                f"{private['seconds_to_first_batch']:.2f} s ({ratio['seconds_to_first_batch']:.2f} x); gathers of an epoch "
                f"{shared['seconds_of_gathers']:.3f} s, {private['seconds_of_gathers']:.3f} s "
                f"({ratio['seconds_of_gathers']:.2f} x)"
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
