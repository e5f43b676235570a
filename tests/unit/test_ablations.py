"""The replacements of attention and pooling in HAN's ablations, against their definitions."""

import json
from itertools import product

import pytest
import torch

from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.errors import ConfigError
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import evaluate_experiment, run_experiment
from avvp_dist.methods.losses import bce
from avvp_dist.models.han import HanConfig
from avvp_dist.types import Batch, ForwardOptions

DIMS = {"audio": 6, "visual": 9, "motion": 7}
SHAPES = {stream: (dim,) for stream, dim in DIMS.items()}
CLASSES = 5
TEMPORAL = ("han", "none", "gru", "transformer")
all_networks = pytest.mark.parametrize(("temporal", "pooling"), list(product(TEMPORAL, ("attentive", "max", "mean"))))


def network(**settings):
    torch.manual_seed(0)
    return HanConfig(width=16, feedforward=16, **settings).build(SHAPES, CLASSES)


def random_batch(videos, seed=0):
    generator = torch.Generator().manual_seed(seed)
    streams = {name: torch.randn(videos, 10, dim, generator=generator) for name, dim in DIMS.items()}
    weak = (torch.rand(videos, CLASSES, generator=generator) < 0.4).float()
    return Batch(streams, weak, torch.arange(videos), videos)


def replaced(batch, name, value):
    return Batch({**batch.streams, name: value}, batch.weak, batch.index, batch.total)


