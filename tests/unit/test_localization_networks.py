"""The networks of AVE and PSP against the authors' networks, and their parts; see also test_network_contract.py."""

import json
import logging
import math

import numpy as np
import pytest
import torch

from avvp_dist.errors import ConfigError, DataError
from avvp_dist.models import MODELS
from avvp_dist.models.ave import AveConfig
from avvp_dist.models.pooling import SoftmaxHead
from avvp_dist.models.psp import Propagation, PspConfig
from avvp_dist.models.published import load
from avvp_dist.types import Batch

SHAPES = {"audio": (6,), "visual": (2, 3, 9)}
CONFIGS = {"ave": AveConfig, "psp": PspConfig}
each_network = pytest.mark.parametrize("name", CONFIGS)


def network(name, **settings):
    torch.manual_seed(0)
    return CONFIGS[name](width=16, attention_width=16, feedforward=16, **settings).build(SHAPES, classes=5)


def batch_of(audio, visual):
    return Batch({"audio": audio, "visual": visual}, torch.zeros(len(audio), 5), torch.arange(len(audio)), len(audio))


def random_batch(videos=3):
    generator = torch.Generator().manual_seed(0)
    return batch_of(*(torch.randn(videos, 10, *shape, generator=generator) for shape in SHAPES.values()))


@pytest.fixture(scope="module")
def vectors(golden):
    return np.load(golden / "A_ave_psp_forward.npz")


@pytest.fixture
def published(golden, vectors):
    """A function that draws weights under the published names, as described in the README of the golden folder."""

    def draw(name):
        rng = np.random.default_rng(int(vectors[f"{name}_seed"]))
        shapes = json.loads((golden / "A_ave_psp_shapes.json").read_text())[name]
        drawn = {key: (rng.standard_normal(shapes[key]) * 0.05).astype(np.float32) for key in sorted(shapes)}
        return {
            key: torch.from_numpy(values + np.float32("norm" in key and key.endswith("weight")))
            for key, values in drawn.items()
        }

    return draw


@each_network
def test_published_forward(name, published, vectors):
    model = load(name, published(name))
    audio, visual = torch.from_numpy(vectors["audio"]), torch.from_numpy(vectors["visual"]).float()
    with torch.no_grad():
        scores = model(audio, visual)
        outputs = model.network(batch_of(audio, visual))
    assert scores.video.shape == (1, 29)
    assert scores.segments.shape == (1, 10, 29)
    np.testing.assert_allclose(scores.video, vectors[f"{name}_video"], atol=1e-5)
    np.testing.assert_allclose(scores.segments, vectors[f"{name}_segment_scores"], atol=1e-5)
    assert torch.equal(outputs.segments[:, :, 0], scores.segments)


def test_sizes_and_unused_parameters_of_the_published_networks(published, caplog):
    assert sum(weight.numel() for weight in load("ave", published("ave")).parameters()) == 1_335_246
    with caplog.at_level(logging.INFO):
        load("psp", {f"module.{key}": value for key, value in published("psp").items()})
    assert "3 unused parameters of the checkpoint ignored: W1.weight, W2.weight, temperature" in caplog.text


def test_checkpoints_that_do_not_fit_are_refused_with_all_problems(published):
    with pytest.raises(DataError) as caught:
        load("psp", {key: value for key, value in published("psp").items() if key not in ("W3.weight", "linear_v.bias")})
    assert caught.value.problems == ["W3.weight: missing", "linear_v.bias: missing"]
    with pytest.raises(DataError, match=r"attention.score.weight: shape \(1, 36\), expected \(1, 49\)"):
        load("ave", published("ave") | {"affine_h.weight": torch.zeros(1, 36)})
    with pytest.raises(DataError, match="not a published ave checkpoint"):
        load("ave", published("psp"))


