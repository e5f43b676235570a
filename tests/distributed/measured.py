"""One of three ranks: the same steps measured and not, one rank always late. Run by test_waiting_ranks.py."""

import json
import sys
import time
from pathlib import Path

import torch

from avvp_dist.datasets.catalog import LLP
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import load
from avvp_dist.train.step import TrainStep
from avvp_dist.train.timing import PhaseTimes
from avvp_dist.types import Batch, TrainPosition

STEPS, LATE, ROWS = 3, 0.5, 5


def main(folder: Path) -> None:
    runtime = LocalRuntime("none", "cpu")
    rank, world = runtime.collective.rank, runtime.collective.world_size
    config = load("jomold", ["model.width=32", "model.feedforward=32", "method.warmup=linear"])
    weights, seconds = [], {}
    for times in (None, PhaseTimes(runtime.device)):  # the first iteration warms up
        torch.manual_seed(0)
        model = config.model.build({stream.name: stream.shape for stream in LLP.streams}, len(LLP.classes))
        stage = config.method.build(LLP.classes, LLP.segments).stages[-1]
        half = dict.fromkeys(LLP.classes, 0.5)
        stage.start({"ratios": {"audio": half, "visual": half}}, runtime.device)
        optimizer, _ = config.optim.build(model.parameters())
        step = TrainStep(model, optimizer, stage, runtime, seed=0, times=times)
        torch.manual_seed(1 + rank)
        for number in range(STEPS):
            streams = {stream.name: torch.rand(ROWS, LLP.segments, stream.dim) for stream in LLP.streams}
            weak = (torch.rand(ROWS, len(LLP.classes)) < 0.3).float()
            batch = Batch(streams, weak, torch.arange(ROWS), ROWS * world)
            runtime.collective.all_reduce_sum(torch.zeros(1))  # all ranks start at the same time, except for rank 1
            if rank == 1:
                time.sleep(LATE)
            state = torch.get_rng_state()
            if times is None:
                step(batch, TrainPosition("denoise", 3, number, 25, STEPS))
            else:
                with times.measure("step"):
                    step(batch, TrainPosition("denoise", 3, number, 25, STEPS))
            torch.set_rng_state(state)
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        seconds = times.take() if times else seconds
    same = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    (folder / f"{rank}.json").write_text(json.dumps({"same": same, **seconds}))
    runtime.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
