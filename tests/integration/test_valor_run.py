"""VALOR from segment-level labels to scores, on a small synthetic data set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import history, train_here
from dying import DyingRuntime, Killed
from indexes import change_index
from typer.testing import CliRunner

from avvp_dist.cli.data import data
from avvp_dist.datasets import synthetic
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.experiments.recipe import load, recipes
from avvp_dist.experiments.run import run_experiment
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.index import Index

SMALL = ["train.epochs=4", "train.batch_size=16", "model.width=32", "model.feedforward=32", "model.heads=2"]
SMALL += ["optim.warmup_epochs=2", "optim.lr=0.003", "tracking=none", "train.device=cpu"]


@pytest.fixture(scope="module")
def labels(packed, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("labels") / "refined.npz")
    done = CliRunner().invoke(data, ["noisy-labels", "--data", packed, "--out", out, "--flip", "0.1"])
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def clip_clap(tmp_path_factory):
    """The videos of ``packed`` with features like CLIP's and CLAP's."""
    out = str(tmp_path_factory.mktemp("data") / "clip-clap")
    synthetic.write(
        out, videos=None, seed=0, layout="shards", streams="clip-clap", splits=(62, 14, 14), workers=1, shard_videos=16
    )
    return out


def run(packed, output, *overrides, runtime=None):
    return train_here("valor", packed, output, *SMALL, *overrides, runtime=runtime)


def test_valor_learns_and_resumes_after_a_kill(packed, labels, tmp_path):
    result = run(packed, tmp_path / "whole", f"data.refined={labels}")
    rows = history(tmp_path / "whole")
    assert rows[-1]["loss/audio"] < rows[0]["loss/audio"]
    assert rows[-1]["loss/visual"] < rows[0]["loss/visual"]
    assert [row["lr"] for row in rows] == pytest.approx([0.0015, 0.003, 0.003 * 0.505, 0.00003])
    best = max(row["val/segment.type"] for row in rows)
    assert result["best"]["epoch"] == next(row["epoch"] for row in rows if row["val/segment.type"] == best)
    with pytest.raises(Killed):
        run(packed, tmp_path / "killed", f"data.refined={labels}", runtime=DyingRuntime(str(tmp_path / "killed"), after=2))
    again = run(packed, tmp_path / "killed", f"data.refined={labels}")
    assert history(tmp_path / "killed") == rows
    assert again["scores"] == result["scores"]


def test_missing_or_unfit_labels_are_refused_before_anything_is_written(packed, labels, tmp_path):
    with pytest.raises(ConfigError, match="data.refined: missing; method valor trains on segment-level labels; make such"):
        run(packed, tmp_path / "run")
    found = RefinedLabels.load(labels)
    of_videos = RefinedLabels(
        found.ids, found.classes, None, {"audio": found.audio.max(1), "visual": found.visual.max(1)}, {}
    )
    windows = ((0, 5), (5, 10))
    of_windows = RefinedLabels(
        found.ids, found.classes, None, {"audio": found.audio[:, :2], "visual": found.visual[:, :2]}, {}, windows
    )
    for name, other in (("videos", of_videos), ("windows", of_windows)):
        (tmp_path / name).write_bytes(other.to_bytes())
        with pytest.raises(
            ConfigError, match="method valor trains on segment-level labels, but those in .* are of whole videos or"
        ):
            run(packed, tmp_path / "run", f"data.refined={tmp_path / name}")
    few = RefinedLabels(found.ids[:-1], found.classes, None, {"audio": found.audio[:-1], "visual": found.visual[:-1]}, {})
    (tmp_path / "few").write_bytes(few.to_bytes())
    with pytest.raises(DataError, match="no labels for 1 of 62 training videos"):
        run(packed, tmp_path / "run", f"data.refined={tmp_path / 'few'}")
    assert not (tmp_path / "run").exists()


def test_other_methods_use_segment_level_labels_as_video_level_ones(packed, labels, tmp_path):
    overrides = [f"data={packed}", f"output={tmp_path / 'run'}", "train.epochs=1", "model.width=32", "tracking=none"]
    config = load("han", [*overrides, f"data.refined={labels}"])
    result = run_experiment(config, LocalRuntime(config.output, "cpu"))
    assert np.isfinite(result["scores"]["test"]["joint"]["metrics"]["segment.type"])


PARSING = [name for name in recipes() if load(name).task.name == "parsing"]


@pytest.mark.parametrize("recipe", PARSING)
def test_every_recipe_trains_on_clip_and_clap_features(clip_clap, labels, tmp_path, recipe, figures):
    overrides = [f"data={clip_clap}", f"output={tmp_path}", "train.epochs=1", "model.width=16", "train.batch_size=31"]
    overrides += [f"data.refined={labels}"] if recipe.startswith("valor") else []
    result = run_experiment(load(recipe, [*overrides, "tracking=none"]), LocalRuntime(str(tmp_path), "cpu"))
    assert result["data"]["dataset"] == "llp-clip-clap"
    assert np.isfinite(result["scores"]["test"]["joint"]["metrics"]["segment.type"])


def test_data_that_does_not_fit_a_recipe_is_refused_before_anything_is_written(packed, labels, tmp_path):
    config = load("valor-plus-plus", [f"data={packed}", f"data.refined={labels}", f"output={tmp_path / 'run'}"])
    with pytest.raises(DataError, match="data set llp: recipe valor-plus-plus requires llp-clip-clap"):
        run_experiment(config, LocalRuntime(config.output, "cpu"))
    for name in ("index.json", "labels.parquet"):
        (tmp_path / name).write_bytes(Path(packed, name).read_bytes())
    change_index(tmp_path, lambda index: {"streams": (*index.streams[:2], replace(index.streams[2], name="flow"))})
    assert Index.load(str(tmp_path)).streams[2].name == "flow"
    for recipe in ("han", "valor"):
        config = load(recipe, [f"data={tmp_path}", f"output={tmp_path / 'run'}"])
        with pytest.raises(DataError) as caught:
            run_experiment(config, LocalRuntime(config.output, "cpu"))
        assert caught.value.problems == [
            "stream motion: missing, but network han reads it; the data set has audio, visual, flow"
        ]
    assert not (tmp_path / "run").exists()
