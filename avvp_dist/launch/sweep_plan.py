"""The plan of a sweep for `avvp sweep --dry-run`: stages to train and to reuse, and an estimate of the time they take."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from avvp_dist import storage
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.dist.world import World
from avvp_dist.experiments.recipe import RunConfig, load
from avvp_dist.experiments.run import planned_stages, stage_store
from avvp_dist.experiments.sweep import SweepConfig, example, label
from avvp_dist.launch.ray_tune import prepare
from avvp_dist.launch.trial import TrialContext
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods.base import CollectStage, Stage, TrainStage
from avvp_dist.models.co_trained import build_networks
from avvp_dist.shards.index import Index
from avvp_dist.train.step import TrainStep
from avvp_dist.types import Batch, Refined, TrainPosition

_STEPS = 3  # timed steps, after one warm-up step
_LARGEST_BATCH = 128  # of a timed step; the time per video hardly changes beyond it


@dataclass(frozen=True)
class PlannedTrial:
    """One trial. Each of ``stages`` states whether it is new, shared with an earlier trial, or already stored."""

    label: str
    seed: int
    stages: tuple[str, ...]


@dataclass(frozen=True)
class SweepPlan:
    """The trials that are known in advance, and a summary of their cost as lines of text."""

    trials: tuple[PlannedTrial, ...]
    summary: tuple[str, ...]


def plan(sweep: SweepConfig, overrides: Sequence[str], output: str) -> SweepPlan:
    """Return what `launch.ray_tune.run` would do with the same arguments. Writes nothing and does not start Ray.

    Raises:
        ConfigError, DataError: lists every problem of the sweep.
    """
    storage.configure(load(sweep.recipe, [*sweep.overrides, *overrides]).storage)
    index, known = prepare(sweep, overrides)
    shared = TrialContext("", sweep, tuple(overrides), index.fingerprint, output, None, storage.settings())
    trials = known or [example(sweep, overrides, index.fingerprint)]
    stages: dict[str, str] = {}  # folder -> "new" or "stored", as the first trial that uses the stage finds it
    costs: dict[str, float] = {}  # folder -> seconds
    measured: dict[tuple, float] = {}
    rows = []
    for trial in trials:
        config = shared.config(trial.point, trial.seed)
        finished = storage.exists(storage.join(config.output, "result.json"))
        states = []
        all_stages = planned_stages(config)
        for planned in all_stages:
            stage, folder = planned.stage, planned.folder(stage_store(config))
            if folder in stages:
                states.append(f"{stage.name} ({'shared' if stages[folder] == 'new' else 'stored'})")
                continue
            stages[folder] = "stored" if finished or planned.finished(stage_store(config)) else "new"
            states.append(f"{stage.name} ({stages[folder]})")
            if stages[folder] == "new" and isinstance(stage, TrainStage):
                # other settings hardly change the time of a step
                size = (stage.partners, stage.networks, config.model.model_dump_json())
                kind = (config.method.name, stage.name, size, config.train, config.optim.name)
                if kind not in measured:
                    measured[kind] = _seconds(config, index, stage, [each.stage for each in all_stages])
                costs[folder] = measured[kind]
        rows.append(PlannedTrial(label(trial.point), trial.seed, ("finished",) if finished else tuple(states)))
    return SweepPlan(tuple(rows) if known else (), _summary(sweep, rows, stages, costs, bool(known)))


def _summary(
    sweep: SweepConfig, rows: Sequence[PlannedTrial], stages: Mapping[str, str], costs: Mapping[str, float], known: bool
) -> tuple[str, ...]:
    if not known:
        total = sweep.search.samples * len(sweep.seeds)
        seconds = sum(costs.values())
        return (
            f"Optuna chooses settings during the sweep: {sweep.search.samples} settings with {len(sweep.seeds)} seeds, "
            f"{total} trials",
            f"the training steps of one trial take {_span(seconds)} on this machine if it shares no stage, "
            f"of all trials at most {_span(seconds * total)}{_in_parallel(sweep, seconds * total)}",
        )
    new = list(stages.values()).count("new")
    needed = sum(len(row.stages) for row in rows if row.stages != ("finished",))
    seconds = sum(costs.values())
    return (
        f"stages to compute: {new}; reused: {needed - new} of the {needed} that the trials need",
        f"their training steps take {_span(seconds)} on this machine, one trial after another{_in_parallel(sweep, seconds)}",
    )


def _in_parallel(sweep: SweepConfig, seconds: float) -> str:
    if "RAY_ADDRESS" in os.environ:
        return ""
    count = int((os.cpu_count() or 1) // sweep.cpus_per_trial) or 1
    count = min(count, sweep.concurrency or count)
    return f", {_span(seconds / count)} with {count} trials in parallel"


def _span(seconds: float) -> str:
    if seconds < 1:
        return "less than 1 s"
    if seconds < 100:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"


def _seconds(config: RunConfig, index: Index, stage: TrainStage, stages: Sequence[Stage]) -> float:
    """Estimate the training time of a stage from a few of its training steps on random features.

    Args:
        stages: all stages of the method, ``stage`` among them.
    """
    runtime = LocalRuntime(config.output, config.train.device, World())  # writes nothing before the first report

    def build() -> nn.Module:
        return config.model.build(index.shapes, len(index.classes)).to(runtime.device)

    videos = min(config.train.batch_size, _LARGEST_BATCH)
    batch = _random_batch(config, index, videos, stage.partners, runtime.device)
    sources = [each for each in stages if isinstance(each, CollectStage) and each.name in stage.needs]
    artifacts = {source.name: _artifact(source, build(), config, index, videos, runtime) for source in sources}
    if stage.labels_from:
        batch = replace(batch, refined=_refined(artifacts[stage.labels_from], runtime.device))
    stage.start(artifacts, runtime.device)
    model, _ = build_networks(build, stage.networks)
    optimizer, _ = config.optim.build(model.parameters(), config.train.epochs)
    bfloat16, clip_norm = config.train.precision == "bfloat16", config.optim.clip_norm
    step = TrainStep(model, optimizer, stage, runtime, seed=config.seed, bfloat16=bfloat16, clip_norm=clip_norm)
    last = config.train.epochs - 1  # late in training, when denoising is fully active
    scan = _scan_seconds(stage, step.teacher.network if step.teacher else model, batch, last + 1, runtime, bfloat16)
    started = 0.0
    for number in range(1 + _STEPS):
        if number == 1:
            started = _now(runtime.device)
        step(batch, TrainPosition(stage.name, last, number, config.train.epochs, 1 + _STEPS))
    per_video = (_now(runtime.device) - started) / (_STEPS * videos) + scan / videos
    train_videos = sum(shard.samples for shard in index.shards if shard.split == "train")
    return per_video * train_videos * config.train.epochs


def _scan_seconds(
    stage: TrainStage, model: nn.Module, batch: Batch, epochs: int, runtime: LocalRuntime, bfloat16: bool
) -> float:
    """Return the time that the stage's pass before its last epoch takes for one batch; 0 if it has none."""
    if not stage.scans(epochs - 1, epochs):
        return 0.0
    model.eval()
    started = _now(runtime.device)
    with torch.no_grad(), torch.autocast(runtime.device.type, torch.bfloat16, enabled=bfloat16):
        stage.scan(model(batch, cross_modal=stage.cross_modal), batch)
    stage.finish_scan(runtime.collective)
    return _now(runtime.device) - started


