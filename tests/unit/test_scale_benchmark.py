"""The simulation beyond one machine, and regression tests of costs that grew faster than the data."""

import json
import pickle

import numpy as np
import pytest
import torch
from collectives import FakeCollective

from avvp_dist.datasets.catalog import LLP
from avvp_dist.errors import DataError, TrainingError
from avvp_dist.loading.plan import EpochPlan
from avvp_dist.shards.index import LABELS_FILE, Labels, labels_bytes, labels_table, read_labels
from avvp_dist.shards.quarantine import shards_in_split
from avvp_dist.train.meter import EpochMeter
from avvp_dist.types import Batch, Targets, TrainPosition
from benchmarks.scale import main, make, one_shard

CLASSES = len(LLP.classes)


@pytest.mark.slow
def test_results_for_few_videos(tmp_path, capsys):
    out, page = tmp_path / "scale.json", tmp_path / "scale.md"
    main(["--videos", "6000", "--worlds", "2,16", "--out", str(out), "--markdown", str(page)])
    report = json.loads(out.read_text())
    assert page.read_text() in capsys.readouterr().out
    assert report["shards"] == 25
    assert 0.3 < report["features_gb"] < 0.4
    two, sixteen = report["worlds"]
    assert (two["nodes"], sixteen["nodes"]) == (1, 2)
    assert (two["batch"], two["steps"]) == (32, -(-5880 // 32))
    for row in (two, sixteen):  # losses of both modalities and the weak label, float32, of the global batch
        assert row["ranking_mb"] * 1e6 == row["batch"] * 3 * CLASSES * 4
    train = 23 / 25 * report["features_gb"]
    assert two["fetched_by_all_gb"] == pytest.approx(train)  # once, by one node
    assert train < sixteen["fetched_by_all_gb"] < 2 * train  # two nodes share the shards at their border
    assert two["second_epoch_from_cache"] == 1
    between = report["between"]
    assert between["finite_bytes"] == 8  # one number, not one per video
    assert between["ratios_gb"] * 1e9 == pytest.approx(5880 * 4 * CLASSES * 8)
    grows = (between["checkpoint_all_videos_mb"] - between["checkpoint_mb"]) * 1e6
    assert grows == pytest.approx(
        5880 * (4 + 2 * 2 * CLASSES), rel=0.05
    )  # a loss; removed labels of this epoch and the last


def test_every_bad_shard_is_reported_in_one_pass(tmp_path):
    index, table = make(2000, *one_shard(tmp_path / "one"))
    rows = table.to_pylist()
    rows[0]["offset"] = -1  # train-000000
    rows[256], rows[257] = rows[257], rows[256]  # train-000001
    rows[600]["offset"] = 2**63 - 2**10  # train-000002: its end is past the largest number
    del rows[-1]  # the last of test
    write(tmp_path, rows, index.labels_schema)
    with pytest.raises(DataError) as error:
        read_labels(str(tmp_path), index)
    assert error.value.problems == [
        "train-000000.tar: byte ranges that do not match",
        "train-000001.tar: its videos are not in order",
        "train-000002.tar: byte ranges that do not match",
        "test-000000.tar: 19 videos, but 20 in the index",
    ]


def test_size_of_a_shard_description_does_not_grow_with_the_data_set(tmp_path):
    """`avvp data verify` sends it to another process for every shard."""
    index, table = make(4000, *one_shard(tmp_path / "one"))
    write(tmp_path, table.to_pylist(), index.labels_schema)
    labels = read_labels(str(tmp_path), index)["train"]
    found = shards_in_split(index, labels)
    assert [shard.info for shard in found] == [info for info in index.shards if info.split == "train"]
    assert tuple(name for shard in found for name in shard.ids) == labels.ids
    assert all(len(pickle.dumps(shard)) < 12_000 for shard in found)


def write(folder, rows, schema):
    """Write labels.parquet of ``rows`` with the packer's code."""
    (folder / LABELS_FILE).write_bytes(labels_bytes([labels_table(rows, schema)]))


def test_a_loss_that_is_not_finite_on_one_rank_raises_the_same_error_on_all():
    nothing = np.zeros((6, CLASSES), bool)
    labels = Labels("train", tuple("abcdef"), nothing, None, *[np.arange(6)] * 4)
    epoch = EpochPlan(6, 4, 0, 0)
    order = epoch.order()

    def work(collective):
        meter = EpochMeter(labels, torch.device("cpu"))
        index = torch.from_numpy(order[epoch.rank_slice(0, collective.rank, 2)])
        losses = torch.ones(2)
        losses[1] = float("nan") if collective.rank else 1.0
        weak = torch.zeros(2, CLASSES)
        meter.add(Batch({}, weak, index, 4), {"total": losses}, Targets(weak, weak, weak))
        with pytest.raises(TrainingError) as error:
            meter.check_finite(epoch, TrainPosition("denoise", 0, 0, 1, 2), collective)
        return str(error.value)

    one, other = FakeCollective.run(2, work)
    assert one == other
    assert f"not finite for 1 of 4 videos: {labels.ids[order[3]]}." in one
