"""Whole runs whose training split is streamed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import history, stage_folder
from dying import DyingRuntime, Killed
from test_training import run

from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import evaluate_experiment
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.index import Index, read_labels

STREAMED = ["data.mode=streaming", "data.streams=4", "data.window=8", "train.epochs=2"]


@pytest.mark.parametrize(
    ("recipe", "stages", "commits", "settings"),
    [
        ("jomold", ("estimate", "denoise"), 2, ["method.rounding=carry", "method.warmup=linear"]),
        ("lr", ("base", "refine"), 1, ["method.tau=0.2"]),
        ("han", ("train",), 3, ["method=ppl", "method.warmup_epochs=1", "method.key_probability=0.2"]),
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(packed, tmp_path, recipe, stages, commits, settings):
    settings = [*STREAMED, "train.checkpoint_every=2", *settings]
    run(recipe, packed, tmp_path / "whole", *settings, "data.workers=0")
    dying = DyingRuntime(str(tmp_path / "cut"), after=commits)
    with pytest.raises(Killed):
        run(recipe, packed, tmp_path / "cut", *settings, "data.workers=2", runtime=dying)
    run(recipe, packed, tmp_path / "cut", *settings, "data.workers=1", "data.prefetch=2")  # how it is read does not matter
    for stage in stages:
        assert history(tmp_path / "whole", stage) == history(tmp_path / "cut", stage)
        whole, cut = (stage_folder(tmp_path / name, stage) / "model.safetensors" for name in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()


def keys(output):
    return {path.name for path in Path(output, "stages").iterdir()}


def test_stage_keys_depend_on_the_order_of_the_data(packed, tmp_path):
    quick = ["train.epochs=1", "data.workers=0"]
    run("han", packed, tmp_path / "memory", *quick)
    run("han", packed, tmp_path / "other", *quick, "data.streams=4", "data.window=8")  # in memory all the same
    assert keys(tmp_path / "memory") == keys(tmp_path / "other")
    run("han", packed, tmp_path / "streamed", *STREAMED, *quick)
    run("han", packed, tmp_path / "wider", *STREAMED, *quick, "data.window=16")
    assert len(set.union(*(keys(tmp_path / name) for name in ("memory", "streamed", "wider")))) == 3


def test_refiners_exchange_with_partners_from_nearby(packed, tmp_path):
    run("ma", packed, tmp_path / "run", *STREAMED, "method.rule=paper")
    exchange = stage_folder(tmp_path / "run", "exchange")
    depends = json.loads((exchange / "stage.json").read_text())["depends"]
    assert depends["order"] == {"mode": "streaming", "streams": 4, "window": 8}
    labels = read_labels(packed, Index.load(packed))["train"]
    refined = RefinedLabels.load(str(exchange / "refined.npz")).aligned(labels.ids, Index.load(packed).classes, 10, "run")
    assert ((refined.visual == 0) & labels.weak).any()
    assert not ((refined.visual > 0) & ~labels.weak).any()


def test_streamed_evaluation_scores_the_same(packed, tmp_path):
    result = run("han", packed, tmp_path / "run", "train.epochs=1")
    config = load(str(tmp_path / "run" / "config.yaml"), ["data.memory_gb=1e-9", "data.streams=4", "data.workers=0"])
    assert evaluate_experiment(config, LocalRuntime(config.output, "cpu")).scores == result["scores"]


def spoil(packed, folder):
    """A copy without its second training shard, and with one unreadable test shard."""
    shutil.copytree(packed, folder)
    (folder / "train-000001.tar").unlink()
    (folder / "test-000000.tar").write_bytes(b"nothing")
    return str(folder)


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_bad_shards_end_a_run_or_are_left_out_and_counted(packed, tmp_path, mode, caplog):
    data = spoil(packed, tmp_path / "data")
    settings = ["train.epochs=1", f"data.mode={mode}", "data.streams=4", "data.window=8", "data.workers=0"]
    with pytest.raises(DataError, match="train-000001.tar: missing"):
        run("han", data, tmp_path / "failed", *settings)
    with pytest.raises(DataError, match="split test: every video is bad"):
        run("han", data, tmp_path / "failed", *settings, "data.on_bad=skip")
    shutil.copy(Path(packed) / "test-000000.tar", data)
    caplog.clear()
    result = run("han", data, tmp_path / "run", *settings, "data.on_bad=skip")
    labels = read_labels(packed, Index.load(packed))["train"]
    left_out = result["data"]["left_out"]
    assert left_out["count"] == 16
    assert {bad["id"] for bad in left_out["videos"]} == set(labels.ids[16:32])
    assert "16 of 90 videos are bad and were left out" in caplog.text
    assert "train-000001.tar: missing" in caplog.text
    sound = run("han", packed, tmp_path / "sound", *settings)
    assert sound["data"]["left_out"] == {"count": 0, "videos": []}
    assert not keys(tmp_path / "run") & keys(tmp_path / "sound")
    weights = [stage_folder(tmp_path / name, "train") / "model.safetensors" for name in ("run", "sound")]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_stream_counts_that_do_not_fit_are_refused_before_anything_is_written(packed, tmp_path):
    with pytest.raises(ConfigError, match=r"data.streams=12; use a batch_size of 12, or data.streams=8 or 16"):
        run("han", packed, tmp_path / "run", "data.mode=streaming", "data.streams=12")
    assert not (tmp_path / "run").exists()
    run("han", packed, tmp_path / "run", "data.mode=resident", "data.streams=12", "train.epochs=1")


def test_the_removed_labels_of_a_streamed_run_belong_to_their_videos(packed, tmp_path):
    run("jomold", packed, tmp_path / "run", *STREAMED, "method.warmup=linear", "data.workers=0")
    removed = np.load(stage_folder(tmp_path / "run", "denoise") / "removed.npz")["removed"]
    weak = read_labels(packed, Index.load(packed))["train"].weak
    assert removed.any()
    assert not (removed & ~weak[:, None]).any()
