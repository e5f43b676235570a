"""Cost of the global noise ranking: its share of JoMoLD's denoising step with two workers.

    python -m benchmarks.ranking [--world 2] [--steps 30] [--out benchmarks/results/ranking.json]

Starts W processes with torch.distributed (gloo, or nccl with a GPU each) on this machine, trains on random features at the
published global batch of 128 and times, on rank 0, the whole step and, within it, the computation of targets: element-wise
losses, one all_gather, one sort, masks. Ranks synchronize before the timer starts, so that waiting for a slow rank does not
count as ranking.

These steps alternate with steps whose phases are measured, as in every run, which shows the cost of measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from avvp_dist.datasets.catalog import LLP
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import load
from avvp_dist.train.step import TrainStep
from avvp_dist.train.timing import PhaseTimes
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition
from benchmarks.train_step import RATIOS

BATCH = 128


def work(steps: int, out: str) -> None:
    """Run one rank; rank 0 writes the results to ``out``."""
    runtime = LocalRuntime("none")
    collective, device = runtime.collective, runtime.device
    config = load("jomold")
    stage = config.method.build(LLP.classes, LLP.segments).stages[-1]
    stage.start({"ratios": RATIOS}, device)

    def network(times: PhaseTimes | None) -> TrainStep:
        torch.manual_seed(0)
        model = config.model.build({stream.name: stream.shape for stream in LLP.streams}, len(LLP.classes)).to(device)
        return TrainStep(model, config.optim.build(model.parameters())[0], stage, runtime, seed=0, times=times)

    times = PhaseTimes(device)
    train, measured = network(None), network(times)
    local = BATCH // collective.world_size
    streams = {stream.name: torch.rand(local, LLP.segments, stream.dim, device=device) for stream in LLP.streams}
    weak = (torch.rand(local, len(LLP.classes), device=device) < 0.07).float()
    batch = Batch(streams, weak, torch.arange(local, device=device), BATCH)
    make_targets = stage.targets
    ranking: list[float] = []

    def timed(outputs: Outputs, batch: Batch, progress: TrainPosition, _: object) -> Targets:
        collective.all_reduce_sum(torch.zeros(1, device=device))
        started = _now(device)
        targets = make_targets(outputs, batch, progress, collective)
        ranking.append(_now(device) - started)
        return targets

    whole: list[float] = []
    ratios: list[float] = []
    for number in range(steps + 3):
        # every second step runs without the timer of the ranking, so that the whole step is timed without it
        stage.targets = timed if number % 2 else make_targets  # type: ignore[method-assign]
        progress = TrainPosition("denoise", 1, number, 25, 79)
        started = _now(device)
        train(batch, progress)
        if number % 2 == 0:
            whole.append(_now(device) - started)
            started = _now(device)
            with times.measure("data_wait"), times.measure("step"):
                measured(batch, progress)
            ratios.append((_now(device) - started) / whole[-1])
    if collective.rank == 0:
        step, part, cost = statistics.median(whole[2:]), statistics.median(ranking[1:]), statistics.median(ratios[2:])
        figures = {"world": collective.world_size, "step_ms": 1e3 * step, "ranking_ms": 1e3 * part, "share": part / step}
        figures["measured_to_unmeasured_step"] = cost
        print(f"step {1e3 * step:.1f} ms, ranking {1e3 * part:.2f} ms: {100 * part / step:.2f} % of the step")
        print(f"measuring: {cost:.4f} x the step")
        if out:
            Path(out).write_text(json.dumps({"device": str(device), "torch": torch.__version__, **figures}, indent=1) + "\n")
    runtime.close()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        work(arguments.steps, arguments.out)
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.world}"]
    sys.exit(
        subprocess.run([*torchrun, "-m", "benchmarks.ranking", *sys.argv[1:]], cwd=Path(__file__).parents[1]).returncode
    )


if __name__ == "__main__":
    main()
