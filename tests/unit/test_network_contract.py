"""What every network of `MODELS` must fulfil. A new network is tested by being in the `ModelConfig` union.

What a network reads is taken from its config's ``streams``.
"""

from dataclasses import replace

import pytest
import torch

from avvp_dist.methods.losses import bce
from avvp_dist.models import MODELS
from avvp_dist.models.network import freeze_exchange
from avvp_dist.types import Batch, ForwardOptions, Outputs

WIDTHS = {"audio": 6, "visual": 9, "motion": 7}  # of other streams: 8
CLASSES, SEGMENTS = 5, 10
PROBABILITIES = ("video", "audio", "visual", "segments")

pytestmark = pytest.mark.parametrize("name", MODELS)


def config_of(name, *, dropout=0.0):
    """The network's default config, with small layers and one rate for all its dropouts."""
    fields = MODELS[name].model_fields
    sizes = {field: 16 for field in ("width", "feedforward") if field in fields}
    return MODELS[name](**sizes, **{field: dropout for field in fields if field.endswith("dropout")})


def build(name, **settings):
    torch.manual_seed(0)
    config = config_of(name, **settings)
    return config.build({stream: WIDTHS.get(stream, 8) for stream in config.streams}, CLASSES)


def random_batch(name, videos, frames=1):
    generator = torch.Generator().manual_seed(1)
    streams = {
        stream: torch.randn(
            videos, SEGMENTS * (frames if stream == "visual" else 1), WIDTHS.get(stream, 8), generator=generator
        )
        for stream in MODELS[name].streams
    }
    weak = (torch.rand(videos, CLASSES, generator=generator) < 0.4).float()
    return Batch(streams, weak, torch.arange(videos), videos)


def rows(batch, selected):
    streams = {stream: features[selected] for stream, features in batch.streams.items()}
    return replace(batch, streams=streams, weak=batch.weak[selected], index=batch.index[selected])


def tensors(outputs):
    return {key: value for key, value in vars(outputs).items() if isinstance(value, torch.Tensor)}


def loss(outputs, batch):
    return (bce(outputs.video, batch.weak) + bce(outputs.audio, batch.weak) + bce(outputs.visual, batch.weak)).sum()


@pytest.mark.parametrize("frames", [1, 8])
def test_shapes_and_probabilities(name, frames):
    outputs = build(name)(random_batch(name, 4, frames))
    width = outputs.audio_features.shape[-1]
    shapes = {
        **dict.fromkeys(("video", "audio", "visual"), (4, CLASSES)),
        **dict.fromkeys(("segments", "temporal_weights"), (4, SEGMENTS, 2, CLASSES)),
        **dict.fromkeys(("audio_features", "visual_features", "audio_inputs", "visual_inputs"), (4, SEGMENTS, width)),
    }
    found = {key: tuple(value.shape) for key, value in tensors(outputs).items()}
    assert found == {key: shape for key, shape in shapes.items() if key != "temporal_weights" or key in found}
    for key in PROBABILITIES:
        probability = getattr(outputs, key)
        assert probability.dtype == torch.float32
        assert probability.min() >= 0
        assert probability.max() <= 1 + 1e-6
    if outputs.temporal_weights is not None:
        pooled = (outputs.segments * outputs.temporal_weights).sum(dim=1)
        torch.testing.assert_close(pooled, torch.stack([outputs.audio, outputs.visual], dim=1))


