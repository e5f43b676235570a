"""What every network of `MODELS` must fulfil. A new network is tested by being in the `ModelConfig` union.

What a network reads is taken from its config's ``streams`` and ``background``, what its scores mean from the head of its
outputs.
"""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from avvp_dist.methods.losses import bce
from avvp_dist.models import MODELS
from avvp_dist.models.network import freeze_exchange
from avvp_dist.types import Batch, ForwardOptions, Outputs

SHAPES = {  # of one segment, by task; of other streams: (8,)
    "parsing": {"audio": (6,), "visual": (9,), "motion": (7,)},
    "localization": {"audio": (6,), "visual": (2, 3, 9)},
}
CLASSES, SEGMENTS = 5, 10

each_network = pytest.mark.parametrize("name", MODELS)
each_layout = pytest.mark.parametrize(  # networks for parsing also read several visual rows per segment
    ("name", "frames"),
    [(name, frames) for name, config in MODELS.items() for frames in ((1, 8) if not config.background else (1,))],
)


def config_of(name, *, dropout=0.0):
    """The network's default config, with small layers and one rate for all its dropouts."""
    fields = MODELS[name].model_fields
    sizes = {field: 16 for field in ("width", "feedforward", "attention_width") if field in fields}
    return MODELS[name](**sizes, **{field: dropout for field in fields if field.endswith("dropout")})


def build(name, **settings):
    torch.manual_seed(0)
    config = config_of(name, **settings)
    return config.build(shapes_of(name), CLASSES)


def shapes_of(name):
    known = SHAPES["localization" if MODELS[name].background else "parsing"]
    return {stream: known.get(stream, (8,)) for stream in MODELS[name].streams}


def random_batch(name, videos, frames=1):
    generator = torch.Generator().manual_seed(1)
    streams = {
        stream: torch.randn(videos, SEGMENTS * (frames if stream == "visual" else 1), *shape, generator=generator)
        for stream, shape in shapes_of(name).items()
    }
    weak = (torch.rand(videos, CLASSES, generator=generator) < 0.4).float()
    return Batch(streams, weak, torch.arange(videos), videos)


def rows(batch, selected):
    streams = {stream: features[selected] for stream, features in batch.streams.items()}
    return replace(batch, streams=streams, weak=batch.weak[selected], index=batch.index[selected])


def tensors(outputs):
    return {key: value for key, value in vars(outputs).items() if isinstance(value, torch.Tensor)}


def axis_of_videos(key):
    return 1 if key in ("features", "inputs") else 0


def loss(outputs, batch):
    labels = batch.weak
    if outputs.head.background:
        labels = torch.cat([labels, 1 - labels.amax(dim=1, keepdim=True)], dim=1)
    return bce(outputs.video, labels).sum() + bce(outputs.modalities, labels[:, None].expand_as(outputs.modalities)).sum()


