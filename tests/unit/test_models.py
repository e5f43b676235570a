"""The HAN network against the authors' JoMoLD network, and its other properties."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from avvp_dist.errors import ConfigError, DataError
from avvp_dist.methods.losses import contrastive
from avvp_dist.models.han import Attention, HanConfig
from avvp_dist.models.published import load
from avvp_dist.types import Batch

DIMS = {"audio": 128, "visual": 2048, "motion": 512}
SHAPES = {stream: (dim,) for stream, dim in DIMS.items()}


@pytest.fixture(scope="module")
def vectors(golden):
    return np.load(golden / "A_han_forward.npz")


@pytest.fixture(scope="module")
def published(golden, vectors):
    """Weights under the published names, drawn as described in the README of the golden folder."""
    rng = np.random.default_rng(int(vectors["weight_seed"]))
    shapes = json.loads((golden / "A_han_shapes.json").read_text())
    drawn = {name: (rng.standard_normal(shapes[name]) * 0.05).astype(np.float32) for name in sorted(shapes)}
    return {
        name: torch.from_numpy(values + np.float32("norm" in name and name.endswith("weight")))
        for name, values in drawn.items()
    }


@pytest.fixture(scope="module")
def batch(vectors):
    arrays = {"audio": vectors["audio"], "visual": vectors["visual"], "motion": vectors["visual_st"]}
    return _batch({name: torch.from_numpy(array).float() for name, array in arrays.items()})


@pytest.mark.parametrize(("cross_modal", "prefix"), [(True, "with_ca"), (False, "without_ca")])
@pytest.mark.parametrize("frames", [80, 10])
def test_published_forward(published, batch, vectors, cross_modal, prefix, frames):
    if frames == 10:  # one visual row per second, as in the shards
        batch = replace(batch, streams={**batch.streams, "visual": batch.visual.unflatten(1, (10, 8)).mean(2)})
    with torch.no_grad():
        outputs = load("jomold", published)(batch, cross_modal=cross_modal)
    for name, published_name in (("video", "video"), ("audio", "audio"), ("visual", "visual"), ("segments", "segment")):
        np.testing.assert_allclose(getattr(outputs, name).numpy(), vectors[f"{prefix}_{published_name}"], atol=1e-5)
    nce = contrastive(outputs.audio_features, outputs.visual_features, temperature=0.2).mean()
    assert float(nce) == pytest.approx(float(vectors[f"{prefix}_nce"]), abs=1e-5)


def test_unused_parameters_of_a_checkpoint_are_logged(published, caplog):
    with_unused = {"audio_encoder.weight": torch.zeros(3), **published}
    with caplog.at_level(logging.INFO):
        load("han", {f"module.{name}": value for name, value in with_unused.items()})
    assert "5 unused parameters" in caplog.text
    assert "audio_encoder.weight" in caplog.text
    assert "hat_encoder.norm1.bias" in caplog.text


def test_checkpoints_that_do_not_fit_are_refused_with_all_problems(published):
    incomplete = {name: value for name, value in published.items() if name not in ("fc_a.weight", "fc_prob.bias")}
    with pytest.raises(DataError) as caught:
        load("han", incomplete)
    assert caught.value.problems == ["fc_a.weight: missing", "fc_prob.bias: missing"]
    with pytest.raises(DataError, match=r"audio.weight: shape \(512, 64\), expected \(512, 128\)"):
        load("han", {**published, "fc_a.weight": torch.zeros(512, 64)})
    with pytest.raises(ConfigError, match="Valid names: han, ma, jomold, ave, psp"):
        load("hann", published)


def test_every_parameter_is_used():
    model = HanConfig().build(SHAPES, 25)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_569_675  # counted in the published network
    outputs = model(_random_batch(2))
    (outputs.video.sum() + outputs.audio.sum() + outputs.visual.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("heads", "videos", "folded"), [(4, 3, False), (4, 300, False), (1, 3, False), (1, 300, True)])
def test_attention_is_multihead_attention(heads, videos, folded):
    torch.manual_seed(0)
    attention, reference = Attention(16, heads, 0.0), torch.nn.MultiheadAttention(16, heads, batch_first=True)
    torch.nn.init.normal_(attention.in_proj_bias)
    torch.nn.init.normal_(attention.out_proj.bias)
    reference.load_state_dict(attention.state_dict())
    x = torch.randn(videos, 5, 16)
    assert attention.project(x).folded is folded
    output, expected = attention.attend(attention.project(x), dropout=False), reference(x, x, x)[0]
    torch.testing.assert_close(output, expected)
    output.square().mean().backward()
    expected.square().mean().backward()
    for name, parameter in attention.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, atol=1e-6, rtol=1e-4)


def test_dropout_is_active_in_training_and_only_before_the_visual_heads():
    model, batch = HanConfig(dropout=0.0, visual_dropout=0.5).build(SHAPES, 25).train(), _random_batch(4)
    first, second = model(batch), model(batch)
    assert torch.equal(first.audio, second.audio)
    assert not torch.equal(first.visual, second.visual)
    assert torch.equal(first.visual_features, second.visual_features)  # contrastive losses use them without dropout
    model.eval()
    assert torch.equal(model(batch).visual, model(batch).visual)


def _random_batch(videos):
    return _batch({name: torch.randn(videos, 10, dim) for name, dim in DIMS.items()})


def _batch(streams):
    videos = len(streams["audio"])
    return Batch(streams, torch.zeros(videos, 25), torch.arange(videos), videos)