def _random_batch(config: RunConfig, index: Index, videos: int, partners: int, device: torch.device) -> Batch:
    """Return random features with all labels positive, including segment-level labels if the method needs them."""
    dtype = torch.bfloat16 if config.train.precision == "bfloat16" else torch.float32
    streams = {
        name: torch.randn(videos, index.segments, *shape, device=device, dtype=dtype) for name, shape in index.shapes.items()
    }
    weak = torch.ones(videos, len(index.classes), device=device)
    labels = weak[:, None].expand(-1, index.segments, -1)
    refined = Refined(None, dict.fromkeys(config.task.tracks, labels)) if config.method.segment_labels else None
    others = tuple(_random_batch(config, index, videos, 0, device) for _ in range(partners))
    return Batch(streams, weak, torch.arange(videos, device=device), videos, refined, others)


def _artifact(
    stage: CollectStage, model: nn.Module, config: RunConfig, index: Index, videos: int, runtime: LocalRuntime
) -> Any:
    """Return an artifact of the right form, from an untrained network on random features."""
    batch = _random_batch(config, index, videos, stage.partners, runtime.device)
    bfloat16 = config.train.precision == "bfloat16"
    with torch.no_grad(), torch.autocast(runtime.device.type, torch.bfloat16, enabled=bfloat16):
        model.eval()
        stage.collect([model(each, cross_modal=stage.cross_modal) for each in stage.inputs(batch)], batch)
        return stage.finish(runtime.collective, [str(number) for number in range(videos)])


def _refined(labels: RefinedLabels, device: torch.device) -> Refined:
    video = None if labels.video is None else torch.from_numpy(labels.video).to(device)
    tracks = {name: torch.from_numpy(values).to(device) for name, values in labels.tracks.items()}
    return Refined(video, tracks, labels.windows)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
