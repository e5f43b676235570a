"""Measured seconds of the phases of an epoch."""

import time
from contextlib import closing

import pytest
import torch

from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import load
from avvp_dist.loading import resident
from avvp_dist.shards.cache import ShardCache
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.shards.reading import ShardStore
from avvp_dist.train.loop import StageJob, StageTrainer
from avvp_dist.train.timing import PHASES, PhaseTimes

CPU = torch.device("cpu")


def test_every_step_of_a_long_epoch_counts_once():
    times, inside, outside = PhaseTimes(CPU), 0.0, 0.0
    for _ in times.batches(range(1300)):
        before = time.perf_counter()
        with times.measure("step"):
            begun = time.perf_counter()
            while time.perf_counter() < begun + 1e-4:
                pass
            inside += time.perf_counter() - begun
        outside += time.perf_counter() - before
    seconds = times.take()
    assert inside <= seconds["step"] <= outside
    assert set(seconds) == set(PHASES)
    assert seconds["all_reduce"] == 0
    assert not any(times.take().values())


def test_spans_that_overlap_count_once():
    times, started = PhaseTimes(CPU), time.perf_counter()
    first = times.begin("all_reduce")
    time.sleep(0.02)
    second = times.begin("all_reduce")
    time.sleep(0.02)
    first()
    time.sleep(0.02)
    second()
    whole = time.perf_counter() - started
    assert 0.06 <= times.take()["all_reduce"] <= whole


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_device_s_time_is_measured_without_waiting_for_it():
    times, started = PhaseTimes(torch.device("cuda", 0)), time.perf_counter()
    for _ in times.batches(range(3)):
        with times.measure("step"):
            torch.cuda._sleep(10**8)
    issued = time.perf_counter() - started
    seconds = times.take()
    assert issued < seconds["step"] < time.perf_counter() - started
    assert seconds["data_wait"] < seconds["step"] / 10


class SlowSplit:
    """A split whose reader needs ``delay`` seconds for each batch."""

    def __init__(self, split, delay):
        self._split = split
        self._delay = delay

    def __getattr__(self, name):
        return getattr(self._split, name)

    def __len__(self):
        return len(self._split)

    def epoch(self, *arguments):
        with closing(self._split.epoch(*arguments)) as batches:
            for batch in batches:
                time.sleep(self._delay)
                yield batch


def one_epoch(packed, folder, delay):
    """The metrics of an epoch whose reader needs ``delay`` seconds for each batch."""
    config = load("jomold", ["model.width=32", "model.feedforward=32", "train.epochs=1", "train.batch_size=20"])
    index = Index.load(packed)
    labels = read_labels(packed, index)
    splits = {name: resident.load(ShardStore(packed, ShardCache()), index, labels[name]) for name in ("train", "val")}
    stage = config.method.build(index.classes, index.segments).stages[0]
    job = StageJob(
        stage=stage,
        key="",
        seed=0,
        build=lambda: config.model.build(index.shapes, len(index.classes)),
        train=config.train,
        optim=config.optim,
        evaluate=config.evaluate,
        task=config.task.build(index.classes),
        train_split=SlowSplit(splits["train"], delay),
        val_split=splits["val"],
    )
    (row,) = StageTrainer(job, LocalRuntime(str(folder), "cpu"), NoCallback()).run().history
    return row


class NoCallback:
    def __getattr__(self, name):
        return lambda *_: None


def test_a_slow_reader_shows_as_data_wait(packed, tmp_path):
    slow, fast = one_epoch(packed, tmp_path / "slow", 0.2), one_epoch(packed, tmp_path / "fast", 0.0)
    assert slow["time/data_wait_seconds"] >= 4 * 0.2
    assert fast["time/data_wait_seconds"] < 0.4
    for row in (slow, fast):
        epoch = 62 / row["videos_per_second"]
        waited, stepped = row["time/data_wait_seconds"], row["time/step_seconds"]
        assert 0.5 * epoch < waited + stepped <= epoch
        assert 0 < row["time/ranking_seconds"] < stepped
        assert row["time/exchange_seconds"] == row["time/all_reduce_seconds"] == 0
