"""Networks beside HAN: AVE's and AVSlowFast, what every network promises, and their parts against their definitions."""

from itertools import product

import pytest
import torch

from avvp_dist.methods.losses import bce
from avvp_dist.models.ave import AveConfig
from avvp_dist.models.avslowfast import AvSlowFastConfig
from avvp_dist.models.han import HanConfig
from avvp_dist.models.network import freeze_exchange
from avvp_dist.types import Batch, ForwardOptions

DIMS = {"audio": 6, "visual": 9, "motion": 7}
CLASSES = 5
OTHERS = {"ave": AveConfig, "avslowfast": AvSlowFastConfig}
each_network = pytest.mark.parametrize("name", OTHERS)
each_layout = pytest.mark.parametrize("frames", [1, 8])
EVERY_NETWORK = [
    *(config(width=16) for config in OTHERS.values()),
    AvSlowFastConfig(width=16, stages=3),
    HanConfig(width=16, feedforward=16),
    HanConfig(width=16, feedforward=16, layers=2, sequential=True),
    HanConfig(width=16, feedforward=16, temporal="gru"),
]


def network(name, **settings):
    torch.manual_seed(0)
    return OTHERS[name](width=16, **settings).build(DIMS, CLASSES)


def random_batch(videos, frames=1):
    generator = torch.Generator().manual_seed(0)
    lengths = {"audio": 10, "visual": 10 * frames, "motion": 10}
    streams = {name: torch.randn(videos, lengths[name], dim, generator=generator) for name, dim in DIMS.items()}
    weak = (torch.rand(videos, CLASSES, generator=generator) < 0.4).float()
    return Batch(streams, weak, torch.arange(videos), videos)


