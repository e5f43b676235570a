"""What a sweep would do, before it does it: stages to train and to reuse, and about how long that takes here."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from avvp_dist import storage
from avvp_dist.dist.runtime import pick_device
from avvp_dist.experiments.recipe import RunConfig, load
from avvp_dist.experiments.run import planned_stages, stage_store
from avvp_dist.experiments.sweep import SweepConfig, example, label
from avvp_dist.launch.ray_tune import prepare
from avvp_dist.launch.trial import TrialContext
from avvp_dist.methods.base import TrainStage
from avvp_dist.shards.index import Index
from avvp_dist.types import Batch

_STEPS = 3  # timed after one that is not


@dataclass(frozen=True)
class PlannedTrial:
    """One trial; each of ``stages`` says whether it is computed, shared with an earlier trial, or there already."""

    label: str
    seed: int
    stages: tuple[str, ...]


@dataclass(frozen=True)
class SweepPlan:
    """All trials known so far, and what they cost together, in lines for a person."""

    trials: tuple[PlannedTrial, ...]
    summary: tuple[str, ...]


def plan(sweep: SweepConfig, overrides: Sequence[str], output: str) -> SweepPlan:
    """What `launch.ray_tune.run` with the same arguments would do. Writes nothing and starts no Ray.

    Raises:
        ConfigError, DataError: everything that is wrong with the sweep.
    """
    storage.configure(load(sweep.recipe, [*sweep.overrides, *overrides]).storage)
    index, known = prepare(sweep, overrides)
    shared = TrialContext("", sweep, tuple(overrides), index.fingerprint, output, None, storage.settings())
    sample = known or [example(sweep, overrides, index.fingerprint)]
    stages: dict[str, str] = {}  # folder -> what the first trial that needs it does with it
    costs: dict[str, float] = {}
    measured: dict[tuple, float] = {}
    rows = []
    for todo in sample:
        config = shared.config(todo.point, todo.seed)
        finished = storage.exists(storage.join(config.output, "result.json"))
        found = []
        for planned in planned_stages(config):
            folder = planned.folder(stage_store(config))
            if folder in stages:
                found.append(
                    f"{planned.stage.name} (shared)" if stages[folder] == "new" else f"{planned.stage.name} (there)"
                )
                continue
            stages[folder] = "there" if finished or planned.finished(stage_store(config)) else "new"
            found.append(f"{planned.stage.name} ({stages[folder]})")
            if stages[folder] == "new" and isinstance(planned.stage, TrainStage):
                kind = (planned.stage.name, config.model.model_dump_json(), config.train, config.optim.name)
                if kind not in measured:
                    measured[kind] = _seconds(config, index, planned.stage)
                costs[folder] = measured[kind]
        rows.append(PlannedTrial(label(todo.point), todo.seed, ("finished",) if finished else tuple(found)))
    return SweepPlan(tuple(rows) if known else (), _summary(sweep, rows, stages, costs, bool(known)))


def _summary(
    sweep: SweepConfig, rows: Sequence[PlannedTrial], stages: dict[str, str], costs: dict[str, float], known: bool
) -> tuple[str, ...]:
    if not known:
        total = sweep.search.samples * len(sweep.seeds)
        seconds = sum(costs.values())
        return (
            f"Optuna chooses as it goes: {sweep.search.samples} settings with {len(sweep.seeds)} seeds, {total} trials",
            f"one trial takes about {_span(seconds)} here when it shares no stage, all of them at most "
            f"{_span(seconds * total)}{_at_once(sweep, seconds * total)}",
        )
    new = list(stages.values()).count("new")
    without = sum(len(row.stages) for row in rows if row.stages != ("finished",))
    seconds = sum(costs.values())
    return (
        f"stages to compute: {new}; reused: {without - new} of the {without} that the trials need",
        f"about {_span(seconds)} of one trial's resources on this machine{_at_once(sweep, seconds)}, without validation",
    )


def _at_once(sweep: SweepConfig, seconds: float) -> str:
    if "RAY_ADDRESS" in os.environ:
        return ""
    at_once = int((os.cpu_count() or 1) // sweep.cpus_per_trial) or 1
    at_once = min(at_once, sweep.concurrency or at_once)
    return f", {_span(seconds / at_once)} with {at_once} trials at once"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _seconds(config: RunConfig, index: Index, stage: TrainStage) -> float:
    """Training time of a stage, from a few steps of its network over noise."""
    device = pick_device(config.train.device)
    model = config.model.build({stream.name: stream.dim for stream in index.streams}, len(index.classes)).to(device)
    optimizer, _ = config.optim.build(model.parameters(), config.train.epochs)
    videos = min(config.train.batch_size, 128) * (1 + stage.partners)
    features = {stream.name: torch.randn(videos, index.segments, stream.dim, device=device) for stream in index.streams}
    weak = torch.ones(videos, len(index.classes), device=device)
    batch = Batch(features, weak, torch.arange(videos, device=device), videos)
    started = 0.0
    for step in range(_STEPS + 1):
        if step == 1:
            started = _now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16"):
            outputs = model(batch, cross_modal=stage.cross_modal, scoring_pass=stage.scoring_pass)
        optimizer.zero_grad(set_to_none=True)
        (outputs.video + outputs.audio + outputs.visual).sum().backward()
        optimizer.step()
    each = (_now(device) - started) / (_STEPS * min(config.train.batch_size, 128))
    train = sum(shard.samples for shard in index.shards if shard.split == "train")
    return each * train * config.train.epochs * stage.networks


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