@all_networks
@pytest.mark.parametrize("loss", ["weak", "guided"])
def test_every_parameter_is_trained(temporal, pooling, loss):
    model, batch = network(temporal=temporal, pooling=pooling, dropout=0.0).train(), random_batch(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def losses(outputs):
        if loss == "weak":
            return bce(outputs.video, batch.weak).mean()
        return (bce(outputs.audio, batch.weak) + bce(outputs.visual, batch.weak)).mean()

    outputs = model(batch)
    assert outputs.video.shape == outputs.audio.shape == outputs.visual.shape == (8, CLASSES)
    assert outputs.segments.shape == (8, 10, 2, CLASSES)
    assert outputs.audio_features.shape == outputs.visual_features.shape == (8, 10, 16)
    for probability in (outputs.video, outputs.audio, outputs.visual, outputs.segments):
        assert probability.dtype == torch.float32
        assert probability.min() >= 0
        assert probability.max() <= 1 + 1e-6
    before = losses(outputs)
    before.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    optimizer.step()
    assert losses(model(batch)) < before


@all_networks
def test_an_empty_batch_trains(temporal, pooling):
    model = network(temporal=temporal, pooling=pooling, visual_dropout=0.5).train()
    outputs = model(random_batch(0), scoring_pass=ForwardOptions(cross_modal=False))
    assert outputs.segments.shape == (0, 10, 2, CLASSES)
    assert outputs.scoring.video.shape == (0, CLASSES)
    outputs.video.sum().backward()
    # a rank without videos must still provide DDP with a gradient for every parameter
    assert [name for name, weight in model.named_parameters() if weight.grad is None or weight.grad.any()] == []


@all_networks
def test_bfloat16_is_close_to_float32(temporal, pooling):
    model, batch = network(temporal=temporal, pooling=pooling, dropout=0.0).train(), random_batch(6)
    exact = model(batch)
    narrow = Batch({name: x.bfloat16() for name, x in batch.streams.items()}, batch.weak, batch.index, batch.total)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(narrow, scoring_pass=ForwardOptions(dropout=False))
    for name in ("video", "audio", "visual", "segments"):
        assert getattr(outputs, name).dtype == torch.float32
        torch.testing.assert_close(getattr(outputs, name), getattr(exact, name), atol=0.03, rtol=0)
        torch.testing.assert_close(getattr(outputs.scoring, name), getattr(outputs, name), atol=1e-6, rtol=0)
    assert outputs.audio_features.dtype == (torch.float32 if temporal == "gru" else torch.bfloat16)
    bce(outputs.video, batch.weak).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@all_networks
def test_the_scoring_pass_equals_a_separate_pass(temporal, pooling):
    model = network(temporal=temporal, pooling=pooling, dropout=0.3, visual_dropout=0.5).train()
    batch = random_batch(4)
    outputs = model(batch, scoring_pass=ForwardOptions(cross_modal=False, dropout=False))
    assert not torch.equal(outputs.visual, outputs.scoring.visual)  # dropout is active in the main pass
    expected = model.eval()(batch, cross_modal=False)
    for name, scored in vars(outputs.scoring).items():
        if isinstance(scored, torch.Tensor) and not (name == "temporal_weights" and pooling == "mean"):  # constant weights
            assert not scored.requires_grad
            assert getattr(outputs, name).requires_grad
            torch.testing.assert_close(scored, getattr(expected, name))


@pytest.mark.parametrize("temporal", TEMPORAL)
def test_only_hybrid_attention_exchanges(temporal):
    model, batch = network(temporal=temporal).eval(), random_batch(3)
    other_visual = replaced(batch, "visual", torch.randn(3, 10, DIMS["visual"]))
    with torch.no_grad():
        exchanged, separate, changed = model(batch), model(batch, cross_modal=False), model(other_visual)
    for outputs in (separate, changed):
        assert torch.equal(outputs.audio_features, exchanged.audio_features) is (temporal != "han")
    assert not torch.equal(changed.visual_features, exchanged.visual_features)


@pytest.mark.parametrize(("temporal", "reached"), [("none", [3]), ("gru", range(10)), ("transformer", range(10))])
def test_segments_that_a_change_of_second_3_reaches(temporal, reached):
    model, batch = network(temporal=temporal).eval(), random_batch(2)
    audio = batch.audio.clone()
    audio[:, 3] += 1
    with torch.no_grad():
        changed = model(replaced(batch, "audio", audio)).audio_features != model(batch).audio_features
    assert changed.any(dim=(0, 2)).nonzero().flatten().tolist() == list(reached)


def test_without_temporal_network_features_are_the_inputs():
    outputs = network(temporal="none").eval()(random_batch(2))
    assert torch.equal(outputs.audio_features, outputs.audio_inputs)
    assert torch.equal(outputs.visual_features, outputs.visual_inputs)


def test_gru_is_bidirectional_with_weights_shared_by_the_modalities():
    model, batch = network(temporal="gru").eval(), random_batch(2)
    weights = dict(model.layer.gru.named_parameters())

    def run(x, suffix):  # x: [T,D]
        inner, outer = weights[f"weight_hh_l0{suffix}"], weights[f"weight_ih_l0{suffix}"]
        inner_bias, outer_bias = weights[f"bias_hh_l0{suffix}"], weights[f"bias_ih_l0{suffix}"]
        state, states = torch.zeros(8), []
        for row in x:
            reset, update, new = (outer @ row + outer_bias).chunk(3)
            reset_state, update_state, new_state = (inner @ state + inner_bias).chunk(3)
            update = (update + update_state).sigmoid()
            new = (new + (reset + reset_state).sigmoid() * new_state).tanh()
            state = (1 - update) * new + update * state
            states.append(state)
        return torch.stack(states)

    with torch.no_grad():
        outputs = model(batch)
        for inputs, features in (
            (outputs.audio_inputs, outputs.audio_features),
            (outputs.visual_inputs, outputs.visual_features),
        ):
            for x, output in zip(inputs, features, strict=True):
                expected = torch.cat([run(x, ""), run(x.flip(0), "_reverse").flip(0)], dim=-1)
                torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("heads", [1, 4])
def test_transformer_equals_torch_s_encoder_layer(heads):
    model, batch = network(temporal="transformer", heads=heads).eval(), random_batch(3)
    reference = torch.nn.TransformerEncoderLayer(16, heads, dim_feedforward=16, batch_first=True).eval()
    reference.load_state_dict(
        {name.replace("self_attention", "self_attn"): value for name, value in model.layer.state_dict().items()}
    )
    with torch.no_grad():
        outputs = model(batch)
        torch.testing.assert_close(outputs.audio_features, reference(outputs.audio_inputs))
        torch.testing.assert_close(outputs.visual_features, reference(outputs.visual_inputs))


@pytest.mark.parametrize(("pooling", "reduce"), [("max", max), ("mean", lambda values: sum(values) / len(values))])
def test_fixed_pooling_equals_its_definition(pooling, reduce):
    model, batch = network(pooling=pooling).eval(), random_batch(3)
    assert sum(weight.numel() for weight in model.pooling.parameters()) == (16 + 1) * CLASSES
    with torch.no_grad():
        outputs = model(batch)
        scores = model.pooling.heads(torch.stack([outputs.audio_features, outputs.visual_features], dim=2))  # [B,T,2,D]
    torch.testing.assert_close(outputs.segments, scores.sigmoid())
    for video, label in product(range(3), range(CLASSES)):
        p = outputs.segments[video, :, :, label].tolist()
        audio, visual = reduce([row[0] for row in p]), reduce([row[1] for row in p])
        assert outputs.audio[video, label].item() == pytest.approx(audio, abs=1e-6)
        assert outputs.visual[video, label].item() == pytest.approx(visual, abs=1e-6)
        assert outputs.video[video, label].item() == pytest.approx(reduce([audio, visual]), abs=1e-6)


def test_unknown_settings_are_refused():
    with pytest.raises(ConfigError) as caught:
        load("han", ["model.temporal=lstm", "model.pooling=sum"])
    assert "model.temporal" in str(caught.value)
    assert "model.pooling" in str(caught.value)
    with pytest.raises(ConfigError, match="width 15 is odd; temporal=gru needs an even one"):
        load("han", ["model.temporal=gru", "model.width=15"])


def test_a_whole_run_of_an_ablation(packed, tmp_path):
    overrides = ["model.temporal=gru", "model.pooling=max", "method.loss=guided", "method.bootstrap=0.95"]
    small = ["model.width=16", "train.epochs=1", "train.device=cpu", "tracking=none"]
    config = load("han", [f"data={packed}", f"output={tmp_path / 'run'}", *small, *overrides])
    result = run_experiment(config, LocalRuntime(config.output, "cpu"))
    assert 0 <= result["scores"]["test"]["joint"]["metrics"]["segment.type"] <= 100
    (row,) = json.loads((tmp_path / "run" / "history.json").read_text())
    assert row["loss/total"] == pytest.approx(row["loss/audio"] + row["loss/visual"], rel=1e-5)
    assert row["loss/video"] > 0
    again = evaluate_experiment(config, LocalRuntime(config.output, "cpu")).scores
    assert again["test"]["joint"]["metrics"] == pytest.approx(result["scores"]["test"]["joint"]["metrics"])