@each_layout
def test_shapes_and_probabilities(name, frames):
    outputs = build(name)(random_batch(name, 4, frames))
    scores, modalities = CLASSES + outputs.head.background, outputs.modalities.shape[1]
    assert modalities == (len(MODELS[name].tracks))
    shapes = {"video": (4, scores), "modalities": (4, modalities, scores)}
    shapes |= dict.fromkeys(("segments", "temporal_weights"), (4, SEGMENTS, modalities, scores))
    if outputs.features is not None:
        shapes |= dict.fromkeys(("features", "inputs"), (modalities, 4, SEGMENTS, outputs.features.shape[-1]))
    found = {key: tuple(value.shape) for key, value in tensors(outputs).items()}
    assert found == {key: shape for key, shape in shapes.items() if key != "temporal_weights" or key in found}
    assert all(value.dtype == torch.float32 for value in (outputs.video, outputs.modalities, outputs.segments))
    # attentive pooling weighs each modality's segments separately, so that a video's weights sum to at most one per modality
    for probability, largest in ((outputs.video, modalities), (outputs.modalities, 1), (outputs.segments, 1)):
        if probability is outputs.segments and outputs.head.background:  # scores
            continue
        assert probability.min() >= 0
        assert probability.max() <= largest + 1e-6
    if outputs.head.background:  # a distribution over classes and background
        torch.testing.assert_close(outputs.video.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(outputs.pooled_within(0, SEGMENTS), outputs.modalities)
    part = build(name).eval()(random_batch(name, 4, frames)).pooled_within(2, 4)
    assert part.shape == outputs.modalities.shape
    assert not torch.allclose(part, outputs.modalities)


@each_network
def test_every_parameter_is_trained(name):
    model, batch = build(name).train(), random_batch(name, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = loss(model(batch), batch)
    before.backward()
    assert [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    optimizer.step()
    assert loss(model(batch), batch) < before


@each_network
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
        joined = torch.cat([getattr(part, key) for part in parts], dim=axis_of_videos(key))
        torch.testing.assert_close(joined, value, rtol=1e-4, atol=1e-5)
        for split, part in zip(outputs.split(2), parts, strict=True):
            torch.testing.assert_close(getattr(split, key), getattr(part, key), rtol=1e-4, atol=1e-5)
    assert all(split.head == outputs.head for split in outputs.split(2))
    for part, half in zip(parts, halves, strict=True):
        loss(part, half).backward()
    for key, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, whole[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cross_modal", [True, False])
@each_layout
def test_the_scoring_pass_equals_a_separate_pass(name, frames, cross_modal):
    model, batch = build(name, dropout=0.5).train(), random_batch(name, 4, frames)
    outputs = model(batch, scoring_pass=ForwardOptions(cross_modal=cross_modal, dropout=False))
    expected = tensors(model.eval()(batch, cross_modal=cross_modal))
    assert isinstance(outputs.scoring, Outputs)
    assert outputs.scoring.head == outputs.head
    assert tensors(outputs.scoring).keys() == expected.keys()
    for key, value in tensors(outputs.scoring).items():
        assert not value.requires_grad
        torch.testing.assert_close(value, expected[key])
    assert outputs.video.requires_grad


@each_network
def test_an_empty_batch_trains(name):
    model = build(name, dropout=0.5).train()
    outputs = model(random_batch(name, 0), scoring_pass=ForwardOptions(cross_modal=False))
    assert outputs.segments.shape[:2] == (0, SEGMENTS)
    assert outputs.scoring.video.shape == (0, CLASSES + outputs.head.background)
    outputs.video.sum().backward()
    # a rank without videos must still provide DDP with a gradient for every parameter
    assert [key for key, weight in model.named_parameters() if weight.grad is None or weight.grad.any()] == []


@each_network
def test_nothing_in_a_forward_pass_reads_a_value(name):
    """Fake tensors have no values: if Python reads one, which would wait for an accelerator, an error is raised."""
    with FakeTensorMode():
        model, batch = build(name, dropout=0.5).train(), random_batch(name, 4)
        outputs = model(batch, scoring_pass=ForwardOptions(cross_modal=False))
        assert outputs.pooled_within(2, 6).shape == outputs.scoring.modalities.shape


@each_network
def test_bfloat16_is_close_to_float32(name):
    model, batch = build(name).train(), random_batch(name, 6)
    exact = model(batch)
    narrow = replace(batch, streams={stream: features.bfloat16() for stream, features in batch.streams.items()})
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(narrow, scoring_pass=ForwardOptions(dropout=False))
    for key in ("video", "modalities", "segments"):
        assert getattr(outputs, key).dtype == torch.float32
        torch.testing.assert_close(getattr(outputs, key), getattr(exact, key), atol=0.03, rtol=0)
        torch.testing.assert_close(getattr(outputs.scoring, key), getattr(outputs, key), atol=1e-6, rtol=0)
    loss(outputs, batch).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@each_network
def test_without_exchange_no_modality_depends_on_the_other(name):
    """A network need not have an exchange, but without it the modalities must be independent."""
    model, batch = build(name).eval(), random_batch(name, 3)
    audio = {stream: features + (stream == "audio") for stream, features in batch.streams.items()}
    visual = {stream: features + (stream != "audio") for stream, features in batch.streams.items()}
    with torch.no_grad():
        expected = model(batch, cross_modal=False)
        other_audio = model(replace(batch, streams=audio), cross_modal=False)
        other_visual = model(replace(batch, streams=visual), cross_modal=False)
    if expected.modalities.shape[1] == 1:
        pytest.skip("one head for both modalities")
    assert torch.equal(other_audio.segments[:, :, 1], expected.segments[:, :, 1])
    assert torch.equal(other_audio.visual, expected.visual)
    assert torch.equal(other_visual.segments[:, :, 0], expected.segments[:, :, 0])
    assert torch.equal(other_visual.audio, expected.audio)


@each_network
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


@each_network
def test_state_round_trip(name):
    model, batch = build(name).eval(), random_batch(name, 3)
    other = config_of(name).build(shapes_of(name), CLASSES).eval()
    assert not torch.equal(other(batch).segments, model(batch).segments)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch).segments, model(batch).segments)


@each_layout
def test_mixtures_have_the_outputs_of_videos_made_of_the_same_segments(name, frames):
    model, batch, windows = build(name).eval(), random_batch(name, 4, frames), ((0, 4), (5, 9))
    own, other = rows(batch, slice(0, 2)), rows(batch, slice(2, 4))
    mixed = [own]
    for start, stop in windows:
        streams = {stream: features.clone() for stream, features in other.streams.items()}
        for stream, features in own.streams.items():
            rate = features.shape[1] // SEGMENTS
            streams[stream][:, start * rate : stop * rate] = features[:, start * rate : stop * rate]
        mixed.append(replace(own, streams=streams))
    outputs = model(replace(own, partners=(other,)).with_mixtures(windows)).split(len(mixed))
    for found, expected in zip(outputs, map(model, mixed), strict=True):
        for key, value in tensors(expected).items():
            torch.testing.assert_close(tensors(found)[key], value, msg=key)
