"""Counts the bytes that ranks exchange in JoMoLD's code, and measures calls. For benchmarks/scale.py."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import torch
from torch import Tensor

from avvp_dist.datasets.catalog import LLP
from avvp_dist.experiments.recipe import load
from avvp_dist.loading.plan import EpochPlan
from avvp_dist.methods.base import SplitTable
from avvp_dist.shards.index import Labels
from avvp_dist.train import checkpoint
from avvp_dist.train.meter import EpochMeter
from avvp_dist.types import Batch, Targets, TrainPosition
from benchmarks.train_step import RATIOS

PER_RANK = 16  # videos of a global batch
CLASSES = len(LLP.classes)
MEASURED_VIDEOS = 100_000  # videos for which growth is measured

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Cost of a call: CPU seconds, and MB by which the process grew at its end and at its peak."""

    seconds: float
    grew_mb: float
    peak_mb: float


def measured(call: Callable[[], T]) -> tuple[T, Cost]:
    """Return the result of ``call``, and its cost."""
    gc.collect()
    pa.default_memory_pool().release_unused()  # memory freed by earlier calls would hide the growth
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, started = _memory("VmRSS"), time.process_time()
    result = call()
    seconds = time.process_time() - started
    return result, Cost(seconds, _memory("VmRSS") - before, _memory("VmHWM") - before)


def _memory(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1]) / 1e6


class CountingCollective:
    """Rank 0 of W ranks with identical data; counts the bytes that are gathered and summed."""

    rank = 0

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.gathered = 0
        self.summed = 0

    def all_gather(self, rows: Tensor, total: int | None = None) -> Tensor:
        """See `Collective`."""
        gathered = rows.repeat(self.world_size, *[1] * (rows.dim() - 1))[:total]
        self.gathered += gathered.nbytes
        return gathered

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """See `Collective`."""
        self.summed += values.nbytes
        return values


class Exchange:
    """JoMoLD's code with W - 1 other ranks that are only counted."""

    def __init__(self, labels: Labels) -> None:
        self._config = load("jomold")
        self._labels = labels
        torch.manual_seed(0)
        self._model = self._config.model.build({stream.name: stream.shape for stream in LLP.streams}, CLASSES)
        self._stages = self._config.method.build(LLP.classes, LLP.segments).stages
        self._stages[-1].start({"ratios": RATIOS}, torch.device("cpu"))

    def step(self, world: int) -> dict[str, float]:
        """Return the bytes that a rank receives at every step, and the cost of the ranking."""
        stage, total = self._stages[-1], PER_RANK * world
        streams = {stream.name: torch.rand(PER_RANK, LLP.segments, stream.dim) for stream in LLP.streams}
        weak = (torch.rand(PER_RANK, CLASSES) < 0.07).float()
        batch = Batch(streams, weak, torch.arange(PER_RANK), total)
        collective = CountingCollective(world)
        with torch.no_grad():
            outputs = self._model(batch, cross_modal=stage.cross_modal, scoring_pass=stage.scoring_pass)
            _, cost = measured(lambda: stage.targets(outputs, batch, TrainPosition("denoise", 1, 0, 25, 100), collective))
        weights = sum(parameter.nbytes for parameter in self._model.parameters())
        return {
            "ranking_mb": collective.gathered / 1e6,
            "ranking_ms": 1e3 * cost.seconds,
            "gradients_mb": 2 * (world - 1) / world * weights / 1e6,  # ring all-reduce, both directions
        }

    def between(self) -> dict[str, Any]:
        """Return the bytes that grow with the videos: exchanged per epoch, gathered for noise ratios, in checkpoints."""
        videos = len(self._labels.ids)
        few = min(videos, MEASURED_VIDEOS)
        some = replace(
            self._labels, **{name: values[:few] for name, values in vars(self._labels).items() if name in ("ids", "weak")}
        )
        collective, meter = CountingCollective(1), EpochMeter(some, torch.device("cpu"))
        batch = Batch({}, torch.zeros(4, CLASSES), torch.arange(4), 4)
        nothing = torch.zeros(4, CLASSES, dtype=torch.bool)
        meter.add(batch, {"total": torch.zeros(4)}, Targets(batch.weak, batch.weak, batch.weak, nothing, nothing))
        gathered = meter.gather(collective)
        meter.check_finite(EpochPlan(few, 4, 0, 0), TrainPosition("denoise", 0, 0, 1, 1), check := CountingCollective(1))
        table, ratios = SplitTable(), CountingCollective(1)
        table.add(batch, *[torch.zeros(4, CLASSES)] * 3)
        table.gather(ratios)
        small, large = (self._checkpoint(content) for content in ({}, gathered))
        return {
            "meter_mb": collective.summed / few * videos / 1e6,
            "finite_bytes": check.summed,
            "ratios_gb": ratios.gathered / 4 * videos / 1e9,
            "checkpoint_mb": small / 1e6,
            "checkpoint_all_videos_mb": (small + (large - small) / few * videos) / 1e6,
        }

    def _checkpoint(self, gathered: dict[str, Tensor]) -> int:
        """Return the bytes of a checkpoint: weights, Adam's two moments, best weights, and per-video state."""
        weights = self._model.state_dict()
        copies = {name: {key: value.clone() for key, value in weights.items()} for name in ("first", "second", "best")}
        trained = {"removed": gathered["removed"].clone()} if gathered else {}
        return len(checkpoint.pack({"model": weights, **copies, "meter": gathered, "trained": trained}))
