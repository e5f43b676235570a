"""Training of one stage: epochs, validation, selection of the best epoch, checkpoints, exact resume."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from avvp_dist.config import Section
from avvp_dist.dist.collective import gather_lines
from avvp_dist.dist.runtime import Runtime
from avvp_dist.errors import DataError, Preempted
from avvp_dist.loading.plan import Plan
from avvp_dist.loading.split import SplitReader
from avvp_dist.methods.base import TrainStage
from avvp_dist.models.co_trained import build_networks
from avvp_dist.tasks.base import Task
from avvp_dist.train import checkpoint
from avvp_dist.train.evaluate import LAST, EvaluateConfig, predict, run_over
from avvp_dist.train.meter import EpochMeter
from avvp_dist.train.optim import OptimConfig, rebase
from avvp_dist.train.pseudo_labels import PseudoLabelCounts
from avvp_dist.train.step import TrainStep
from avvp_dist.train.timing import PhaseTimes
from avvp_dist.types import Batch, Outputs, TrainPosition

LOGGER = logging.getLogger(__name__)


class TrainConfig(Section):
    """Length and batch size of training; the same for every training stage of a method."""

    epochs: int = Field(40, ge=1, le=1_000_000)
    """Epochs of each training stage."""
    batch_size: int = Field(16, ge=1, le=10_000_000)
    """Number of videos in a global batch, over all workers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the networks' matrix products (autocast); weights and losses stay in float32."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    check_every: int = Field(50, ge=1)
    """Steps between two checks that the loss is finite, and between two progress reports."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between two checkpoints within an epoch; null for one at the end of each epoch only."""


class Callback(Protocol):
    """Receives the progress of training, on rank 0 only."""

    def stage_started(self, stage: str, epochs: int, resumed: TrainPosition | None) -> None:
        """Called when a stage starts, or resumes at ``resumed``."""
        ...

    def stage_reused(self, stage: str, key: str) -> None:
        """Called when the artifact of a stage is reused."""
        ...

    def step(self, position: TrainPosition) -> None:
        """Called every ``check_every`` steps."""
        ...

    def epoch(self, row: Mapping[str, Any], best: float) -> None:
        """Called with an epoch's metrics and the best score so far, after the epoch's checkpoint is saved.

        A run that resumes reports its last row again.
        """
        ...


@dataclass(frozen=True)
class StageJob:
    """Everything that the training of a stage depends on.

    Attributes:
        stage: the stage; its `TrainStage.start` has been called.
        key: cache key of the stage's artifact; checkpoints with another key are ignored.
        build: returns the network with fresh weights.
    """

    stage: TrainStage
    key: str
    seed: int
    build: Callable[[], nn.Module]
    train: TrainConfig
    optim: OptimConfig
    evaluate: EvaluateConfig
    task: Task
    train_split: SplitReader
    val_split: SplitReader


