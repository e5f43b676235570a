"""One, two, three and four processes, and two under Ray Train: the same labels are removed, losses agree to 1e-5."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import stage_folder
from dying import DyingRuntime, Killed
from forks import avvp, ranks
from prometheus import last, scraped
from ray_cluster import RayCluster
from safetensors.torch import load_file

from avvp_dist.datasets.external import noisy_segment_labels
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import run_experiment
from avvp_dist.loading.refined import RefinedLabels

# 62 videos: the last batch has two, so that two of four ranks have none
OVERRIDES = [
    "train.epochs=2", "train.batch_size=20", "optim.lr=0.001", "model.visual_dropout=0",
    "tracking=none", "train.device=cpu",
]  # fmt: skip
DENOISE = ["jomold", "method.warmup=linear", "method.rounding=carry"]
NARROW = ["model.width=128", "model.feedforward=128", "model.dropout=0"]
JOMOLD = [*DENOISE, *NARROW]


def train(output: Path, data: str, *overrides: str, recipe: list[str] = JOMOLD, world: int = 1) -> None:
    ranks(world, ["train", *recipe, f"data={data}", f"output={output}", *OVERRIDES, *overrides])


def train_on_ray(cluster: RayCluster, output: Path, data: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """With two workers, and with relative paths: Ray's workers run in other folders."""
    places = [f"data={os.path.relpath(data, output.parent)}", f"output={output.name}"]
    arguments = ["train", *JOMOLD, *places, *OVERRIDES, *overrides, "launch=ray", "launch.workers=2"]
    quick = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    return avvp(*arguments, cwd=output.parent, **cluster.environment, **quick)


@pytest.fixture(scope="module")
def one(packed, tmp_path_factory):
    output = tmp_path_factory.mktemp("one")
    train(output, packed)
    return output


def assert_same_losses(output: Path, one: Path, *stages: str) -> None:
    for name in stages:
        expected, got = (
            json.loads((stage_folder(run, name) / "stage.json").read_text())["history"] for run in (one, output)
        )
        assert [row["epoch"] for row in got] == [row["epoch"] for row in expected]
        for row, reference in zip(got, expected, strict=True):
            for key in [key for key in reference if key.startswith("loss/")]:
                assert row[key] == pytest.approx(reference[key], abs=1e-5), (name, row["epoch"], key)


def assert_same_training(output: Path, one: Path) -> None:
    assert_same_losses(output, one, "estimate", "denoise")
    ratios = [json.loads((stage_folder(run, "ratios") / "ratios.json").read_text()) for run in (one, output)]
    assert ratios[0] == ratios[1]
    removed = [np.load(stage_folder(run, "denoise") / "removed.npz")["removed"] for run in (one, output)]
    assert removed[0].any()
    np.testing.assert_array_equal(*removed)
    scores = [json.loads((run / "result.json").read_text())["scores"] for run in (one, output)]
    assert scores[0]["test"]["modality"]["metrics"] == pytest.approx(scores[1]["test"]["modality"]["metrics"], abs=1e-9)


def test_torchrun(packed, tmp_path, one):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "-m", "avvp_dist"]
    command = [*launcher, "train", *JOMOLD, f"data={packed}", f"output={tmp_path}", *OVERRIDES]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_training(tmp_path, one)
    provenance = json.loads((tmp_path / "result.json").read_text())["provenance"]
    assert (provenance["world_size"], provenance["launcher"], provenance["device"]) == (3, "torchrun", "cpu")


def test_more_ranks_than_the_last_batch_has_videos(packed, tmp_path, one):
    train(tmp_path, packed, world=4)
    assert_same_training(tmp_path, one)


