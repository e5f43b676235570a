"""The baseline of the benchmarks reproduces the published code."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.published_loop import Network, build, clear_noisy, contrastive, make_optimizer, train_epoch, train_step

ROWS = [("AAAAAAAAAAA_0_10", "Speech,Dog"), ("BBBBBBBBBBB_30_40", "Clapping"), ("CCCCCCCCCCC_5_15", "Dog,Car")]


@pytest.fixture
def features(tmp_path):
    rng = np.random.default_rng(3)
    for folder, shape in (("vggish", (10, 128)), ("res152", (80, 2048)), ("r2plus1d_18", (10, 512))):
        (tmp_path / folder).mkdir()
        for name, _ in ROWS:
            np.save(tmp_path / folder / f"{name[:11]}.npy", rng.standard_normal(shape).astype(np.float32))
    return tmp_path


@pytest.fixture(scope="module")
def network(golden):
    """Return the network with the weights of the golden file."""
    shapes = json.loads((golden / "A_han_shapes.json").read_text())
    with np.load(golden / "A_han_forward.npz") as file:
        rng = np.random.default_rng(int(file["weight_seed"]))
    weights = {}
    for name in sorted(shapes):
        drawn = (rng.standard_normal(shapes[name]) * 0.05).astype(np.float32)
        weights[name] = torch.from_numpy(drawn + 1 if "norm" in name and name.endswith("weight") else drawn)
    network = Network()
    network.load_state_dict(weights, strict=True)
    return network.eval()


@pytest.mark.parametrize("with_ca", [True, False])
def test_network_equals_the_published_one(golden, network, with_ca):
    with np.load(golden / "A_han_forward.npz") as file:
        inputs = [torch.from_numpy(file[name].astype(np.float32)) for name in ("audio", "visual", "visual_st")]
        prefix = "with_ca" if with_ca else "without_ca"
        expected = {name: file[f"{prefix}_{name}"] for name in ("video", "audio", "visual", "segment", "sims", "nce")}
    with torch.no_grad():
        outputs = network(*inputs, with_ca=with_ca)
        outputs_by_name = dict(zip(expected, (*outputs, contrastive(outputs[-1])), strict=True))
    for name, value in expected.items():
        np.testing.assert_allclose(outputs_by_name[name].numpy(), value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("batch", ["b0", "b1", "b2"])
def test_selection_equals_the_published_one(golden, batch):
    with np.load(golden / "A_ranking.npz") as file:
        case = {name.removeprefix(f"{batch}_"): torch.from_numpy(file[name]) for name in file if name.startswith(batch)}
    weak = case["weak"]
    target_audio, target_visual = weak.float(), weak * 0.9 + 0.05
    ratios = case["ratio_audio"], case["ratio_visual"]
    clear_noisy(case["loss_audio"], case["loss_visual"], target_audio, target_visual, *ratios)
    assert case["removed_audio"].any()
    assert case["removed_visual"].any()
    assert torch.equal(target_audio, (weak & ~case["removed_audio"]).float())
    assert torch.equal(target_visual, (weak * 0.9 + 0.05).masked_fill(case["removed_visual"], 0))


def test_the_loader_reads_features_and_labels(features):
    loader = build(features, ROWS, num_workers=0)
    (sample,) = list(loader)
    assert [tuple(sample[name].shape) for name in ("audio", "visual", "motion")] == [
        (3, 10, 128),
        (3, 80, 2048),
        (3, 10, 512),
    ]
    row = int(np.flatnonzero(sample["label"][:, 24])[0])  # the only label of its video is Clapping
    expected = np.load(features / "res152" / "BBBBBBBBBBB.npy")
    np.testing.assert_array_equal(sample["visual"][row], expected)
    labels = sorted(tuple(np.flatnonzero(label)) for label in sample["label"])
    assert labels == [(0, 3), (1, 3), (24,)]
    assert torch.equal(sample["target_visual"].float(), torch.where(sample["label"] > 0, 0.95, 0.05))
    assert torch.equal(sample["target_audio"], sample["label"])


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_step_trains_on_the_cleared_targets(features, network, ratio):
    (sample,) = list(build(features, ROWS, num_workers=0))
    model = Network()
    model.load_state_dict(network.state_dict())
    model.eval()  # no dropout, so that the loss can be computed independently
    label = sample["label"].float()
    kept = label * (1 - ratio)
    visual_target = torch.where(label > 0, 0.95 * (1 - ratio), 0.05)
    with torch.no_grad():
        video, audio, visual, _, similarity = model(sample["audio"], sample["visual"], sample["motion"], with_ca=True)
        losses = F.binary_cross_entropy(audio, kept), F.binary_cross_entropy(visual, visual_target)
        expected = 2 * losses[0] + losses[1] + F.binary_cross_entropy(video, label) + contrastive(similarity)
    ratios = torch.full((25,), ratio, dtype=torch.float64)
    assert train_step(model, sample, make_optimizer(model), ratios, ratios) == pytest.approx(float(expected), abs=1e-5)


def test_an_epoch_processes_every_video_and_changes_the_weights(features):
    torch.manual_seed(0)
    model = Network()
    before = model.fc_prob.weight.detach().clone()
    ratios = torch.full((25,), 0.5, dtype=torch.float64)
    samples, seconds = train_epoch(model, build(features, ROWS, 2, num_workers=0), make_optimizer(model), ratios, ratios)
    assert samples == len(ROWS)
    assert seconds > 0
    assert not torch.equal(model.fc_prob.weight, before)