@dataclass
class StageResult:
    """Result of a training stage.

    Attributes:
        weights: of the best epoch.
        best: stage, epoch, metric and value of the best epoch.
        history: one row of metrics per epoch.
        removed: labels removed in the last epoch, bool [N,2,C]; None for a stage that does not denoise.
        state: the stage's `TrainStage.state_dict` of the best epoch.
        teacher: weights of the teacher of the best epoch; empty if the stage has none.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    removed: np.ndarray | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    teacher: dict[str, Tensor] = field(default_factory=dict)


class StageTrainer:
    """Runs a `StageJob` on a `Runtime`."""

    def __init__(self, job: StageJob, runtime: Runtime, callback: Callback) -> None:
        self.job = job
        self.runtime = runtime
        self.callback = callback
        self.rank = runtime.collective.rank
        torch.manual_seed(job.seed)
        model, self.kept = build_networks(job.build, job.stage.networks)
        self.model = model.to(runtime.device)
        self.optimizer, self.scheduler = job.optim.build(self.model.parameters(), job.train.epochs)
        self.times = PhaseTimes(runtime.device)
        self.train_step = TrainStep(
            self.model,
            self.optimizer,
            job.stage,
            runtime,
            seed=job.seed,
            bfloat16=job.train.precision == "bfloat16",
            clip_norm=job.optim.clip_norm,
            times=self.times,
        )
        self.trained = StageResult()
        self.epoch = 0
        self.step = 0
        self._scanned: dict[str, float] = {}  # time of the epoch's scan
        self.meter = EpochMeter(job.train_split.labels, runtime.device)

    def run(self) -> StageResult:
        """Train to the end, starting from a checkpoint of this stage if there is one."""
        resumed = self._restore()
        if self.rank == 0:
            self.callback.stage_started(self.job.stage.name, self.job.train.epochs, resumed)
            if resumed and self.trained.history:
                self._report_epoch(self.trained.history[-1])
        while self.epoch < self.job.train.epochs:
            self._run_epoch()
            self._stop_if_requested(committed=True)
        return self.trained

    def _run_epoch(self) -> None:
        job, collective = self.job, self.runtime.collective
        plan = job.train_split.plan(job.train.batch_size, job.seed, self.epoch)
        if self.step == 0 and job.stage.scans(self.epoch, job.train.epochs):
            self._scan()
        started, first = time.perf_counter(), self.step
        epoch = job.train_split.epoch(
            plan, first, self.rank, collective.world_size, job.stage.partners, job.stage.partner_rule
        )
        with closing(epoch) as batches:
            for batch in self.times.batches(batches):
                position = TrainPosition(job.stage.name, self.epoch, self.step, job.train.epochs, plan.steps)
                with self.times.measure("step"):
                    losses, targets = self.train_step(batch, position)
                    self.meter.add(batch, losses, targets)
                self.step += 1
                self._between_steps(plan, position)
        self.meter.check_finite(plan, position, collective)
        videos = sum(plan.total(step) for step in range(plan.steps))
        trained = videos - first * job.train.batch_size
        self._finish_epoch(self.meter.gather(collective), videos, trained / (time.perf_counter() - started))

    def _scan(self) -> None:
        """Run the teacher, or the network, over the training split for the stage."""
        stage = self.job.stage
        started = time.perf_counter()
        self._run_teacher_over(self.job.train_split, stage.scan)
        stage.finish_scan(self.runtime.collective)
        self._scanned = {"scan_seconds": time.perf_counter() - started}

    def _run_teacher_over(self, split: SplitReader, process: Callable[[Outputs, Batch], None]) -> None:
        teacher = self.train_step.teacher
        run_over(
            teacher.network if teacher else self.kept,
            split,
            self.runtime,
            process,
            cross_modal=self.job.stage.cross_modal,
            batch_size=self.job.evaluate.batch_size,
            bfloat16=self.train_step.bfloat16,
        )

    def _pseudo_label_scores(self) -> dict[str, float]:
        """Return the quality of pseudo-labels on val; empty if the stage makes none."""
        stage, split = self.job.stage, self.job.val_split
        if not stage.makes_pseudo_labels:
            return {}
        counts = PseudoLabelCounts(split.labels, self.runtime.device)

        def count(outputs: Outputs, batch: Batch) -> None:
            pseudo = stage.pseudo_labels(outputs, batch)
            if pseudo is not None:
                counts.add(pseudo, batch.index)

        self._run_teacher_over(split, count)
        if counts.counts is None:
            return {}
        return counts.scores(self.runtime.collective.all_reduce_sum(counts.counts), "pseudo_labels/val")

    def _between_steps(self, plan: Plan, position: TrainPosition) -> None:
        """Check for stop requests, check the loss and save checkpoints when due; not after the last step of an epoch."""
        train = self.job.train
        if self.step == plan.steps:
            return
        if self.runtime.collective.world_size == 1:
            self._stop_if_requested()
        checkpoint_due = train.checkpoint_every and self.step % train.checkpoint_every == 0
        if checkpoint_due or self.step % train.check_every == 0:
            self.meter.check_finite(plan, position, self.runtime.collective)
            if self.runtime.collective.world_size > 1:  # ranks receive a request at different times and have to agree
                self._stop_if_requested()
            if self.rank == 0:
                self.callback.step(position)
        if checkpoint_due:
            self._commit({}, self.meter.gather(self.runtime.collective))

    def _stop_if_requested(self, committed: bool = False) -> None:
        """Stop the run if any rank received a stop request; saves a checkpoint of this step unless ``committed``.

        Raises:
            Preempted: names the position of the checkpoint.
        """
        collective, requested = self.runtime.collective, self.runtime.stop_requested()
        if collective.world_size > 1:
            requests = torch.tensor([float(requested)], device=self.runtime.device)
            requested = bool(collective.all_reduce_sum(requests).item())
        if not requested:
            return
        if not committed:
            self._commit({}, self.meter.gather(collective))
        where = f"stage {self.job.stage.name}, epoch {self.epoch + 1}, step {self.step}"
        raise Preempted(f"stopped on request at {where}: a checkpoint is saved; the same command resumes from there")

    def _finish_epoch(self, gathered: Mapping[str, Tensor], videos: int, videos_per_second: float) -> None:
        job, started = self.job, time.perf_counter()
        row: dict[str, Any] = {"stage": job.stage.name, "epoch": self.epoch + 1, "lr": self.scheduler.get_last_lr()[0]}
        row |= self.meter.metrics(gathered, videos) | {"videos_per_second": videos_per_second} | self._scanned
        # of this rank; the history keeps those of rank 0
        row |= {f"time/{phase}_seconds": seconds for phase, seconds in self.times.take().items()}
        rows = predict(
            self.model,
            job.val_split,
            job.task,
            self.runtime,
            cross_modal=job.stage.cross_modal,
            batch_size=job.evaluate.batch_size,
            bfloat16=self.train_step.bfloat16,
        )
        truth = job.val_split.labels.truth
        assert truth is not None  # experiments.inputs.open_data refuses data without it
        scores = job.task.score(rows, truth, job.task.view).metrics
        row |= {f"val/{name}": value for name, value in scores.items()} | self._pseudo_label_scores()
        row["validation_seconds"] = time.perf_counter() - started
        self._select(scores[job.evaluate.monitored(job.task.section)])
        self.trained.history.append(row)
        self.trained.removed = self.meter.removed(gathered)
        self.scheduler.step()
        self.epoch, self.step = self.epoch + 1, 0
        self.meter = EpochMeter(job.train_split.labels, self.runtime.device)
        self._commit(row, {})
        if self.rank == 0:
            self._report_epoch(row)

    def _report_epoch(self, row: Mapping[str, Any]) -> None:
        assert self.trained.best  # set by `_select`
        self.callback.epoch(row, self.trained.best["value"])

    def _select(self, value: float) -> None:
        """Keep this epoch's weights if it is the best so far."""
        evaluate, task = self.job.evaluate, self.job.task.section
        if self._replaces_best(value):
            self.trained.best = {
                "stage": self.job.stage.name,
                "epoch": self.epoch + 1,
                "metric": f"val {evaluate.monitored(task)}" + (" of the last epoch" if evaluate.select == LAST else ""),
                "value": value,
            }
            teacher = self.train_step.teacher
            self.trained.weights = _copy(self.kept.state_dict())
            self.trained.state = _copy(self.job.stage.state_dict())
            self.trained.teacher = _copy(teacher.network.state_dict()) if teacher else {}

    def _replaces_best(self, value: float) -> bool:
        """Return whether this epoch is the best so far; a selectable one always is, compared with one that is not."""
        best, job = self.trained.best, self.job
        if best is None:
            return True
        now, before = (job.stage.selectable(epoch, job.train.epochs) for epoch in (self.epoch, best["epoch"] - 1))
        return job.evaluate.is_better(job.task.section, value, best["value"]) if now == before else now

    def _commit(self, metrics: dict[str, Any], gathered: Mapping[str, Tensor]) -> None:
        """Report metrics and a checkpoint to the runtime. All ranks report here and nowhere else."""
        blob = None
        if self.rank == 0:
            trained = self.trained
            removed = None if trained.removed is None else torch.from_numpy(trained.removed)
            blob = checkpoint.pack(
                {
                    "key": self.job.key,
                    "epoch": self.epoch,
                    "step": self.step,
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.scheduler.state_dict(),
                    "stage": self.job.stage.state_dict(),
                    "teacher": self.train_step.teacher.state_dict() if self.train_step.teacher else {},
                    "meter": dict(gathered),
                    "trained": {**vars(trained), "removed": removed},
                }
            )
        self.runtime.report(metrics, blob)

    def _restore(self) -> TrainPosition | None:
        """Restore the newest valid checkpoint of this stage; None if there is none."""
        state = self._choose_checkpoint()
        if state is None:
            return None
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        rebase(self.optimizer, self.scheduler, self.job.optim.lr)
        self.job.stage.load_state_dict(state["stage"])
        if self.train_step.teacher:
            self.train_step.teacher.load_state_dict(state["teacher"])
        self.epoch, self.step = state["epoch"], state["step"]
        removed = state["trained"]["removed"]
        self.trained = StageResult(**{**state["trained"], "removed": None if removed is None else removed.numpy()})
        if self.step:
            self.meter.restore(state["meter"], self.rank)
        return TrainPosition(self.job.stage.name, self.epoch, self.step, self.job.train.epochs, self._steps(self.epoch))

    def _choose_checkpoint(self) -> dict[str, Any] | None:
        """Return the state to resume from, the same on all ranks; rank 0 chooses the checkpoint and broadcasts its name."""
        chosen, state = "", None
        if self.rank == 0:
            for name in self.runtime.checkpoints():
                try:
                    state = self._read_checkpoint(name)
                except DataError as error:
                    LOGGER.warning("%s; this checkpoint is skipped, the previous one is used if there is one", error)
                    continue
                chosen = name if state else ""  # the newest one is of another stage, so this stage has none
                break
        names = gather_lines(self.runtime.collective, [json.dumps(chosen)] if chosen else [], self.runtime.device)
        if names and self.rank != 0:
            state = self._read_checkpoint(json.loads(names[0]))
        return state

    def _read_checkpoint(self, name: str) -> dict[str, Any] | None:
        """Return a checkpoint's state, or None if it belongs to another stage.

        Raises:
            DataError: it is damaged, or does not fit this stage; names the checkpoint.
        """
        try:
            state = checkpoint.unpack(self.runtime.read_checkpoint(name), name)
        except FileNotFoundError:
            raise DataError(f"{name}: missing") from None
        if state.get("key") != self.job.key:
            return None
        problem = checkpoint.mismatch(state, self.model.state_dict(), self.job.train.epochs, self._steps)
        if problem:
            raise DataError(f"{name}: {problem}")
        return state

    def _steps(self, epoch: int) -> int:
        return self.job.train_split.plan(self.job.train.batch_size, self.job.seed, epoch).steps


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}
