"""PoiBin: counts of positive segments, and the loss of the last stage."""

import math
from dataclasses import replace

import pytest
import torch
from network_outputs import modality_outputs

from avvp_dist.dist.collective import LocalCollective
from avvp_dist.methods.heads import han_targets, heads_loss
from avvp_dist.methods.poibin import PoiBinConfig, expected_counts
from avvp_dist.types import Batch, Refined, TrainPosition

CLASSES = ("Speech", "Dog", "Car")
POSITION = TrainPosition("count", 0, 0, epochs=1, steps_per_epoch=1)


def outputs_of(segments):
    pooled = torch.rand(3, len(segments), 3, generator=torch.Generator().manual_seed(0))
    return modality_outputs(*pooled, segments)


def counted(segments, weak, refined=None, **settings):
    """The artifact of the collect stage: shares of segments, [N,C] of audio and visual."""
    _, stage, _ = PoiBinConfig(**settings).build(CLASSES, segments.shape[1]).stages
    batch = Batch({}, weak, torch.arange(len(weak)), len(weak), refined)
    stage.collect([outputs_of(segments)], batch)
    found = stage.finish(LocalCollective(), [f"v{number}" for number in range(len(weak))])
    return {track: torch.from_numpy(values) for track, values in found.tracks.items()}


def losses_of(segments, shares, weak, **settings):
    """Losses of the last stage, for the same shares in both modalities."""
    *_, stage = PoiBinConfig(**settings).build(CLASSES, segments.shape[1]).stages
    batch = Batch({}, weak, torch.arange(len(weak)), len(weak), Refined(None, {"audio": shares, "visual": shares}))
    outputs = outputs_of(segments)
    targets = stage.targets(outputs, batch, POSITION, LocalCollective())
    return stage.losses(outputs, targets, batch), targets, outputs


def test_counts_are_rounded_sums_of_at_least_one():
    sums = torch.tensor([[[0.2, 3.4, 9.9], [3.6, 10.0, 0.0]]])  # [B,2,C] over ten segments
    segments = (sums / 10).unsqueeze(1).expand(-1, 10, -1, -1)
    assert expected_counts(segments, 1).tolist() == [[[1, 3, 10], [4, 10, 1]]]
    assert expected_counts(segments, 0).tolist() == [[[0, 3, 10], [4, 10, 0]]]


def test_shares_are_those_of_the_videos_labels():
    segments = torch.full((2, 10, 2, 3), 0.42)
    segments[:, :, 1] = 0.01
    weak = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    shares = counted(segments, weak)
    torch.testing.assert_close(shares["audio"], 0.4 * weak)
    torch.testing.assert_close(shares["visual"], 0.1 * weak)  # one segment at least
    assert not counted(segments, weak, minimum_count=0)["visual"].any()
    without = replace(Refined(None, {"audio": weak, "visual": weak}), tracks={"audio": weak, "visual": 0 * weak})
    assert not counted(segments, weak, without)["visual"].any()  # labels that data.refined removed have no count


def test_the_loss_is_the_likelihood_of_the_counts():
    segments = torch.full((2, 10, 2, 3), 0.3, dtype=torch.float64)
    weak = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    shares = torch.tensor([[0.1, 0, 0.7], [0, 1.0, 0]])
    binomial = {n: math.comb(10, n) * 0.3**n * 0.7 ** (10 - n) for n in range(11)}
    expected = [
        -sum(math.log(binomial[n]) for n in counts) * 2 / 3 for counts in ((1, 0, 7), (0, 10, 0))
    ]  # mean over classes, sum of the equal modalities
    losses, targets, outputs = losses_of(segments, shares, weak, count_weight=0.5)
    torch.testing.assert_close(losses["count"], torch.tensor(expected, dtype=torch.float64))
    han = heads_loss(outputs, targets)["total"]
    torch.testing.assert_close(losses["total"], han + 0.5 * losses["count"])
    scaled, *_ = losses_of(segments, shares, weak, count_scale="segment")
    torch.testing.assert_close(scaled["count"], losses["count"] / 10)
    present, *_ = losses_of(segments, shares, weak, absent_counts=False)
    expected = [-math.log(binomial[1] * binomial[7]) * 2 / 3, -math.log(binomial[10]) * 2 / 3]
    torch.testing.assert_close(present["count"], torch.tensor(expected, dtype=torch.float64))


def test_absent_labels_have_the_cross_entropy_of_all_their_segments():
    segments = torch.rand(4, 10, 2, 3, generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros(4, 3)
    losses, *_ = losses_of(segments, nothing, nothing, count_scale="segment")
    torch.testing.assert_close(losses["count"], -torch.log1p(-segments).mean(dim=(1, 3)).sum(dim=1))


def test_hans_losses_are_about_presence():
    weak = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    segments = torch.full((2, 10, 2, 3), 0.3)
    _, targets, _ = losses_of(segments, weak * 0.2, weak)
    expected = han_targets(Batch({}, weak, torch.arange(2), 2), visual_smoothing=0.1)
    for name in ("video", "audio", "visual"):
        torch.testing.assert_close(getattr(targets, name), getattr(expected, name))
    removed = weak * torch.tensor([0.2, 0.2, 0.0])
    _, targets, _ = losses_of(segments, removed, weak)
    assert targets.visual[:, 2].tolist() == [0, 0]  # not the 0.05 of a label that the video never had
    assert torch.equal(targets.video, weak)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_saturated_networks_have_finite_losses_and_gradients(probability):
    weak = torch.tensor([[1.0, 0, 1]])
    segments = torch.full((1, 10, 2, 3), probability, requires_grad=True)
    losses, *_ = losses_of(segments, weak * 0.3, weak)
    losses["count"].sum().backward()
    assert losses["count"].isfinite().all()
    assert segments.grad.isfinite().all()
