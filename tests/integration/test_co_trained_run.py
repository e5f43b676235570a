"""Two co-trained networks: trained, resumed, and saved as one plain network, on a small synthetic data set."""

import numpy as np
import pytest
import torch
from commands import history, stage_folder, train_here
from dying import DyingRuntime, Killed

from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import evaluate_experiment, run_experiment
from avvp_dist.shards.index import Index
from avvp_dist.train.checkpoint import unpack
from avvp_dist.train.stages import read_weights

SMALL = ["train.epochs=3", "train.batch_size=16", "model.width=32", "model.feedforward=32", "optim.lr=0.003"]
SMALL += ["method.forget_epochs=1", "tracking=none", "train.device=cpu"]
METHODS = {"coteaching": ["method.plain_epochs=1"], "jocor": []}


def run(recipe, packed, output, *overrides, runtime=None):
    return train_here(recipe, packed, output, *SMALL, *METHODS[recipe], *overrides, runtime=runtime)


@pytest.fixture(scope="module", params=METHODS)
def finished(packed, tmp_path_factory, request):
    """Recipe, folder and result of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp(request.param)
    return request.param, output, run(request.param, packed, output, "train.checkpoint_every=2")


def test_a_run_killed_within_an_epoch_resumes_bit_for_bit(packed, tmp_path, finished):
    recipe, whole, result = finished
    with pytest.raises(Killed):
        run(
            recipe,
            packed,
            tmp_path / "cut",
            "train.checkpoint_every=2",
            runtime=DyingRuntime(str(tmp_path / "cut"), after=3),
        )
    newest = max((tmp_path / "cut" / "checkpoints").glob("*.pt"))
    state = unpack(newest.read_bytes())
    assert (state["epoch"], state["step"]) == (1, 2)
    assert_networks_differ(state["model"])
    run(recipe, packed, tmp_path / "cut", "train.checkpoint_every=2")
    assert history(whole) == history(tmp_path / "cut")
    files = [stage_folder(output) / "model.safetensors" for output in (whole, tmp_path / "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    removed = [np.load(stage_folder(output) / "removed.npz")["removed"] for output in (whole, tmp_path / "cut")]
    np.testing.assert_array_equal(*removed)
    assert result["denoising"]["removed/visual"] == removed[0][:, 1].sum() > 0
    assert 0 <= result["denoising"]["removed/visual_precision"] <= 100


def assert_networks_differ(weights):
    matrices = [name for name, value in weights.items() if name.startswith("networks.0.") and value.dim() > 1]
    assert len(matrices) >= 10
    for name in matrices:
        assert not torch.equal(weights[name], weights[name.replace("networks.0.", "networks.1.")]), name


def test_both_networks_learn(packed, tmp_path):
    run(
        "coteaching",
        packed,
        tmp_path,
        "train.epochs=8",
        "method.audio_forget=0",
        "method.visual_forget=0",
        "method.plain_epochs=8",
    )
    rows = history(tmp_path)
    own = [row["loss/total"] - row["loss/second_network"] for row in (rows[0], rows[-1])]
    assert own[1] < 0.7 * own[0]
    assert rows[-1]["loss/second_network"] < 0.7 * rows[0]["loss/second_network"]
    assert rows[-1]["loss/second_network"] != own[1]


def test_the_final_model_is_one_plain_network(packed, finished):
    _, output, result = finished
    config, index = load(str(output / "config.yaml")), Index.load(packed)
    plain = config.model.build(index.shapes, len(index.classes))
    plain.load_state_dict(read_weights(str(output / "model.safetensors")))
    assert evaluate_experiment(config, LocalRuntime(config.output, "cpu")).scores == result["scores"]


def test_the_first_network_is_initialized_like_a_single_one(packed, tmp_path):
    """With nothing left out and no dropout, the first of two networks is trained exactly as HAN is."""
    same = ["model.dropout=0", "train.epochs=2"]
    run(
        "coteaching",
        packed,
        tmp_path / "two",
        *same,
        "method.audio_forget=0",
        "method.visual_forget=0",
        "method.plain_epochs=9",
    )
    alone = [setting for setting in SMALL if not setting.startswith("method.")]
    config = load("han", [f"data={packed}", f"output={tmp_path / 'one'}", *alone, *same])
    run_experiment(config, LocalRuntime(config.output, "cpu"))
    for two, one in zip(history(tmp_path / "two"), history(tmp_path / "one"), strict=True):
        for name in ("loss/video", "loss/audio", "loss/visual", "val/segment.type"):
            assert two[name] == pytest.approx(one[name], rel=1e-6), name