@pytest.mark.parametrize(
    ("recipe", "trained", "refined"),
    [
        (["ma", *NARROW, "method.rule=paper", "method.partners=2"], ["base", "retrain"], "exchange"),
        (["lr", *NARROW, "method.tau=0.2"], ["base", "refine"], "relabel"),
        (["poibin", *NARROW, "method.minimum_count=0"], ["mil", "count"], "counts"),
    ],
)
def test_label_refiners_on_two_ranks(packed, tmp_path, recipe, trained, refined):
    train(tmp_path / "one", packed, recipe=recipe)
    train(tmp_path / "two", packed, recipe=recipe, world=2)
    assert_same_losses(tmp_path / "two", tmp_path / "one", *trained)
    labels = [RefinedLabels.load(str(stage_folder(tmp_path / run, refined) / "refined.npz")) for run in ("one", "two")]
    assert (labels[0].audio == 0).any()
    assert labels[0].fingerprint == labels[1].fingerprint


STREAMED = ("data.mode=streaming", "data.streams=4", "data.window=8", "data.workers=1")


@pytest.fixture(scope="module")
def one_streamed(packed, tmp_path_factory):
    output = tmp_path_factory.mktemp("one-streamed")
    train(output, packed, *STREAMED, "train.checkpoint_every=2")
    return output


def test_streaming_on_three_ranks(packed, tmp_path, one_streamed):  # two ranks read two of the four streams
    train(tmp_path, packed, *STREAMED, "train.checkpoint_every=2", world=3)
    assert_same_training(tmp_path, one_streamed)


def test_streaming_resumes_within_an_epoch_on_two_ranks(packed, tmp_path, one_streamed):
    config = load(
        JOMOLD[0], [*JOMOLD[1:], f"data={packed}", f"output={tmp_path}", *OVERRIDES, *STREAMED, "train.checkpoint_every=2"]
    )
    with pytest.raises(Killed):
        run_experiment(config, DyingRuntime(config.output, after=3))  # two of the four steps of the second epoch are done
    train(tmp_path, packed, *STREAMED, "train.checkpoint_every=2", world=2)
    assert_same_training(tmp_path, one_streamed)


def test_another_network_on_four_ranks(packed, tmp_path):
    recipe = [*DENOISE, "model=ave-llp", "model.width=32"]
    train(tmp_path / "one", packed, recipe=recipe)
    train(tmp_path / "four", packed, recipe=recipe, world=4)
    assert_same_training(tmp_path / "four", tmp_path / "one")


def test_valor_on_two_ranks(packed, tmp_path):
    refined = tmp_path / "labels.npz"
    refined.write_bytes(noisy_segment_labels(packed, 0.1, 0).to_bytes())
    settings = ["model.width=64", "model.layers=2", "model.dropout=0", "optim.warmup_epochs=1"]
    recipe = ["valor", f"data.refined={refined}", *settings]
    train(tmp_path / "one", packed, recipe=recipe)
    train(tmp_path / "two", packed, recipe=recipe, world=2)
    assert_same_losses(tmp_path / "two", tmp_path / "one", "train")
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("one", "two")]
    assert results[0]["best"]["epoch"] == results[1]["best"]["epoch"]
    assert results[0]["scores"]["test"]["joint"]["metrics"] == pytest.approx(
        results[1]["scores"]["test"]["joint"]["metrics"], abs=1e-9
    )


@pytest.mark.parametrize("world", [2, 4])
def test_prototypes(packed, tmp_path, world):
    settings = ["method.warmup_epochs=1", "method.key_probability=0.2", "method.capacity=8", "model.visual_hidden=64"]
    recipe = ["ppl", *settings, "model.width=64", "evaluate.select=last"]  # the first epoch has no prototypes
    train(tmp_path / "one", packed, recipe=recipe)
    train(tmp_path / "several", packed, recipe=recipe, world=world)
    assert_same_losses(tmp_path / "several", tmp_path / "one", "train")
    one, several = (load_file(stage_folder(tmp_path / run, "train") / "state.safetensors") for run in ("one", "several"))
    assert one["known"].any()
    assert (one["known"] == several["known"]).all()
    np.testing.assert_allclose(one["centers"].numpy(), several["centers"].numpy(), atol=1e-5)
    labels = [RefinedLabels.load(str(stage_folder(tmp_path / run, "labels") / "refined.npz")) for run in ("one", "several")]
    for track in ("audio", "visual"):
        np.testing.assert_allclose(labels[0].tracks[track], labels[1].tracks[track], atol=1e-4)


