"""JoMoLD's denoising step: videos per second of this package and of a transcription of the published loop.

    python -m benchmarks.train_step [--videos 512] [--rounds 3] [--out benchmarks/results/train_step.json]

Both train the same network on the same synthetic videos with the published batch size of 128: the published loop from .npy
files (in the page cache after the first round), this package from shards held in memory. Rounds alternate, so that a slower
machine affects both; medians are compared. The published loop counts with its best number of DataLoader workers.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from avvp_dist.datasets import llp, synthetic
from avvp_dist.datasets.catalog import LLP
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import load
from avvp_dist.loading import resident
from avvp_dist.loading.plan import EpochPlan
from avvp_dist.shards import pack as packing
from avvp_dist.shards.cache import ShardCache
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.shards.reading import ShardStore
from avvp_dist.train.step import TrainStep
from avvp_dist.types import TrainPosition
from benchmarks import published_loop

# means of the published ratio file; the number of removed labels hardly affects the cost of a step
RATIOS = {"audio": dict.fromkeys(LLP.classes, 0.05), "visual": dict.fromkeys(LLP.classes, 0.13) | {"Speech": 0.99}}


def package_loop(packed: Path, device: str, precision: str) -> tuple[Callable[[], tuple[int, float]], float]:
    """Return a function that trains one epoch and returns (videos, seconds), and the seconds to load the split."""
    config = load("jomold", [f"train.precision={precision}"])
    runtime = LocalRuntime(str(packed / "none"), device)
    index = Index.load(str(packed))
    started = time.perf_counter()
    labels = read_labels(str(packed), index)["train"]
    split = resident.load(ShardStore(str(packed), ShardCache()), index, labels, runtime.device, getattr(torch, precision))
    loaded = time.perf_counter() - started
    model = config.model.build({stream.name: stream.shape for stream in LLP.streams}, len(LLP.classes)).to(runtime.device)
    stage = config.method.build(LLP.classes, LLP.segments).stages[-1]
    stage.start({"ratios": RATIOS}, runtime.device)
    optimizer, _ = config.optim.build(model.parameters())
    step = TrainStep(model, optimizer, stage, runtime, seed=0, bfloat16=precision == "bfloat16")
    epoch = iter(range(1, 1_000_000))

    def train() -> tuple[int, float]:
        plan = EpochPlan(len(split), config.train.batch_size, 0, next(epoch))
        started = time.perf_counter()
        order = plan.order()
        for number in range(plan.steps):
            batch = split.batch(order[plan.rank_slice(number, 0, 1)], plan.total(number))
            step(batch, TrainPosition("denoise", plan.epoch, number, 25, plan.steps))
        _wait(runtime.device)
        return plan.videos, time.perf_counter() - started

    return train, loaded


def published_epoch(official: Path, device: str, workers: int) -> Callable[[], tuple[int, float]]:
    """Return a function that trains one epoch of the published loop and returns (videos, seconds)."""
    rows = [tuple(line.split("\t")) for line in (official / "AVVP_train.csv").read_text().splitlines()[1:]]
    loader = published_loop.build(official / "feats", rows, num_workers=workers, pin_memory=device != "cpu")  # type: ignore[arg-type]
    model = published_loop.Network().to(device)
    optimizer = published_loop.make_optimizer(model)
    ratios = [list(RATIOS[modality].values()) for modality in ("audio", "visual")]

    def train() -> tuple[int, float]:
        found = published_loop.train_epoch(model, loader, optimizer, *ratios, device=device)  # type: ignore[arg-type]
        _wait(torch.device(device))
        return found

    return train


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        official, packed = Path(scratch) / "official", Path(scratch) / "packed"
        synthetic.write(str(official), videos=None, seed=0, splits=(arguments.videos, 1, 1), workers=1)
        records = llp.read_annotations(official).records
        packing.pack(LLP, records, llp.OfficialFeatures(official / "feats"), str(packed), provenance={}, workers=1)
        loops = {f"published, {w} workers": published_epoch(official, arguments.device, w) for w in (0, 1, 2)}
        loaded = {}
        for precision in ("float32", "bfloat16"):
            loops[f"ours, {precision}"], loaded[precision] = package_loop(packed, arguments.device, precision)
        speeds: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(arguments.rounds + 1):
            for name, train in loops.items():
                videos, seconds = train()
                if number:  # the first round is a warm-up
                    speeds[name].append(videos / seconds)
    median = {name: statistics.median(values) for name, values in speeds.items()}
    baseline = max(value for name, value in median.items() if name.startswith("published"))
    report = {
        "what": "JoMoLD denoising step, synthetic videos, batch 128",
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {arguments.device}",
        "torch": torch.__version__,
        "videos": arguments.videos,
        "rounds": arguments.rounds,
        "videos_per_second": speeds,
        "median": median,
        "ratio_to_best_published": {name: value / baseline for name, value in median.items() if name.startswith("ours")},
        "seconds_to_load_the_split_once": loaded,
    }
    for name, value in median.items():
        print(f"{name:22} {value:8.1f} videos/s   {value / baseline:5.2f} x")
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
