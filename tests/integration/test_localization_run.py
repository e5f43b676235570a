"""Event localization on a synthetic AVE: temporal label refinement, several workers, resuming, refused combinations."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import invoke
from forks import ranks

from avvp_dist.datasets import synthetic_ave
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.errors import ConfigError, DataError, Preempted
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import run_experiment
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.index import Index, read_labels

SMALL = [
    "model.width=8", "model.attention_width=8", "model.feedforward=8", "train.epochs=2", "train.batch_size=8",
    "data.shuffle=true", "data.drop_last=false", "train.device=cpu", "tracking=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("ave") / "packed")
    synthetic_ave.write(out, splits=(20, 4, 4), background=12, layout="shards", workers=1, shard_videos=2)
    return out


def run(packed, output, *overrides, recipe="ave-lr"):
    config = load(recipe, [*SMALL, f"data={packed}", f"output={output}", *overrides])
    return run_experiment(config, LocalRuntime(str(output), "cpu"))


def refined_labels(output, stage):
    return RefinedLabels.load(str(next(Path(output).glob(f"stages/{stage}-*/refined.npz"))))


def history(output):
    return json.loads((Path(output) / "history.json").read_text())


def test_labels_of_windows_are_within_the_weak_labels(packed, tmp_path):
    result = run(packed, tmp_path, "method.base_epochs=1", "method.tau=0.03")
    assert result["task"]["name"] == "localization"
    assert [row["stage"] for row in history(tmp_path)] == ["base", "refine", "refine"]
    assert {"loss/mixed", "val/background_f1"} <= history(tmp_path)[0].keys()
    labels, weak = refined_labels(tmp_path, "relabel"), read_labels(packed, Index.load(packed))["train"].weak
    assert labels.windows == ((0, 4), (2, 6), (4, 8), (6, 10))
    found = labels.tracks["event"]
    assert found.shape == (32, 4, 28)
    assert (found <= weak[:, None]).all()
    assert found.any()
    assert result["denoising"]["removed_windows/event_labels"] == 4 * 20


def test_naive_predictors_are_shown_beside_the_scores(packed, tmp_path):
    for seed in (1, 2):
        result = run(packed, tmp_path / f"seed{seed}", "train.epochs=1", f"seed={seed}", recipe="ave")
    naive = result["references"]["test"]
    assert list(naive) == ["video-repeat", "GT-repeat", "majority"]
    assert naive["GT-repeat"]["event_recall"] == 100
    assert naive["video-repeat"]["background_recall"] == 0
    truth = read_labels(packed, Index.load(packed))["test"].truth["event"].any(axis=-1)
    assert naive["GT-repeat"]["accuracy"] == pytest.approx(100 * truth.mean())
    shown = invoke("evaluate", tmp_path / "seed1")
    assert "naive predictors" in shown
    assert "result.json reproduced" in shown
    compared = invoke("compare", tmp_path / "seed1", tmp_path / "seed2")
    assert "GT-repeat" in compared
    assert f" {naive['GT-repeat']['accuracy']:.1f} ± 0.0 " in compared


@pytest.mark.parametrize("refine", ["segments", "dummy", "none"])
def test_ablations(packed, tmp_path, refine):
    run(packed, tmp_path, "method.base_epochs=1", f"method.refine={refine}", "method.mixing_weight=0")
    stages = {"segments": {"base", "refine"}, "dummy": {"refine"}, "none": {"base"}}
    assert {row["stage"] for row in history(tmp_path)} == stages[refine]
    if refine == "segments":
        assert refined_labels(tmp_path, "segments").windows == tuple((second, second + 1) for second in range(10))


@pytest.mark.parametrize(("recipe", "without_dropout"), [("ave-lr", []), ("psp-lr", ["model.dropout=0"])])
@pytest.mark.parametrize(
    "mode", [[], ["data.mode=streaming", "data.streams=4", "data.window=4", "data.workers=0"]], ids=["resident", "streaming"]
)
def test_any_number_of_workers_finds_the_same_labels_and_losses(packed, tmp_path, recipe, without_dropout, mode):
    settings = [*mode, *without_dropout, "seed=0", "optim.lr=0.01", "method.tau=0.03", "method.base_epochs=1"]
    run(packed, tmp_path / "1", *settings, recipe=recipe)
    one = refined_labels(tmp_path / "1", "relabel")
    assert one.tracks["event"].any()
    for world in (2, 4):
        output = tmp_path / str(world)
        ranks(world, ["train", recipe, *SMALL, f"data={packed}", f"output={output}", *settings])
        found = refined_labels(output, "relabel")
        assert one.ids == found.ids
        np.testing.assert_array_equal(one.tracks["event"], found.tracks["event"])
        for row, other in zip(history(tmp_path / "1"), history(output), strict=True):
            for name in ("loss/total", "loss/video"):
                assert row[name] == pytest.approx(other[name], abs=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one(packed, tmp_path):
    class Stopping(LocalRuntime):
        reports = 0

        def report(self, metrics, checkpoint):
            super().report(metrics, checkpoint)
            self.reports += 1

        def stop_requested(self):
            return self.reports == 2

    settings = ["optim.milestones=[1]", "method.refine=none"]
    run(packed, tmp_path / "whole", *settings, "train.epochs=3", "method.base_epochs=3")
    output = tmp_path / "stopped"
    config = load(
        "ave-lr", [*SMALL, f"data={packed}", f"output={output}", *settings, "train.epochs=3", "method.base_epochs=3"]
    )
    with pytest.raises(Preempted):
        run_experiment(config, Stopping(str(output), "cpu"))
    run_experiment(config, LocalRuntime(str(output), "cpu"))
    assert (output / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_labels_that_are_durations(packed, tmp_path):
    small = ["model.width=8", "train.epochs=1", "train.batch_size=8", "train.device=cpu", "tracking=none"]
    config = load("psp", [*small, f"data={packed}", f"output={tmp_path}", "model.attention_width=8", "model.feedforward=8"])
    result = run_experiment(config, LocalRuntime(str(tmp_path), "cpu"))
    assert 0 <= result["scores"]["test"]["segments"]["metrics"]["accuracy"] <= 100
    both = load("psp", [*small, f"data={packed}", f"output={tmp_path / 'x'}", "data.refined=x.npz"])
    with pytest.raises(ConfigError, match="cannot be combined with data.refined"):
        run_experiment(both, LocalRuntime(str(tmp_path / "x"), "cpu"))


def test_missing_background_videos_are_reported_before_training(tmp_path):
    data = str(tmp_path / "data")
    synthetic_ave.write(data, splits=(6, 2, 2), background=0, layout="shards", workers=1)
    with pytest.raises(DataError, match=r"has no background videos.*use method.partners=disjoint"):
        run(data, tmp_path / "run", "train.batch_size=2")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["jomold", "ma", "han", "valor"])
def test_methods_for_two_modalities_are_refused(method):
    with pytest.raises(ConfigError, match=rf"{method}.*tracks audio and visual; the task has the track event"):
        load("ave", [f"method={method}"])


def test_a_recipe_for_another_task_is_refused(packed, tmp_path):
    with pytest.raises(Exception, match="task localization"):
        run_experiment(load("han", [f"data={packed}", f"output={tmp_path}"]), LocalRuntime(str(tmp_path), "cpu"))