@pytest.mark.parametrize("recipe", [["coteaching", "method.plain_epochs=1"], ["jocor", "method.co_lambda=0.5"]])
def test_two_networks_on_two_ranks(packed, tmp_path, recipe):
    recipe = [*recipe, "method.forget_epochs=1", "model.width=64", "model.feedforward=64", "model.dropout=0"]
    train(tmp_path / "one", packed, recipe=recipe)
    train(tmp_path / "two", packed, recipe=recipe, world=2)
    assert_same_losses(tmp_path / "two", tmp_path / "one", "train")
    removed = [np.load(stage_folder(tmp_path / run, "train") / "removed.npz")["removed"] for run in ("one", "two")]
    assert removed[0].any(axis=(0, 2)).all()
    np.testing.assert_array_equal(*removed)


def test_networks_in_turn_on_two_ranks(packed, tmp_path):
    recipe = ["em-mil", *NARROW, "method.phases=[0, 0, 1, 1]", "optim.warmup_epochs=1"]  # an M-epoch and an E-epoch
    train(tmp_path / "one", packed, recipe=recipe)
    train(tmp_path / "two", packed, recipe=recipe, world=2)
    assert_same_losses(tmp_path / "two", tmp_path / "one", "train")


def test_ray_train(cluster, packed, tmp_path, one):
    with scraped(lambda: [cluster.metrics]) as every:
        done = train_on_ray(cluster, tmp_path, packed)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [series for series in every if series["run"] == str(tmp_path)]
    assert_same_training(tmp_path, one)
    provenance = json.loads((tmp_path / "result.json").read_text())["provenance"]
    assert (provenance["world_size"], provenance["launcher"]) == (2, "ray")
    of_ranks = ["data_wait", "step", "ranking", "exchange", "all_reduce"]
    for name in of_ranks:
        for rank in ("0", "1"):
            assert 0 < last(found, f"ray_avvp_{name}_seconds", stage="denoise", rank=rank) < 600, (name, rank)
    assert {series["rank"] for series in found if series["name"] == "ray_avvp_videos_per_second"} == {"0"}
    # Ray updates its exporter periodically, so that a run can end before the last epoch's values are exported
    rows = [row for row in json.loads((tmp_path / "history.json").read_text()) if row["stage"] == "denoise"]
    series = {
        "ray_avvp_videos_per_second": {"videos_per_second": {}},
        "ray_avvp_removed_labels": {f"removed/{modality}": {"modality": modality} for modality in ("audio", "visual")},
        **{f"ray_avvp_{name}_seconds": {f"time/{name}_seconds": {"rank": "0"}} for name in of_ranks},
    }
    for name, keys in series.items():
        for key, tags in keys.items():
            assert last(found, name, stage="denoise", **tags) in [pytest.approx(row[key], rel=1e-5) for row in rows], key
    assert rows[-1]["removed/audio"] + rows[-1]["removed/visual"] > 0


@pytest.mark.slow
def test_ray_train_names_the_bad_shard_that_one_worker_finds(cluster, packed, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(packed, data)
    with (data / "train-000002.tar").open("r+b") as shard:
        shard.write(b"x")
    done = train_on_ray(cluster, tmp_path / "run", str(data), *STREAMED)
    assert done.returncode != 0
    assert re.search(r"(?s)error: .*train-000002.tar: content differs", done.stderr), done.stderr
    assert "Traceback" not in done.stderr.split("error:")[-1]


def test_a_batch_with_fewer_videos_than_workers_is_refused_before_workers_start(packed, tmp_path):
    arguments = [
        "train",
        "jomold",
        f"data={packed}",
        f"output={tmp_path}",
        "train.batch_size=2",
        "launch=ray",
        "launch.workers=3",
        "launch.min_workers=1",
    ]
    done = avvp(*arguments)
    assert done.returncode == 2
    assert "batch_size 2 is the global batch: some of 3 workers would never get a video; use 3 or more" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
