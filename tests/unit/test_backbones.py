"""The parts of AVE's network for LLP and of AVSlowFast against their definitions; see also test_network_contract.py."""

from itertools import product

import pytest
import torch
from changed_batches import changed_at_second_4

from avvp_dist.models.ave_llp import AveLlpConfig
from avvp_dist.models.avslowfast import AvSlowFastConfig
from avvp_dist.models.han import HanConfig
from avvp_dist.models.network import freeze_exchange
from avvp_dist.types import Batch, ForwardOptions

DIMS = {"audio": 6, "visual": 9, "motion": 7}
SHAPES = {stream: (dim,) for stream, dim in DIMS.items()}
CLASSES = 5
CONFIGS = {"ave-llp": AveLlpConfig, "avslowfast": AvSlowFastConfig}
each_network = pytest.mark.parametrize("name", CONFIGS)
each_layout = pytest.mark.parametrize("frames", [1, 8])
VARIANTS = [
    AvSlowFastConfig(width=16, stages=3),
    HanConfig(width=16, feedforward=16, layers=2, sequential=True),
    HanConfig(width=16, feedforward=16, temporal="gru"),
]


def network(name, **settings):
    torch.manual_seed(0)
    return CONFIGS[name](width=16, **settings).build(SHAPES, CLASSES)


def random_batch(videos, frames=1):
    generator = torch.Generator().manual_seed(0)
    lengths = {"audio": 10, "visual": 10 * frames, "motion": 10}
    streams = {name: torch.randn(videos, lengths[name], dim, generator=generator) for name, dim in DIMS.items()}
    weak = (torch.rand(videos, CLASSES, generator=generator) < 0.4).float()
    return Batch(streams, weak, torch.arange(videos), videos)


@each_network
@each_layout
def test_only_the_exchange_makes_visual_outputs_depend_on_audio(name, frames):
    model, batch = network(name).eval(), random_batch(3, frames)
    other_audio, other_visual = changed_at_second_4(batch, "audio"), changed_at_second_4(batch, "visual", "motion")
    with torch.no_grad():
        separate = model(batch, cross_modal=False)
        separate_audio, separate_visual = model(other_audio, cross_modal=False), model(other_visual, cross_modal=False)
        exchanged, exchanged_audio = model(batch), model(other_audio)
    assert torch.equal(separate_audio.visual, separate.visual)
    assert torch.equal(separate_visual.audio, separate.audio)
    assert not torch.equal(separate_audio.audio, separate.audio)
    assert not torch.equal(separate_visual.visual, separate.visual)
    assert not torch.equal(exchanged.visual, separate.visual)
    assert not torch.equal(exchanged_audio.visual, exchanged.visual)


@each_network
def test_dropout_applies_to_the_inputs_of_the_visual_heads_only(name):
    model, batch = network(name, visual_dropout=0.5).train(), random_batch(4)
    first, second = model(batch), model(batch, scoring_pass=ForwardOptions())
    assert torch.equal(first.audio, second.audio)
    assert not torch.equal(first.visual, second.visual)
    assert not torch.equal(second.scoring.visual, second.visual)  # each pass draws its own mask
    assert torch.equal(first.visual_features, second.visual_features)


@pytest.mark.parametrize("config", VARIANTS, ids=repr)
def test_exchange_parameters_are_those_without_gradient_when_nothing_is_exchanged(config):
    model, batch = config.build(SHAPES, CLASSES).train(), random_batch(4)

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
def test_without_exchange_frames_count_by_their_mean(name):
    model, batch = network(name).eval(), random_batch(3, frames=8)
    means = batch.visual.unflatten(1, (10, 8)).mean(dim=2)
    rows = Batch({**batch.streams, "visual": means}, batch.weak, batch.index, batch.total)
    with torch.no_grad():
        torch.testing.assert_close(model(batch, cross_modal=False).segments, model(rows, cross_modal=False).segments)
        same = torch.allclose(model(batch).segments, model(rows).segments, atol=1e-6)
    assert same is (name != "ave-llp")  # AVE's attention weighs single frames


@pytest.mark.parametrize(
    ("name", "settings", "reached"),
    [("ave-llp", {}, range(10)), ("avslowfast", {}, range(2, 7)), ("avslowfast", {"stages": 1}, range(3, 6))],
)
def test_segments_that_a_change_of_second_4_reaches(name, settings, reached):
    model, batch = network(name, **settings).eval(), random_batch(2)
    with torch.no_grad():
        before, after = model(batch), model(changed_at_second_4(batch, *DIMS))
    for modality in ("audio_features", "visual_features"):
        changed = (getattr(before, modality) != getattr(after, modality)).any(dim=(0, 2))
        assert changed.nonzero().flatten().tolist() == list(reached)


@each_layout
def test_ave_attention_weighs_frames_and_channels_by_audio(frames):
    model, batch = network("ave-llp").eval(), random_batch(2, frames)
    attention, weights = model.attention, []
    with torch.no_grad():
        shared = model.prepare(batch)
        attended = attention(shared.frames, shared.inputs[0])
        for video, second in product(range(2), range(10)):
            audio, expected = shared.inputs[0, video, second], torch.zeros(16)
            for frame in shared.frames[video, second]:
                look = attention.look.weight @ frame + attention.look.bias
                joint = (look + attention.listen.weight @ audio).tanh()
                weights.append(2 / (1 + (-(attention.gate.weight @ joint + attention.gate.bias)).exp()))
                expected += weights[-1] * frame / frames
            torch.testing.assert_close(attended[video, second], expected)
        assert torch.stack(weights).std(dim=0).min() > 0
        attention.gate.weight.zero_()
        attention.gate.bias.zero_()  # equal weights exchange nothing
        torch.testing.assert_close(model(batch).segments, model(batch, cross_modal=False).segments)


def test_without_exchange_avslowfast_drops_the_audio_laterals():
    model, batch = network("avslowfast").eval(), random_batch(2)
    with torch.no_grad():
        separate, motion = model(batch, cross_modal=False), model(changed_at_second_4(batch, "motion"), cross_modal=False)
        for weight in model.exchange_parameters():
            weight.zero_()
        torch.testing.assert_close(model(batch).segments, separate.segments)
    assert not torch.equal(motion.visual_features, separate.visual_features)  # the motion laterals stay


@each_network
def test_each_modality_has_separate_heads(name):
    model, batch = network(name).train(), random_batch(4)
    model(batch).visual.sum().backward()
    assert model.pooling.heads.visual.weight.grad.any()
    assert not model.pooling.heads.audio.weight.grad.any()