def test_every_parameter_is_trained(name):
    model, batch = build(name).train(), random_batch(name, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = loss(model(batch), batch)
    before.backward()
    assert [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    optimizer.step()
    assert loss(model(batch), batch) < before


def test_two_half_batches_equal_the_whole_batch(name):
    """Outputs and the sum of gradients: no statistics of the batch enter a network."""
    model, batch = build(name).train(), random_batch(name, 6)
    outputs = model(batch)
    loss(outputs, batch).backward()
    whole = {key: weight.grad.clone() for key, weight in model.named_parameters()}
    model.zero_grad()
    halves = [rows(batch, slice(0, 3)), rows(batch, slice(3, 6))]
    parts = [model(half) for half in halves]
    for key, value in tensors(outputs).items():
        torch.testing.assert_close(torch.cat([getattr(part, key) for part in parts]), value, rtol=1e-4, atol=1e-5)
    for part, half in zip(parts, halves, strict=True):
        loss(part, half).backward()
    for key, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, whole[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cross_modal", [True, False])
@pytest.mark.parametrize("frames", [1, 8])
def test_the_scoring_pass_equals_a_separate_pass(name, frames, cross_modal):
    model, batch = build(name, dropout=0.5).train(), random_batch(name, 4, frames)
    outputs = model(batch, scoring_pass=ForwardOptions(cross_modal=cross_modal, dropout=False))
    expected = tensors(model.eval()(batch, cross_modal=cross_modal))
    assert isinstance(outputs.scoring, Outputs)
    assert tensors(outputs.scoring).keys() == expected.keys()
    for key, value in tensors(outputs.scoring).items():
        assert not value.requires_grad
        torch.testing.assert_close(value, expected[key])
    assert outputs.video.requires_grad


def test_an_empty_batch_trains(name):
    model = build(name, dropout=0.5).train()
    outputs = model(random_batch(name, 0), scoring_pass=ForwardOptions(cross_modal=False))
    assert outputs.segments.shape == (0, SEGMENTS, 2, CLASSES)
    assert outputs.scoring.video.shape == (0, CLASSES)
    outputs.video.sum().backward()
    # a rank without videos must still provide DDP with a gradient for every parameter
    assert [key for key, weight in model.named_parameters() if weight.grad is None or weight.grad.any()] == []


def test_bfloat16_is_close_to_float32(name):
    model, batch = build(name).train(), random_batch(name, 6)
    exact = model(batch)
    narrow = replace(batch, streams={stream: features.bfloat16() for stream, features in batch.streams.items()})
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(narrow, scoring_pass=ForwardOptions(dropout=False))
    for key in PROBABILITIES:
        assert getattr(outputs, key).dtype == torch.float32
        torch.testing.assert_close(getattr(outputs, key), getattr(exact, key), atol=0.03, rtol=0)
        torch.testing.assert_close(getattr(outputs.scoring, key), getattr(outputs, key), atol=1e-6, rtol=0)
    loss(outputs, batch).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_without_exchange_no_modality_depends_on_the_other(name):
    """A network need not have an exchange, but without it the modalities must be independent."""
    model, batch = build(name).eval(), random_batch(name, 3)
    audio = {stream: features + (stream == "audio") for stream, features in batch.streams.items()}
    visual = {stream: features + (stream != "audio") for stream, features in batch.streams.items()}
    with torch.no_grad():
        expected = model(batch, cross_modal=False)
        other_audio = model(replace(batch, streams=audio), cross_modal=False)
        other_visual = model(replace(batch, streams=visual), cross_modal=False)
    assert torch.equal(other_audio.segments[:, :, 1], expected.segments[:, :, 1])
    assert torch.equal(other_audio.visual, expected.visual)
    assert torch.equal(other_visual.segments[:, :, 0], expected.segments[:, :, 0])
    assert torch.equal(other_visual.audio, expected.audio)


def test_exchange_parameters_are_those_without_gradient_when_nothing_is_exchanged(name):
    model, batch = build(name).train(), random_batch(name, 4)

    def trained():
        model.zero_grad()
        model(batch, cross_modal=False).video.sum().backward()
        return {key for key, weight in model.named_parameters() if weight.grad is not None}

    exchange = {id(weight) for weight in model.exchange_parameters()}
    before = trained()
    assert before == {key for key, weight in model.named_parameters() if id(weight) not in exchange}
    freeze_exchange(torch.nn.ModuleList([model]))
    assert {key for key, weight in model.named_parameters() if weight.requires_grad} == before == trained()


def test_state_round_trip(name):
    model, batch = build(name).eval(), random_batch(name, 3)
    other = config_of(name).build({stream: WIDTHS.get(stream, 8) for stream in MODELS[name].streams}, CLASSES).eval()
    assert not torch.equal(other(batch).segments, model(batch).segments)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch).segments, model(batch).segments)
