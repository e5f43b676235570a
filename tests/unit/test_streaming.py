"""Batches of a streamed split: correct videos in the planned order for any readers; readers that die or are abandoned."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from avvp_dist import storage
from avvp_dist.datasets import synthetic
from avvp_dist.errors import AvvpError, DataError
from avvp_dist.loading import resident
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.loading.split import DataConfig, open_split, streams_from_shards
from avvp_dist.shards.cache import ShardCache
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.shards.reading import ShardStore

BATCH, STREAMS = 20, 4  # 62 videos: a last batch of two


def opened(url, split="train", **settings):
    index = Index.load(url)
    config = DataConfig(url=url, mode="streaming", **{"streams": STREAMS, "window": 8, "workers": 0, **settings})
    return open_split(config, index, read_labels(url, index)[split], torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def in_memory(packed):
    index = Index.load(packed)
    return resident.load(ShardStore(packed, ShardCache()), index, read_labels(packed, index)["train"])


def epoch(split, number=0, first=0, rank=0, world=1, partners=0):
    with closing(split.epoch(split.plan(BATCH, 3, number), first, rank, world, partners)) as batches:
        return list(batches)


def numbers(batches):
    return [batch.index.tolist() for batch in batches]


def flat(batches):
    return [number for batch in numbers(batches) for number in batch]


def assert_is(batch, in_memory):
    """Compare a batch with the resident split."""
    expected = in_memory.batch(batch.index.numpy(), batch.total)
    for name in ("audio", "visual", "motion"):
        torch.testing.assert_close(batch.streams[name], expected.streams[name], rtol=0, atol=0)
    torch.testing.assert_close(batch.weak, expected.weak, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_contain_the_planned_videos_for_any_number_of_readers(packed, in_memory, workers):
    with closing(opened(packed, workers=workers, prefetch=2)) as split:
        for number in range(2):
            batches = epoch(split, number)
            plan = split.plan(BATCH, 3, number)
            assert flat(batches) == plan.order().tolist()
            assert [batch.total for batch in batches] == [20, 20, 20, 2]
            for batch in batches:
                assert_is(batch, in_memory)


def test_ranks_together_get_the_batches_of_one_rank(packed, in_memory):
    with closing(opened(packed)) as split:
        one = epoch(split, partners=2)
        for world in (2, 3, 4):
            shares = [epoch(split, rank=rank, world=world, partners=2) for rank in range(world)]
            for step, whole in enumerate(one):
                parts = [share[step] for share in shares]
                assert {part.total for part in parts} == {whole.total}
                assert torch.cat([part.index for part in parts]).tolist() == whole.index.tolist()
                assert torch.equal(torch.cat([part.visual for part in parts]), whole.visual)
                for draw in range(2):
                    found = torch.cat([part.partners[draw].index for part in parts])
                    assert found.tolist() == whole.partners[draw].index.tolist()
    for batch in one:
        for other in batch.partners:
            assert_is(other, in_memory)
            assert not (other.weak * batch.weak).any()


def test_ranks_that_do_not_divide_the_streams_and_idle_readers(packed, in_memory):
    with closing(opened(packed, workers=2)) as split:
        plan = split.plan(STREAMS, 3, 0)  # two, one and one video of four streams for three ranks of two readers
        shares = [list(split.epoch(plan, 0, rank, 3)) for rank in range(3)]
        for step, parts in enumerate(zip(*shares, strict=True)):
            assert flat(parts) == plan.order()[STREAMS * step : STREAMS * (step + 1)].tolist()
            for part in parts:
                assert_is(part, in_memory)


def test_partners_depend_on_the_epoch_but_not_on_the_readers(packed):
    with closing(opened(packed)) as thread, closing(opened(packed, workers=2)) as processes:
        first, again = (numbers(batch.partners[0] for batch in epoch(split, 1, partners=1)) for split in (thread, processes))
        assert first == again
        assert first != numbers(batch.partners[0] for batch in epoch(thread, 2, partners=1))


def test_an_epoch_resumes_with_another_number_of_ranks(packed):
    with closing(opened(packed)) as split:
        whole = numbers(epoch(split, 5))
        later = [numbers(epoch(split, 5, first=2, rank=rank, world=2)) for rank in range(2)]
    assert [one + two for one, two in zip(*later, strict=True)] == whole[2:]


def test_resuming_does_not_read_finished_shards(packed, tmp_path):
    copied = str(tmp_path / "copy")
    shutil.copytree(packed, copied)
    with closing(opened(copied, streams=1, window=1)) as split:  # 16 videos a shard, 20 a batch
        plan = split.plan(BATCH, 3, 0)
        used_up = Index.load(copied).shards[split.labels.shard[plan.order()[0]]]
        with open(os.path.join(copied, used_up.name), "r+b") as shard:
            shard.write(b"x")
        assert numbers(epoch(split, first=1)) == [plan.order()[start : start + 20].tolist() for start in (20, 40, 60)]
        with pytest.raises(DataError, match=used_up.name):
            epoch(split)


def test_iter_all_returns_every_video_once_for_any_number_of_ranks(packed, in_memory):
    with closing(opened(packed)) as split:
        for world in (1, 3, 4):
            found_numbers = []
            for rank in range(world):
                batches = list(split.iter_all(10, rank, world))
                assert batches
                assert max(len(batch.index) for batch in batches) <= 10
                found_numbers += flat(batches)
            assert sorted(found_numbers) == list(range(62))
            assert_is(batches[0], in_memory)
    assert sorted(flat(in_memory.iter_all(10, 0, 1))) == list(range(62))


def test_refined_labels_belong_to_their_videos(packed):
    with closing(opened(packed)) as split:
        ids, classes = split.labels.ids, Index.load(packed).classes
        soft = np.random.default_rng(0).random((62, 25)).astype(np.float32)
        refined = RefinedLabels(ids[::-1], classes, None, {"audio": soft[::-1], "visual": soft[::-1] / 2}, {})
        for batch in epoch(split.with_refined(refined, classes, "test")):
            np.testing.assert_array_equal(batch.audio_labels, soft[batch.index])
            np.testing.assert_array_equal(batch.visual_labels, soft[batch.index] / 2)
        assert all(batch.refined is None for batch in epoch(split))


def test_remote_shards(packed, in_memory):
    for name in storage.names(packed):
        storage.write_bytes(f"memory://streamed/{name}", storage.read_bytes(storage.join(packed, name)))
    with closing(opened("memory://streamed")) as split:
        for batch in epoch(split):
            assert_is(batch, in_memory)


def test_readers_do_not_import_torch():
    code = "import sys, avvp_dist.loading.reader_process; print({'torch', 'webdataset', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def readers_of(pid):
    return [child for child in psutil.Process(pid).children() if "reader_process" in " ".join(child.cmdline())]


def gone(processes, seconds=60):
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def test_a_killed_reader_is_a_clear_error_and_is_replaced_in_the_next_epoch(packed):
    with closing(opened(packed, workers=2, prefetch=1)) as split:
        batches = split.epoch(split.plan(BATCH, 3, 0), 0, 0, 1)
        next(batches)
        before = readers_of(os.getpid())
        assert len(before) == 2
        before[0].kill()
        with pytest.raises(AvvpError, match=rf"pid {before[0].pid}\) died: killed by SIGKILL.*run the same command again"):
            list(batches)
        assert gone(before)
        assert len(epoch(split)) == 4
        after = readers_of(os.getpid())
    assert gone(after)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_abandoned_epoch_leaves_nothing_behind(packed, workers):
    with closing(opened(packed, workers=workers)) as split:
        whole = numbers(epoch(split))
        batches = split.epoch(split.plan(BATCH, 3, 0), 0, 0, 1)
        next(batches)
        batches.close()
        assert gone(readers_of(os.getpid()))
        assert numbers(epoch(split)) == whole
    assert not readers_of(os.getpid())


TRAINER = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes inherit that it is ignored
sys.path.insert(0, {tests!r})
from test_streaming import opened, readers_of
split = opened({url!r}, workers=2)
batches = split.epoch(split.plan(20, 3, 0), 0, 0, 1)
next(batches)
print(*[reader.pid for reader in readers_of(os.getpid())], flush=True)
{then}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "kill"),
    [
        ("time.sleep(600)", signal.SIGKILL),
        ("time.sleep(600)", signal.SIGTERM),
        ("time.sleep(600)", signal.SIGINT),
        ("sys.stdin.read(); raise ValueError('boom')", None),
    ],
)
def test_readers_end_with_the_trainer_however_it_ends(packed, then, kill):
    code = TRAINER.format(tests=os.path.dirname(__file__), url=packed, then=then)
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as trainer:
        try:
            readers = [psutil.Process(int(pid)) for pid in trainer.stdout.readline().split()]
            assert len(readers) == 2
            trainer.stdin.close()
            if kill:
                trainer.send_signal(kill)
            assert trainer.wait(240) != 0
            assert gone(readers)
        finally:
            trainer.kill()


def open_shards(data: str) -> int:
    return sum(os.path.realpath(path).startswith(data) for path in Path("/proc/self/fd").iterdir())


def test_few_shards_are_open_at_the_same_time(tmp_path):
    data = str(tmp_path / "data")
    synthetic.write(data, videos=None, seed=0, layout="shards", splits=(64, 2, 2), workers=1, shard_videos=4)
    most = 0
    with closing(opened(data, streams=2, window=4, prefetch=1)) as split:
        plan = split.plan(4, 3, 0)
        for batch in split.epoch(plan, 0, 0, 1):
            assert len(batch.index)
            most = max(most, open_shards(data))
    assert 4 <= most <= 8  # of 16: in each stream those within the window, and the next
    assert not open_shards(data)


def test_whether_a_split_is_streamed_depends_only_on_config_and_index(packed):
    index = Index.load(packed)
    labels = read_labels(packed, index)
    size = 62 * 10 * 2688 * 2 / 1e9

    def streamed(split, **settings):
        return streams_from_shards(DataConfig(**settings), index, labels[split])[0]

    assert not streamed("train")
    assert streamed("train", memory_gb=size * 0.99)
    assert not streamed("train", memory_gb=size * 1.01)
    assert not streamed("val", memory_gb=size * 0.99)
    assert streamed("train", mode="streaming")
    assert not streamed("val", mode="streaming")
    assert streamed("val", mode="streaming", memory_gb=1e-9)
    assert not streamed("train", mode="resident", memory_gb=1e-9)
    _, why = streams_from_shards(DataConfig(), index, labels["train"])
    assert why == "0.00333 GB of features, data.memory_gb=8"


def test_a_slow_consumer_gets_the_same_batches(packed):
    with closing(opened(packed, workers=2, prefetch=1)) as quick, closing(opened(packed, workers=2, prefetch=8)) as slow:
        expected = numbers(epoch(quick))
        batches = []
        for batch in slow.epoch(slow.plan(BATCH, 3, 0), 0, 0, 1):
            time.sleep(0.05)
            batches.append(batch)
    assert numbers(batches) == expected
