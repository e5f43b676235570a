"""Whole runs through the composition root on a small synthetic data set."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from commands import history, stage_folder, train_here
from dying import DyingRuntime, Killed

from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.errors import ConfigError, DataError, TrainingError
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import evaluate_experiment, run_experiment
from avvp_dist.metrics.per_video import VideoStatistics
from avvp_dist.tasks.parsing import ParsingConfig
from avvp_dist.train.checkpoint import pack, unpack

SMALL = [
    "train.epochs=3",
    "train.batch_size=16",
    "model.width=32",
    "model.feedforward=32",
    "tracking=none",
    "train.device=cpu",
]


def run(recipe, data, output, *overrides, runtime=None):
    return train_here(recipe, data, output, *SMALL, *overrides, runtime=runtime)


def test_a_run_leaves_scores_model_and_figures(packed, tmp_path, figures):
    result = run("jomold", packed, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert set(result["scores"]) == {"val", "test"}
    protocols = ("joint", "modality", "none")
    assert [view["name"] for view in result["task"]["views"]] == [*protocols, *(f"{p}/without_speech" for p in protocols)]
    assert (result["task"]["name"], result["task"]["view"]) == ("parsing", "modality")
    names = {
        f"{level}.{name}" for level in ("segment", "event") for name in ("audio", "visual", "audio_visual", "type", "event")
    }
    assert {metric["name"] for metric in result["task"]["metrics"]} == names
    kept = VideoStatistics.load(str(tmp_path / "run" / "per_video.npz"))
    for split, views in result["scores"].items():
        assert set(views) == {view["name"] for view in result["task"]["views"]}
        assert len(kept.ids[split]) == 14
        for view, scores in views.items():
            assert scores["settings"] == {"segment_threshold": 0.5, "video_threshold": 0.5}
            assert set(scores["metrics"]) == names
            assert all(0 <= value <= 100 for value in scores["metrics"].values())
            assert len(scores["per_class"]) == (0 if "/" in view else 25)
            statistics = kept.values[split, view]
            again = {name: ParsingConfig.recompute(statistics, np.ones((1, 14)), name)[0] for name in names}
            assert again == pytest.approx(scores["metrics"], abs=1e-9)
    assert result["data"]["synthetic"] is True
    figures = {path.name: path.stat().st_size for path in (tmp_path / "run" / "figures").iterdir()}
    assert len(figures) >= 4
    assert min(figures.values()) > 5_000
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))
    assert [row["stage"] for row in json.loads((tmp_path / "run" / "history.json").read_text())] == ["estimate"] * 3 + [
        "denoise"
    ] * 3


def test_evaluate_reproduces_the_recorded_scores(packed, tmp_path):
    result = run("han", packed, tmp_path / "run")
    config = load(str(tmp_path / "run" / "config.yaml"))
    assert evaluate_experiment(config, LocalRuntime(config.output, "cpu")).scores == result["scores"]


def test_learning_lowers_the_loss(packed, tmp_path):
    run("han", packed, tmp_path / "run", "train.epochs=8", "optim.lr=0.003")
    losses = [row["loss/total"] for row in history(tmp_path / "run", "train")]
    assert losses[-1] < 0.7 * losses[0]


def test_finished_stages_are_reused_and_only_the_touched_ones_run_again(packed, tmp_path, caplog):
    first = run("jomold", packed, tmp_path / "a", f"store={tmp_path / 'store'}")
    with caplog.at_level("INFO", logger="avvp_dist"):
        again = run("jomold", packed, tmp_path / "a", f"store={tmp_path / 'store'}")
    assert caplog.text.count("reused") == 3
    assert again["scores"] == first["scores"]
    caplog.clear()
    with caplog.at_level("INFO", logger="avvp_dist"):
        run("jomold", packed, tmp_path / "b", f"store={tmp_path / 'store'}", "method.rounding=carry")
    reused = [record.message.split()[1].rstrip(":") for record in caplog.records if "reused" in record.message]
    assert reused == ["estimate", "ratios"]


def test_best_epoch_is_the_last_of_the_best(packed, tmp_path):
    result = run("jomold", packed, tmp_path / "run")
    rows = history(tmp_path / "run", "denoise")
    best = max(row["val/event.audio"] for row in rows)
    assert result["best"]["value"] == best
    assert result["best"]["epoch"] == [row["epoch"] for row in rows if row["val/event.audio"] == best][-1]


@pytest.mark.parametrize("commits", [1, 4, 9])
def test_resumed_equals_uninterrupted_bit_for_bit(packed, tmp_path, commits):
    settings = [
        "train.checkpoint_every=2",
        "method.rounding=carry",
        "method.warmup=linear",
    ]  # 4 steps an epoch: 2 commits each
    run("jomold", packed, tmp_path / "whole", *settings)
    with pytest.raises(Killed):
        run("jomold", packed, tmp_path / "cut", *settings, runtime=DyingRuntime(str(tmp_path / "cut"), after=commits))
    run("jomold", packed, tmp_path / "cut", *settings)
    for stage in ("estimate", "denoise"):
        assert history(tmp_path / "whole", stage) == history(tmp_path / "cut", stage)
        whole, cut = (stage_folder(tmp_path / name, stage) / "model.safetensors" for name in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()
    removed = [np.load(stage_folder(tmp_path / name, "denoise") / "removed.npz")["removed"] for name in ("whole", "cut")]
    np.testing.assert_array_equal(*removed)
    assert removed[0].any()


def test_the_ratios_of_one_run_skip_the_first_stages_of_another(packed, tmp_path):
    first = run("jomold", packed, tmp_path / "first", "method.warmup=linear")
    ratios = stage_folder(tmp_path / "first", "ratios") / "ratios.json"
    second = run("jomold", packed, tmp_path / "second", "method.warmup=linear", f"method.ratios={ratios}")
    assert [path.name.split("-")[0] for path in (tmp_path / "second" / "stages").iterdir()] == ["denoise"]
    assert second["scores"] == first["scores"]


def test_denoising_is_scored_against_the_synthetic_truth(packed, tmp_path):
    run("jomold", packed, tmp_path / "run", "method.warmup=linear")
    last = history(tmp_path / "run", "denoise")[-1]
    removed = np.load(stage_folder(tmp_path / "run", "denoise") / "removed.npz")["removed"]
    assert removed.shape == (62, 2, 25)
    assert last["removed/visual"] == removed[:, 1].sum() > 0
    assert 0 <= last["removed/visual_precision"] <= 100


@pytest.mark.parametrize(
    "settings", [["train.precision=bfloat16"], ["optim.clip_norm=1.0"], ["method.ranking_dropout=false"]]
)
def test_options_train(packed, tmp_path, settings):
    run("jomold", packed, tmp_path / "run", *settings)
    assert all(math.isfinite(row["loss/total"]) for row in history(tmp_path / "run", "denoise"))


def test_ma_refines_and_any_method_trains_on_its_labels(packed, tmp_path):
    result = run("ma", packed, tmp_path / "ma", "method.rule=paper")  # three epochs are too few for the published rule
    assert result["denoising"]["removed/visual"] > 0
    assert "last epoch" in result["best"]["metric"]
    refined = stage_folder(tmp_path / "ma", "exchange") / "refined.npz"
    on_top = run("jomold", packed, tmp_path / "jomold", f"data.refined={refined}")
    assert history(tmp_path / "jomold", "denoise")
    plain = run("jomold", packed, tmp_path / "plain")
    assert plain["scores"] != on_top["scores"]
    with pytest.raises(DataError, match="no such file"):
        run("jomold", packed, tmp_path / "none", "data.refined=nowhere.npz")


def test_lr_refines_windows_and_resumes_exactly(packed, tmp_path):
    settings = ["train.checkpoint_every=2", "method.tau=0.2"]
    run("lr", packed, tmp_path / "whole", *settings)
    with pytest.raises(Killed):
        run("lr", packed, tmp_path / "cut", *settings, runtime=DyingRuntime(str(tmp_path / "cut"), after=3))
    run("lr", packed, tmp_path / "cut", *settings)
    for stage in ("base", "refine"):
        assert history(tmp_path / "whole", stage) == history(tmp_path / "cut", stage)
    assert history(tmp_path / "whole", "base")[-1]["loss/mixed"] > 0


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_videos(packed, tmp_path):
    output = tmp_path / "run"
    with pytest.raises(TrainingError) as caught:
        run("han", packed, output, "optim.lr=1e30", "train.epochs=5")
    assert "stage train, epoch 1, step 2" in str(caught.value)
    assert "16 of 16 videos" in str(caught.value)
    assert not list((output / "checkpoints").glob("*.pt"))  # nothing was committed after the damage
    assert not (output / "result.json").exists()


def test_another_run_is_not_overwritten(packed, tmp_path):
    run("han", packed, tmp_path / "run")
    before = (tmp_path / "run" / "result.json").read_text()
    with pytest.raises(ConfigError, match=r"optim.lr: 0.0003 there, 0.001 in this command"):
        run("han", packed, tmp_path / "run", "optim.lr=0.001")
    assert (tmp_path / "run" / "result.json").read_text() == before


def test_a_folder_of_data_is_not_accepted_as_output(packed, tmp_path):
    before = sorted(path.name for path in Path(packed).iterdir())
    with pytest.raises(ConfigError, match="contains data \\(index.json"):
        run("han", packed, packed)
    assert sorted(path.name for path in Path(packed).iterdir()) == before


def test_missing_data_is_reported(packed, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        run("han", tmp_path / "nowhere", tmp_path / "run")
    with pytest.raises(ConfigError, match="data: missing"):
        run_experiment(load("han", [f"output={tmp_path / 'run'}"]), LocalRuntime(str(tmp_path / "run"), "cpu"))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_loading_a_checkpoint_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    blob = pack({"bomb": Bomb()})
    with pytest.raises(DataError, match="cannot be read"):
        unpack(blob)
    assert not (tmp_path / "exploded").exists()
