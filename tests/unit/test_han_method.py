"""HAN's training: targets and losses of the published code and of the paper's ablations, against explicit formulas."""

import math

import pytest
import torch
from network_outputs import modality_outputs

from avvp_dist.dist.collective import LocalCollective
from avvp_dist.errors import ConfigError
from avvp_dist.experiments.recipe import load
from avvp_dist.methods.han import HanMethodConfig
from avvp_dist.types import Batch, Refined, TrainPosition

WEAK = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
VIDEO = torch.tensor([[0.9, 0.2, 0.4], [0.3, 0.1, 0.8]])
AUDIO = torch.tensor([[0.7, 0.1, 0.2], [0.2, 0.3, 0.6]])
VISUAL = torch.tensor([[0.1, 0.4, 0.5], [0.5, 0.2, 0.9]])


def one_step(refined=None, **settings):
    """Outputs (which require gradients), targets and losses of one step."""
    (stage,) = HanMethodConfig(**settings).build(("Speech", "Dog", "Car"), 10).stages
    probabilities = [each.clone().requires_grad_() for each in (VIDEO, AUDIO, VISUAL)]
    outputs = modality_outputs(*probabilities)
    batch = Batch({}, WEAK, torch.arange(2), 2, refined)
    targets = stage.targets(outputs, batch, TrainPosition("train", 0, 0, 1, 1), LocalCollective())
    return outputs, targets, stage.losses(outputs, targets, batch)


def reference_bce(probability, target):
    """Binary cross-entropy of each video, mean over classes."""
    return [
        -sum(t * math.log(p) + (1 - t) * math.log(1 - p) for p, t in zip(ps, ts, strict=True)) / len(ps)
        for ps, ts in zip(probability.tolist(), target, strict=True)
    ]


def smoothed(amount):
    return [[(1 - amount) * y + amount * 0.5 for y in row] for row in WEAK.tolist()]


def bootstrapped(probability, beta):
    pairs = zip(WEAK.tolist(), probability.tolist(), strict=True)
    return [[beta * y + (1 - beta) * p for y, p in zip(*rows, strict=True)] for rows in pairs]


def test_published_loss():
    _, _, losses = one_step()
    video, audio, visual = (
        reference_bce(VIDEO, WEAK.tolist()),
        reference_bce(AUDIO, WEAK.tolist()),
        reference_bce(VISUAL, smoothed(0.1)),
    )
    assert losses["video"].tolist() == pytest.approx(video)
    assert losses["audio"].tolist() == pytest.approx(audio)
    assert losses["visual"].tolist() == pytest.approx(visual)
    assert losses["total"].tolist() == pytest.approx([sum(terms) for terms in zip(video, audio, visual, strict=True)])


@pytest.mark.parametrize(
    ("loss", "minimized"), [("weak", {"video"}), ("guided", {"audio", "visual"}), ("both", {"video", "audio", "visual"})]
)
def test_terms_that_are_minimized(loss, minimized):
    outputs, _, losses = one_step(loss=loss)
    _, _, published = one_step()
    assert {name: each.tolist() for name, each in losses.items() if name != "total"} == {
        name: each.tolist() for name, each in published.items() if name != "total"
    }  # all terms are reported
    assert losses["total"].tolist() == pytest.approx(sum(published[name] for name in minimized).tolist())
    video, modalities = torch.autograd.grad(
        losses["total"].sum(), [outputs.video, outputs.modalities], allow_unused=True, materialize_grads=True
    )
    gradients = {"video": video, "audio": modalities[:, 0], "visual": modalities[:, 1]}
    assert {name for name, gradient in gradients.items() if gradient.any()} == minimized


def test_smoothing_of_zero_keeps_the_weak_labels():
    _, targets, _ = one_step(visual_smoothing=0)
    assert torch.equal(targets.video, WEAK)
    assert torch.equal(targets.audio, WEAK)
    assert torch.equal(targets.visual, WEAK)


def test_smoothing_of_each_modality():
    _, targets, _ = one_step(audio_smoothing=0.2, visual_smoothing=0.4)
    torch.testing.assert_close(targets.audio, torch.tensor(smoothed(0.2)))
    torch.testing.assert_close(targets.visual, torch.tensor(smoothed(0.4)))


@pytest.mark.parametrize("beta", [0.95, 0.5, 1.0, 0.0])
def test_bootstrap_mixes_labels_with_the_network_s_probabilities(beta):
    outputs, targets, losses = one_step(bootstrap=beta)
    assert torch.equal(targets.video, WEAK)  # bootstrap applies to the guided terms only
    torch.testing.assert_close(targets.audio, torch.tensor(bootstrapped(AUDIO, beta)))
    torch.testing.assert_close(targets.visual, torch.tensor(bootstrapped(VISUAL, beta)))  # instead of smoothing
    assert not targets.audio.requires_grad
    assert not targets.visual.requires_grad
    assert losses["visual"].tolist() == pytest.approx(reference_bce(VISUAL, bootstrapped(VISUAL, beta)), rel=1e-5)
    (gradient,) = torch.autograd.grad(losses["visual"].sum(), outputs.modalities)
    # d BCE / d p for a constant target
    slope = (VISUAL - targets.visual) / (VISUAL * (1 - VISUAL)) / WEAK.shape[1]
    torch.testing.assert_close(gradient[:, 1], slope, atol=1e-6, rtol=1e-5)


def test_refined_labels_replace_weak_ones():
    refined = WEAK.clone()
    refined[0, 2] = 0
    _, targets, _ = one_step(Refined(None, {"audio": WEAK, "visual": refined}))
    assert torch.equal(targets.video, WEAK)
    assert torch.equal(targets.audio, WEAK)
    expected = torch.tensor(smoothed(0.1))
    expected[0, 2] = 0  # exactly 0 for a removed label
    torch.testing.assert_close(targets.visual, expected)
    _, targets, _ = one_step(Refined(None, {"audio": WEAK, "visual": refined}), bootstrap=0.95)
    assert targets.visual[0, 2].item() == pytest.approx(0.05 * 0.5)


def test_all_settings_out_of_range_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        load("han", ["method.loss=strong", "method.bootstrap=1.5"])
    assert "method.loss" in str(caught.value)
    assert "method.bootstrap" in str(caught.value)