def louder(batch, *streams):
    """The batch with second 4 of these streams (visual: its first frame) changed."""
    changed = dict(batch.streams)
    for name in streams:
        changed[name] = changed[name].clone()
        changed[name][:, 4 * changed[name].shape[1] // 10] += 1
    return Batch(changed, batch.weak, batch.index, batch.total)


@each_network
@each_layout
def test_every_weight_learns(name, frames):
    model, batch = network(name).train(), random_batch(8, frames)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    outputs = model(batch)
    assert outputs.video.shape == outputs.audio.shape == outputs.visual.shape == (8, CLASSES)
    assert outputs.segments.shape == outputs.temporal_weights.shape == (8, 10, 2, CLASSES)
    features = (outputs.audio_features, outputs.visual_features, outputs.audio_inputs, outputs.visual_inputs)
    assert {each.shape for each in features} == {(8, 10, 16)}
    for probability in (outputs.video, outputs.audio, outputs.visual, outputs.segments):
        assert probability.dtype == torch.float32
        assert probability.min() >= 0
        assert probability.max() <= 1 + 1e-6
    pooled = (outputs.segments * outputs.temporal_weights).sum(dim=1)
    torch.testing.assert_close(pooled, torch.stack([outputs.audio, outputs.visual], dim=1))
    before = bce(outputs.video, batch.weak).mean()
    before.backward()
    assert [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    optimizer.step()
    assert bce(model(batch).video, batch.weak).mean() < before


@each_network
@each_layout
def test_freeze_exchange_no_modality_knows_of_the_other(name, frames):
    model, batch = network(name).eval(), random_batch(3, frames)
    other_sound, other_picture = louder(batch, "audio"), louder(batch, "visual", "motion")
    with torch.no_grad():
        said = model(batch, cross_modal=False)
        given_sound, given_picture = model(other_sound, cross_modal=False), model(other_picture, cross_modal=False)
        together, together_given_sound = model(batch), model(other_sound)
    assert torch.equal(given_sound.segments[:, :, 1], said.segments[:, :, 1])
    assert torch.equal(given_sound.visual, said.visual)
    assert torch.equal(given_picture.segments[:, :, 0], said.segments[:, :, 0])
    assert torch.equal(given_picture.audio, said.audio)
    assert not torch.equal(given_sound.audio, said.audio)
    assert not torch.equal(given_picture.visual, said.visual)
    assert not torch.equal(together.visual, said.visual)
    assert not torch.equal(together_given_sound.visual, together.visual)


@each_network
@each_layout
@pytest.mark.parametrize("how", [ForwardOptions(cross_modal=False, dropout=False), ForwardOptions(dropout=False)])
def test_judge_is_the_separate_pass_it_stands_for(name, frames, how):
    model, batch = network(name, visual_dropout=0.5).train(), random_batch(4, frames)
    outputs = model(batch, scoring_pass=how)
    assert not torch.equal(outputs.visual, outputs.scoring.visual)  # dropout is on in the main pass
    expected = model.eval()(batch, cross_modal=how.cross_modal)
    judged = {key: value for key, value in vars(outputs.scoring).items() if isinstance(value, torch.Tensor)}
    assert len(judged) == 9
    for key, value in judged.items():
        assert not value.requires_grad
        assert getattr(outputs, key).requires_grad
        torch.testing.assert_close(value, getattr(expected, key))


@each_network
def test_dropout_is_before_the_visual_heads_only(name):
    model, batch = network(name, visual_dropout=0.5).train(), random_batch(4)
    first, second = model(batch), model(batch, scoring_pass=ForwardOptions())
    assert torch.equal(first.audio, second.audio)
    assert not torch.equal(first.visual, second.visual)
    assert not torch.equal(second.scoring.visual, second.visual)  # drawn anew in each pass
    assert torch.equal(first.visual_features, second.visual_features)


@each_network
@each_layout
def test_an_empty_batch_trains(name, frames):
    model = network(name, visual_dropout=0.5).train()
    outputs = model(random_batch(0, frames), scoring_pass=ForwardOptions(cross_modal=False))
    assert outputs.segments.shape == (0, 10, 2, CLASSES)
    assert outputs.scoring.video.shape == (0, CLASSES)
    outputs.video.sum().backward()
    # a rank without videos has to hand DDP a gradient of every weight all the same
    assert [key for key, weight in model.named_parameters() if weight.grad is None or weight.grad.any()] == []


@each_network
def test_bfloat16_stays_close(name):
    model, batch = network(name).train(), random_batch(6)
    exact = model(batch)
    narrow = Batch({key: x.bfloat16() for key, x in batch.streams.items()}, batch.weak, batch.index, batch.total)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(narrow, scoring_pass=ForwardOptions(dropout=False))
    for key in ("video", "audio", "visual", "segments"):
        assert getattr(outputs, key).dtype == torch.float32
        torch.testing.assert_close(getattr(outputs, key), getattr(exact, key), atol=0.03, rtol=0)
        torch.testing.assert_close(getattr(outputs.scoring, key), getattr(outputs, key), atol=1e-6, rtol=0)
    bce(outputs.video, batch.weak).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("config", EVERY_NETWORK, ids=repr)
def test_training_freeze_exchange_asks_no_gradient_that_never_comes(config):
    model, batch = config.build(DIMS, CLASSES).train(), random_batch(4)

    def trained():
        model.zero_grad()
        model(batch, cross_modal=False).video.sum().backward()
        return {key for key, weight in model.named_parameters() if weight.grad is not None}

    exchange = {id(weight) for weight in model.exchange_parameters()}
    assert bool(exchange) is (config.name != "han" or config.temporal == "han")
    before = trained()
    assert before == {key for key, weight in model.named_parameters() if id(weight) not in exchange}
    freeze_exchange(torch.nn.ModuleList([model]))
    assert {key for key, weight in model.named_parameters() if weight.requires_grad} == before == trained()


@each_network
def test_the_mean_of_frames_stands_for_them_where_nothing_is_exchanged(name):
    model, batch = network(name).eval(), random_batch(3, frames=8)
    means = batch.visual.unflatten(1, (10, 8)).mean(dim=2)
    rows = Batch({**batch.streams, "visual": means}, batch.weak, batch.index, batch.total)
    with torch.no_grad():
        torch.testing.assert_close(model(batch, cross_modal=False).segments, model(rows, cross_modal=False).segments)
        same = torch.allclose(model(batch).segments, model(rows).segments, atol=1e-6)
    assert same is (name != "ave")  # AVE's sound weighs frame by frame


@pytest.mark.parametrize(
    ("name", "settings", "touched"),
    [("ave", {}, range(10)), ("avslowfast", {}, range(2, 7)), ("avslowfast", {"stages": 1}, range(3, 6))],
)
def test_how_far_a_second_reaches(name, settings, touched):
    model, batch = network(name, **settings).eval(), random_batch(2)
    with torch.no_grad():
        before, after = model(batch), model(louder(batch, *DIMS))
    for modality in ("audio_features", "visual_features"):
        changed = (getattr(before, modality) != getattr(after, modality)).any(dim=(0, 2))
        assert changed.nonzero().flatten().tolist() == list(touched)


@each_layout
def test_ave_weighs_frames_and_channels_by_the_sound(frames):
    model, batch = network("ave").eval(), random_batch(2, frames)
    attention, weights = model.attention, []
    with torch.no_grad():
        shared = model.prepare(batch)
        found = attention(shared.frames, shared.inputs[0])
        for video, second in product(range(2), range(10)):
            sound, expected = shared.inputs[0, video, second], torch.zeros(16)
            for frame in shared.frames[video, second]:
                look = attention.look.weight @ frame + attention.look.bias
                joint = (look + attention.listen.weight @ sound).tanh()
                weights.append(2 / (1 + (-(attention.gate.weight @ joint + attention.gate.bias)).exp()))
                expected += weights[-1] * frame / frames
            torch.testing.assert_close(found[video, second], expected)
        assert torch.stack(weights).std(dim=0).min() > 0
        attention.gate.weight.zero_()
        attention.gate.bias.zero_()  # equal weights are no exchange
        torch.testing.assert_close(model(batch).segments, model(batch, cross_modal=False).segments)


def test_avslowfast_drops_the_laterals_from_sound():
    model, batch = network("avslowfast").eval(), random_batch(2)
    with torch.no_grad():
        apart, motion = model(batch, cross_modal=False), model(louder(batch, "motion"), cross_modal=False)
        for weight in model.exchange_parameters():
            weight.zero_()
        torch.testing.assert_close(model(batch).segments, apart.segments)
    assert not torch.equal(motion.visual_features, apart.visual_features)  # those from motion stay


@each_network
def test_each_modality_has_its_own_heads(name):
    model, batch = network(name).train(), random_batch(4)
    model(batch).visual.sum().backward()
    assert model.pooling.heads.visual.weight.grad.any()
    assert not model.pooling.heads.audio.weight.grad.any()
