"""EM-MIL: the phases, the rules of both steps, and which network a step updates."""

import pytest
import torch
from network_outputs import modality_outputs
from pydantic import ValidationError

from avvp_dist.dist.collective import LocalCollective
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.methods.em_mil import EmMilConfig, active_segments, key_segments
from avvp_dist.models.co_trained import build_networks
from avvp_dist.models.han import HanConfig
from avvp_dist.train.optim import OptimConfig
from avvp_dist.train.step import TrainStep
from avvp_dist.types import Batch, TrainPosition

CLASSES = ("Speech", "Dog", "Car")
SHAPES = {"audio": (6,), "visual": (9,), "motion": (7,)}
WHOLE, KEYS, IN_KEYS = "whole", "keys", "classes"
TURNS = [KEYS, IN_KEYS]


def stage_of(**settings):
    (stage,) = EmMilConfig(**settings).build(CLASSES, 10).stages
    return stage


def at(epoch, epochs=65):
    return TrainPosition("train", epoch, 0, epochs=epochs, steps_per_epoch=1)


def random_batch(videos=6):
    generator = torch.Generator().manual_seed(0)
    streams = {name: torch.randn(videos, 10, *shape, generator=generator) for name, shape in SHAPES.items()}
    weak = (torch.rand(videos, 3, generator=generator) < 0.5).float()
    return Batch(streams, weak, torch.arange(videos), videos)


def random_outputs(videos=6):
    """Outputs of a class network and a key network, which require gradients."""
    generator = torch.Generator().manual_seed(1)

    def one(**fields):
        pooled = torch.rand(3, videos, 3, generator=generator)
        segments = torch.rand(videos, 10, 2, 3, generator=generator)
        return modality_outputs(*pooled.requires_grad_().unbind(), segments.requires_grad_(), **fields)

    return one(co_trained=(one(),))


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (65, [WHOLE] * 10 + [KEYS] * 10 + [IN_KEYS] * 10 + TURNS * 17 + [KEYS]),  # as published
        (13, [WHOLE] * 2 + [KEYS] * 2 + [IN_KEYS] * 2 + TURNS * 3 + [KEYS]),
        (1, [WHOLE]),
    ],
)
def test_phases_are_scaled_to_the_run(epochs, expected):
    config = EmMilConfig()
    assert [config.step(epoch, epochs) for epoch in range(epochs)] == expected


def test_phases_can_be_left_out_but_not_all():
    config = EmMilConfig(phases=(1, 0, 0, 1))
    assert [config.step(epoch, 6) for epoch in range(6)] == [WHOLE] * 3 + [KEYS, IN_KEYS, KEYS]
    with pytest.raises(ValidationError, match="no M-step"):
        EmMilConfig(phases=(0, 1, 0, 0))


def test_a_segment_with_a_label_above_its_mean_is_active():
    of_class = torch.tensor([[0.1, 0.3, 0.5, 0.9], [0.8, 0.2, 0.2, 0.2], [0.0, 0.9, 0.0, 0.9]])  # means .45, .35, .45
    segments = of_class.T[None, :, None].expand(1, 4, 2, 3)
    labels = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    audio, visual = active_segments(segments, labels).unbind(dim=2)
    assert audio.tolist() == [[1, 0, 1, 1]]  # the last class is not a label
    assert visual.tolist() == [[0, 0, 1, 1]]
    assert not active_segments(segments, torch.zeros(1, 2, 3)).any()


def test_a_key_exceeds_the_mean_by_a_share_of_the_range():
    scores = torch.tensor([[[0.0, 0.5], [0.2, 0.5], [0.5, 0.5], [1.0, 0.5]]])  # means 0.425 and 0.5
    assert key_segments(scores, 0.15)[0, :, 0].tolist() == [False, False, False, True]
    assert key_segments(scores, 0.0)[0, :, 0].tolist() == [False, False, True, True]
    assert key_segments(scores, -0.3)[0, :, 0].tolist() == [False, True, True, True]
    assert not key_segments(scores, 0.15)[..., 1].any()  # without any spread


def test_labels_are_those_of_the_video_in_all_segments_and_then_in_keys():
    batch, outputs, stage = random_batch(), random_outputs(), stage_of(key_margin=0.15)
    whole = stage.targets(outputs, batch, at(0), LocalCollective())
    repeated = batch.weak[:, None].expand(-1, 10, -1)
    assert torch.equal(whole.audio, repeated)
    assert torch.equal(whole.visual, repeated)
    later = stage.targets(outputs, batch, at(20), LocalCollective())
    keys = key_segments(outputs.co_trained[0].segments.mean(dim=-1), 0.15)
    for number, target in enumerate((later.audio, later.visual)):
        assert torch.equal(target, repeated * keys[:, :, number, None])
    (of_keys,) = later.co_trained
    expected = active_segments(outputs.segments, batch.weak[:, None].expand(-1, 2, -1))
    assert torch.equal(torch.stack([of_keys.audio, of_keys.visual], dim=2)[..., 0], expected)


def test_each_network_has_losses_of_its_own():
    batch, outputs, stage = random_batch(), random_outputs(), stage_of(video_weight=0.5)
    losses = stage.losses(outputs, stage.targets(outputs, batch, at(20), LocalCollective()), batch)
    torch.testing.assert_close(losses["total"], 0.5 * losses["video"] + losses["audio"] + losses["visual"] + losses["keys"])
    (keys,) = outputs.co_trained
    for name, own, other in (("audio", outputs, keys), ("visual", outputs, keys), ("keys", keys, outputs)):
        tensors = (own.segments, other.segments)
        gradient, none = torch.autograd.grad(losses[name].sum(), tensors, retain_graph=True, allow_unused=True)
        assert gradient.any()
        assert none is None
    target = stage.targets(outputs, batch, at(20), LocalCollective()).co_trained[0]
    of_keys = torch.stack([target.audio, target.visual], dim=2).expand(-1, -1, -1, 3)
    expected = torch.nn.functional.binary_cross_entropy(keys.segments, of_keys, reduction="none")
    torch.testing.assert_close(losses["keys"], expected.mean(dim=(1, 3)).sum(dim=1))


def test_a_step_updates_one_network_and_leaves_the_other_as_it_is(tmp_path):
    torch.manual_seed(0)
    model, _ = build_networks(lambda: HanConfig(width=16, feedforward=16).build(SHAPES, 3), 2)
    optimizer, _ = OptimConfig(lr=0.01, weight_decay=0.1).build(model.parameters())
    step = TrainStep(model, optimizer, stage_of(phases=(2, 0, 0, 4)), LocalRuntime(str(tmp_path), "cpu"), seed=0)
    updated = []
    for epoch in range(6):  # the optimizer has momentum from earlier steps
        before = [[weight.clone() for weight in network.parameters()] for network in model.networks]
        step(random_batch(), at(epoch, epochs=6))
        changed = [
            [not torch.equal(weight, old) for weight, old in zip(network.parameters(), weights, strict=True)]
            for network, weights in zip(model.networks, before, strict=True)
        ]
        assert all(any(network) == all(network) for network in changed)
        updated.append([any(network) for network in changed])
    classes, keys = [True, False], [False, True]
    assert updated == [classes, classes, keys, classes, keys, classes]