@each_network
def test_linear_layers_are_initialized_as_published(name):
    """Xavier's uniform rule, except the layers that the published code leaves at torch's default."""
    torch.manual_seed(0)
    model = CONFIGS[name]().build({"audio": (128,), "visual": (7, 7, 512)}, classes=28)
    default = {"visual", "segment_weight"}
    layers = {key: module for key, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert len(layers) == {"ave": 7, "psp": 13}[name]
    for key, layer in layers.items():
        fan_in, fan_out = layer.in_features, layer.out_features
        bound = math.sqrt(1 / fan_in) if key in default else math.sqrt(6 / (fan_in + fan_out))
        assert float(layer.weight.detach().abs().max()) == pytest.approx(bound, rel=0.1), key


@each_network
def test_without_exchange_regions_count_by_their_mean(name):
    model, batch = network(name).eval(), random_batch()
    mixed = batch_of(batch.audio, batch.visual.flip(2, 3))
    with torch.no_grad():
        separate, attended = model(batch, cross_modal=False), model(batch)
        torch.testing.assert_close(model(mixed, cross_modal=False).segments, separate.segments)
        assert not torch.allclose(model(mixed).segments, attended.segments, atol=1e-4)
        for weight in model.attention.score.parameters():
            weight.zero_()  # equal weights
        if name == "psp":
            model.propagation.threshold = 1.0  # no share exceeds it: nothing is propagated
        torch.testing.assert_close(model(batch).segments, separate.segments)


@each_network
def test_audio_guides_the_attention(name):
    model, batch = network(name).eval(), random_batch()
    with torch.no_grad():
        visual = model.attention(batch.visual.flatten(2, 3), batch.audio)
        other = model.attention(batch.visual.flatten(2, 3), batch.audio + 1)
    assert visual.shape == (3, 10, 9)
    assert not torch.allclose(visual, other, atol=1e-4)


def test_propagation_by_segments():
    torch.manual_seed(0)
    block, (audio, visual) = Propagation(8, 0.095, 0.0).eval(), torch.randn(2, 3, 10, 8)
    projected = {
        layer: torch.relu(x @ getattr(block, layer).weight.T)
        for layer, x in (("visual1", visual), ("visual2", visual), ("audio1", audio), ("audio2", audio))
    }
    added, dropped = torch.zeros(2, 3, 10, 8), 0
    for video in range(3):
        similarity = projected["visual2"][video] @ projected["audio1"][video].T / math.sqrt(8)
        for segment in range(10):
            for other in range(10):
                to_visual = similarity[segment, other] / (similarity[segment].sum() + 1e-8)
                to_audio = similarity[other, segment] / (similarity[:, segment].sum() + 1e-8)
                dropped += int(0 < to_visual <= 0.095)
                added[0, video, segment] += (to_audio > 0.095) * to_audio * projected["visual1"][video, other]
                added[1, video, segment] += (to_visual > 0.095) * to_visual * projected["audio2"][video, other]
    assert dropped > 0
    expected = (block.norm(audio + added[0]) + block.norm(visual + added[1])) / 2
    with torch.no_grad():
        torch.testing.assert_close(block(audio, visual, exchange=True, dropout=False), expected)
        alone = block(audio, visual, exchange=False, dropout=False)
    torch.testing.assert_close(alone, (block.norm(audio) + block.norm(visual)) / 2)


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_a_softmax_head_pools_scores_before_the_softmax(kind):
    scores = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    outputs = SoftmaxHead(kind).outputs(scores)
    assert outputs.head.background

    def pooled(window):
        of_classes = window.transpose(1, 2)
        return [
            [
                math.exp(max(c) if kind == "max" else sum(c) / len(c))
                / sum(math.exp(max(k) if kind == "max" else sum(k) / len(k)) for k in video)
                for c in video
            ]
            for video in of_classes.tolist()
        ]

    torch.testing.assert_close(outputs.video, torch.tensor(pooled(scores)))
    torch.testing.assert_close(outputs.pooled_within(2, 6)[:, 0], torch.tensor(pooled(scores[:, 2:6])))


@pytest.mark.parametrize("name", MODELS)
def test_streams_of_another_shape_are_refused(name):
    parsing = not MODELS[name].background
    shapes = {stream: (7, 7, 8) if parsing and stream == "visual" else (8,) for stream in MODELS[name].streams}
    expected = r"one vector per segment.*\(7, 7, 8\)" if parsing else r"regions of images.*stream visual has shape \(8,\)"
    with pytest.raises(ConfigError, match=expected):
        MODELS[name]().build(shapes, 5)
