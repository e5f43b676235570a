"""Eight trials over JoMoLD's denoising keys, run in four ways, one after the other.

    python -m benchmarks.sweep [--videos N] [--epochs E] [--out FILE]

bare        two plain processes with four trials each and a shared stage store: the time of the training itself
shared      `avvp sweep`: trials inside the Tune function, stages shared
not shared  the same, without sharing stages between trials
nested      a TorchTrainer with one worker inside each trial, without sharing stages: the usual way

Times are wall-clock times that include the start of Ray, but not the creation of data or the first import of the driver.
Synthetic data.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

import ray
import torch
from ray import tune

from avvp_dist import storage
from avvp_dist.datasets import synthetic
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import RunConfig
from avvp_dist.experiments.run import run_experiment
from avvp_dist.experiments.sweep import SweepConfig, sweep_points, trials
from avvp_dist.launch import ray_train, ray_tune
from avvp_dist.launch.trial import TrialContext

SWEEP = SweepConfig.model_validate(
    {
        "title": "benchmark",
        "recipe": "jomold",
        "space": {"method.warmup_epochs": {"grid": [0.3, 0.6, 0.9, 1.2]}, "method.rounding": {"grid": ["floor", "carry"]}},
        "overrides": ["method.warmup=linear"],
        "seeds": [1],
    }
)


class UnsharedContext(TrialContext):
    """A context whose trials do not share stages."""

    def config(self, setting: Mapping[str, Any], seed: int, run: str | None = None) -> RunConfig:
        """See `TrialContext`."""
        return super().config(setting, seed, run).model_copy(update={"store": None})


def bare(context: TrialContext, todo: list[tuple[dict, int]]) -> None:
    """Run trials in one of the two plain processes."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    for setting, seed in todo:
        config = context.config(setting, seed)
        run_experiment(config, LocalRuntime(config.output, "cpu"))


def nested(chosen: Mapping[str, Any], *, context: TrialContext) -> None:
    """Run a trial in the usual way, with its own trainer."""
    config = context.config(chosen["trial"]["setting"], chosen["trial"]["seed"])
    launch = config.launch.model_copy(update={"cpus_per_worker": 0.9})  # with the driver's 0.1, two trials fit two cores
    ray_train.train(config.model_copy(update={"launch": launch}))
    tune.report({"score": 0.0})


def timed_bare(context: TrialContext, todo: list[tuple[dict, int]]) -> float:
    """Return the seconds of two processes after both have imported everything."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2) as pool:
        pool.map(time.sleep, [1.0, 1.0], chunksize=1)  # both have started and imported this module
        started = time.perf_counter()
        pool.starmap(bare, [(context, todo[0::2]), (context, todo[1::2])], chunksize=1)
        return time.perf_counter() - started


def timed_sweep(kind: type[TrialContext], overrides: list[str], output: str) -> float:
    """Return the seconds of `avvp sweep`."""
    ray_tune.TrialContext = kind  # type: ignore[misc]
    started = time.perf_counter()
    content = ray_tune.run("benchmark", SWEEP, overrides=overrides, output=output)
    assert all(row["status"] == "finished" for row in content["trials"]), content["trials"]
    return time.perf_counter() - started


def timed_nested(context: TrialContext, todo: list[tuple[dict, int]]) -> float:
    """Return the seconds of the usual way."""
    started = time.perf_counter()
    ray_train.start_ray(log_to_driver=False)
    grid = [{"setting": setting, "seed": seed} for setting, seed in todo]
    tune.Tuner(
        tune.with_resources(tune.with_parameters(nested, context=context), {"cpu": 0.1}),
        param_space={"trial": tune.grid_search(grid)},
        tune_config=tune.TuneConfig(max_concurrent_trials=2),
        run_config=tune.RunConfig(name="tune", storage_path=context.output, verbose=0),
    ).fit()
    ray.shutdown()
    finished = [storage.exists(storage.join(context.config(*each).output, "result.json")) for each in todo]
    assert all(finished), finished
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data"
        synthetic.write(data, videos=None, splits=(arguments.videos, 100, 100), seed=0, layout="shards")
        overrides = [f"data={data}", f"train.epochs={arguments.epochs}", "tracking=none", "train.device=cpu"]
        known = trials(SWEEP, sweep_points(SWEEP), overrides, "")
        todo = [(each.point, each.seed) for each in known]
        context = TrialContext("benchmark", SWEEP, tuple(overrides), "", f"{folder}/bare", None, storage.settings())
        seconds = {"bare": timed_bare(context, todo)}
        seconds["shared"] = timed_sweep(TrialContext, overrides, f"{folder}/shared")
        seconds["not shared"] = timed_sweep(UnsharedContext, overrides, f"{folder}/unshared")
        seconds["nested"] = timed_nested(UnsharedContext(**vars(replace(context, output=f"{folder}/nested"))), todo)
    report = {
        "videos": arguments.videos,
        "epochs": arguments.epochs,
        "trials": len(todo),
        "cores": os.cpu_count(),
        "seconds": seconds,
        "overhead_over_bare": seconds["shared"] / seconds["bare"] - 1,
        "times_faster_than_nested": seconds["nested"] / seconds["shared"],
        "times_faster_than_not_shared": seconds["not shared"] / seconds["shared"],
    }
    for name, value in seconds.items():
        print(f"{name:12} {value:7.1f} s   {value / seconds['shared']:5.2f} x")
    print(f"overhead over bare training {report['overhead_over_bare']:.0%}")
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
