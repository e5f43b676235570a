"""PPL's network against its definition, written out; see also test_network_contract.py."""

import pytest
import torch
from changed_batches import changed_at_second_4

from avvp_dist.models.ppl import PplConfig
from avvp_dist.types import Batch, ForwardOptions

DIMS = {"audio": 6, "visual": 9, "motion": 7}
SHAPES = {stream: (dim,) for stream, dim in DIMS.items()}
CLASSES = 5
each_layout = pytest.mark.parametrize("frames", [1, 8])


def network(**settings):
    """A small network, with random biases and layer norms too."""
    torch.manual_seed(0)
    model = PplConfig(**{"width": 16, "audio_hidden": 12, "visual_hidden": 24} | settings).build(SHAPES, CLASSES)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


def random_batch(videos=3, frames=1):
    generator = torch.Generator().manual_seed(0)
    lengths = {"audio": 10, "visual": 10 * frames, "motion": 10}
    streams = {name: torch.randn(videos, lengths[name], dim, generator=generator) for name, dim in DIMS.items()}
    return Batch(streams, torch.zeros(videos, CLASSES), torch.arange(videos), videos)


def linear(weights, name, x):
    return torch.einsum("oi,...i->...o", weights[f"{name}.weight"], x) + weights[f"{name}.bias"]


def normalized(weights, name, x):
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return weights[f"{name}.weight"] * centred / deviation + weights[f"{name}.bias"]


def projected(weights, head, x):
    hidden = normalized(weights, f"{head}.1", linear(weights, f"{head}.0", x))
    hidden = hidden.maximum(0.01 * hidden)
    return normalized(weights, f"{head}.4", linear(weights, f"{head}.3", hidden))


def attended(query, memory, divisor):
    scores = torch.einsum("btd,bsd->bts", query, memory) / divisor
    return torch.einsum("bts,bsd->btd", scores.softmax(-1), memory)


def definition(weights, batch, divisor, cross_modal):
    """Features before and after aggregation [2,B,T,D], probabilities of segments [2,B,T,C], modalities and video."""
    frames = batch.visual.reshape(len(batch.visual), 10, -1, DIMS["visual"]).mean(2)
    audio = projected(weights, "audio", batch.audio)
    visual = projected(weights, "visual", torch.cat([frames, batch.motion], -1))
    audio_features = audio + attended(audio, audio, divisor)
    visual_features = visual + attended(visual, visual, divisor)
    if cross_modal:
        audio_features = audio_features + attended(audio, visual, divisor)
        visual_features = visual_features + attended(visual, audio, divisor)
    features = torch.stack([audio_features, visual_features])
    scores, over_time, over_modality = linear(weights, "pooling.heads", features).split(CLASSES, -1)
    segments, time, modality = scores.sigmoid(), over_time.softmax(2), over_modality.softmax(0)
    return {
        "inputs": torch.stack([audio, visual]),
        "features": features,
        "segments": segments.permute(1, 2, 0, 3),
        "modalities": torch.einsum("mbtc,mbtc->bmc", time, segments),
        "video": torch.einsum("mbtc,mbtc,mbtc->bc", modality, time, segments),
        "temporal_weights": time.permute(1, 2, 0, 3),
    }


@each_layout
@pytest.mark.parametrize("cross_modal", [True, False])
@pytest.mark.parametrize(("scale", "divisor"), [("sqrt", 4), ("width", 16)])
def test_outputs_are_those_of_the_definition(scale, divisor, cross_modal, frames):
    model, batch = network(scale=scale).eval(), random_batch(frames=frames)
    with torch.no_grad():
        outputs = model(batch, cross_modal=cross_modal)
        expected = definition(dict(model.named_parameters()), batch, divisor, cross_modal)
    for name, value in expected.items():
        torch.testing.assert_close(getattr(outputs, name), value, atol=1e-5, rtol=1e-5, msg=name)


def test_parameters_for_the_shapes_of_llp():
    model = PplConfig().build({"audio": (128,), "visual": (2048,), "motion": (512,)}, 25)
    audio = 128 * 256 + 256 + 2 * 256 + 256 * 512 + 512 + 2 * 512
    visual = (2048 + 512) * 1024 + 1024 + 2 * 1024 + 1024 * 512 + 512 + 2 * 512
    heads = 3 * (512 * 25 + 25)
    assert sum(weight.numel() for weight in model.parameters()) == audio + visual + heads == 3_354_955


@each_layout
def test_projected_features_depend_on_their_segment_only(frames):
    model, batch = network().eval(), random_batch(frames=frames)
    with torch.no_grad():
        before, after = model(batch), model(changed_at_second_4(batch, *DIMS))
    for modality in (0, 1):
        changed = (before.inputs[modality] != after.inputs[modality]).any(dim=(0, 2))
        assert changed.nonzero().flatten().tolist() == [4]
        assert (before.features[modality] != after.features[modality]).any(dim=(0, 2)).all()


@pytest.mark.parametrize("stream", ["visual", "motion"])
def test_only_the_exchange_makes_audio_outputs_depend_on_the_visual_streams(stream):
    model, batch = network().eval(), random_batch()
    other = changed_at_second_4(batch, stream)
    with torch.no_grad():
        separate, separate_other = model(batch, cross_modal=False), model(other, cross_modal=False)
        exchanged, exchanged_other = model(batch), model(other)
    for of in (lambda o: o.audio, lambda o: o.audio_features, lambda o: o.segments[:, :, 0]):
        assert torch.equal(of(separate), of(separate_other))
        assert not torch.equal(of(exchanged), of(exchanged_other))
    assert not torch.equal(separate.visual, separate_other.visual)
    assert torch.equal(separate.inputs, exchanged.inputs)


def test_default_has_no_dropout_and_each_rate_applies_in_training_only():
    batch = random_batch()
    plain, attention, visual = (network(**rates).train() for rates in ({}, {"dropout": 0.5}, {"visual_dropout": 0.5}))
    expected = plain(batch)
    assert torch.equal(plain(batch).segments, expected.segments)
    dropped = attention(batch, scoring_pass=ForwardOptions(dropout=False))
    assert torch.equal(dropped.inputs, expected.inputs)
    assert not torch.equal(dropped.audio_features, expected.audio_features)
    torch.testing.assert_close(dropped.scoring.segments, expected.segments)
    assert torch.equal(visual(batch).features, expected.features)
    assert torch.equal(visual(batch).audio, expected.audio)
    assert not torch.equal(visual(batch).visual, expected.visual)
    for model in (attention, visual):
        assert torch.equal(model.eval()(batch).segments, plain.eval()(batch).segments)
