"""Co-teaching+ and JoCoR: selection of labels, their weights, and the losses."""

from dataclasses import replace

import pytest
import torch
from collectives import FakeCollective
from network_outputs import modality_outputs, rows_of
from torch.distributions import Bernoulli, kl_divergence

from avvp_dist.dist.collective import LocalCollective
from avvp_dist.dist.partition import split_sizes
from avvp_dist.methods import METHODS
from avvp_dist.methods.coteaching import select_trusted
from avvp_dist.methods.jocor import JocorConfig, joint_loss
from avvp_dist.methods.losses import bce, smooth
from avvp_dist.methods.small_loss import smallest_losses
from avvp_dist.types import Batch, Refined, TrainPosition

NAMES = ["coteaching", "jocor"]


def stage_of(method, **settings):
    (stage,) = METHODS[method](**settings).build(("Speech", "Dog", "Car"), 10).stages
    return stage


def at(epoch):
    return TrainPosition("train", epoch, 0, epochs=40, steps_per_epoch=5)


def batch_and_outputs(videos=30, weak=None):
    """Outputs of two networks, which require gradients."""
    generator = torch.Generator().manual_seed(0)
    if weak is None:
        weak = (torch.rand(videos, 3, generator=generator) < 0.6).float()
    first, second = (
        modality_outputs(*torch.rand(3, videos, 3, generator=generator).requires_grad_().unbind()) for _ in range(2)
    )
    return Batch({}, weak, torch.arange(videos), videos), replace(first, co_trained=(second,))


def select_rows(batch, outputs, rows):
    return replace(batch, weak=batch.weak[rows], index=batch.index[rows]), rows_of(outputs, rows)


@pytest.mark.parametrize(("epochs", "grown"), [(10, [0, 0.1, 0.5, 1, 1]), (4, [0, 0.25, 1, 1, 1]), (0, [1, 1, 1, 1, 1])])
def test_forgetting_rate_grows_linearly_and_then_stays_constant(epochs, grown):
    config = JocorConfig(audio_forget=0.1, visual_forget=0.4, forget_epochs=epochs)
    shares = [config.forget(at(epoch)) for epoch in (0, 1, 5, 10, 30)]
    assert shares == [pytest.approx((0.1 * share, 0.4 * share)) for share in grown]


def test_small_losses_are_selected_and_ties_ranked_by_position():
    losses = torch.tensor([[[0.1, 9.0], [0.7, 0.3], [0.5, 0.0]], [[2.0, 2.0], [2.0, 1.0], [2.0, 2.0]]])  # [2,B=3,C=2]
    candidates = torch.tensor([[[1, 1], [1, 1], [1, 0]], [[1, 1], [1, 1], [1, 1]]]).bool()
    audio, visual = smallest_losses(losses, candidates, (0.35, 0.5))  # floor(0.65 * 5) = 3 and 3
    assert audio.int().tolist() == [[1, 0], [0, 1], [1, 0]]  # the smallest loss does not belong to a candidate
    assert visual.int().tolist() == [[1, 1], [0, 1], [0, 0]]


def test_a_single_candidate_is_selected():
    one = torch.zeros(2, 3, 2, dtype=torch.bool)
    one[0, 1, 1] = True
    assert torch.equal(smallest_losses(torch.rand(2, 3, 2), one, (0.9, 0.9)), one)


# four positives of one class, the same in audio and visual: the networks disagree on 0 and 1, both predict 2, neither 3
FIRST = torch.tensor([[0.8], [0.3], [0.9], [0.1]])
SECOND = torch.tensor([[0.2], [0.7], [0.6], [0.4]])


def selected_videos(first, second, forget, disagree, positives=(True,) * 4):
    """Numbers of the videos whose label each network selects, by network and modality."""
    probability = torch.stack([torch.stack(list(first)), torch.stack(list(second))])
    weak = torch.tensor(positives)[:, None].expand(2, 4, 1)
    selected = select_trusted(probability, weak.float(), weak, forget, disagree=disagree)
    return [[modality[:, 0].nonzero().flatten().tolist() for modality in network] for network in selected]


def test_each_network_selects_its_small_losses():
    by_first, by_second = selected_videos((FIRST, FIRST), (SECOND, SECOND), (0.25, 0.5), disagree=False)
    assert by_first == [[0, 1, 2], [0, 2]]
    assert by_second == [[1, 2, 3], [1, 2]]


def test_only_labels_with_disagreement_are_selected():
    by_first, by_second = selected_videos((FIRST, FIRST), (SECOND, SECOND), (0, 0.5), disagree=True)
    assert by_first == [[0, 1], [0]]
    assert by_second == [[0, 1], [1]]
    # a single label with disagreement is selected; labels that are not positive are ignored
    by_first, by_second = selected_videos(
        (FIRST,) * 2, (SECOND,) * 2, (0.9, 0.9), disagree=True, positives=(False, *[True] * 3)
    )
    assert by_first == by_second == [[1], [1]]


def test_without_disagreement_a_modality_falls_back_to_all_its_positives():
    by_first, by_second = selected_videos((FIRST, FIRST), (FIRST, SECOND), (0.25, 0), disagree=True)
    assert by_first == [[0, 1, 2], [0, 1]]  # the networks agree on audio but not on visual
    assert by_second == [[0, 1, 2], [0, 1]]


def test_disagreement_is_required_after_the_plain_epochs():
    batch, outputs = batch_and_outputs()
    settings = {"audio_forget": 0, "visual_forget": 0, "plain_epochs": 3}
    left_out = [
        stage_of("coteaching", **settings).targets(outputs, batch, at(epoch), LocalCollective()).removed_visual
        for epoch in (2, 3)
    ]
    agreed = (outputs.visual >= 0.5) == (outputs.co_trained[0].visual >= 0.5)
    assert not left_out[0].any()
    assert torch.equal(left_out[1], agreed & (batch.weak > 0))


@pytest.mark.parametrize("method", NAMES)
def test_selected_labels_represent_all_positives(method):
    batch, outputs = batch_and_outputs()
    targets = stage_of(method).targets(outputs, batch, at(20), LocalCollective())
    positives = batch.weak > 0
    for of_network in (targets, *targets.co_trained):
        for removed, weights in (
            (of_network.removed_audio, of_network.audio_weights),
            (of_network.removed_visual, of_network.visual_weights),
        ):
            assert removed.any()
            assert not (removed & ~positives).any()
            assert (weights[removed] == 0).all()
            assert (weights[~positives] == 1).all()
            assert weights[positives].sum() == pytest.approx(positives.sum().item())
            assert len(weights[positives & ~removed].unique()) == 1
    assert torch.equal(targets.video, batch.weak)
    assert torch.equal(targets.visual, smooth(batch.weak, 0.1))


def test_a_network_is_trained_on_the_selection_of_the_other_one():
    batch, outputs = batch_and_outputs()
    stage = stage_of("coteaching", plain_epochs=100)
    targets = stage.targets(outputs, batch, at(20), LocalCollective())
    positives = batch.weak > 0
    (other,), (other_targets,) = outputs.co_trained, targets.co_trained
    selected_by_other = smallest_losses(-other.visual.detach().expand(2, -1, -1), positives, (0.35, 0.35))[1]
    assert torch.equal(targets.removed_visual, positives & ~selected_by_other)
    assert (targets.removed_visual != other_targets.removed_visual).any()
    heads = (outputs.modalities, other.modalities)
    gradients = torch.autograd.grad(stage.losses(outputs, targets, batch)["total"].sum(), heads)
    for gradient, removed in zip(gradients, (targets.removed_visual, other_targets.removed_visual), strict=True):
        assert torch.equal(gradient[:, 1] == 0, removed)


def test_total_is_the_sum_of_both_networks_losses():
    batch, outputs = batch_and_outputs()
    stage = stage_of("coteaching", audio_forget=0, visual_forget=0, plain_epochs=100)
    losses = stage.losses(outputs, stage.targets(outputs, batch, at(20), LocalCollective()), batch)
    sums = [
        bce(output.video, batch.weak) + bce(output.audio, batch.weak) + bce(output.visual, smooth(batch.weak, 0.1))
        for output in (outputs, *outputs.co_trained)
    ]
    torch.testing.assert_close(losses["second_network"], sums[1])
    torch.testing.assert_close(losses["total"], sums[0] + sums[1])


def test_joint_loss_is_cross_entropy_and_symmetric_divergence():
    first, second, target = torch.rand(3, 4, 3)
    agreement = kl_divergence(Bernoulli(first), Bernoulli(second)) + kl_divergence(Bernoulli(second), Bernoulli(first))
    torch.testing.assert_close(joint_loss(first, second, target, 1.0), agreement)
    cross_entropy = -(target * first.log() + (1 - target) * (1 - first).log()) - (
        target * second.log() + (1 - target) * (1 - second).log()
    )
    torch.testing.assert_close(joint_loss(first, second, target, 0.3), 0.7 * cross_entropy + 0.3 * agreement)
    assert joint_loss(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(1.0), 0.5).isfinite()


def test_jocor_selects_the_same_labels_for_both_networks_by_the_joint_loss():
    batch, outputs = batch_and_outputs()
    stage = stage_of("jocor", co_lambda=0.8, visual_smoothing=0)
    targets = stage.targets(outputs, batch, at(20), LocalCollective())
    (other,) = outputs.co_trained
    joint = joint_loss(outputs.visual, other.visual, batch.weak, 0.8).detach()
    positives = batch.weak > 0
    largest_selected = joint[positives & ~targets.removed_visual].max()
    assert (joint[targets.removed_visual] > largest_selected).all()
    assert targets.removed_visual.sum() == positives.sum() - int(0.65 * positives.sum())
    losses = stage.losses(outputs, targets, batch)
    for gradient in torch.autograd.grad(losses["total"].sum(), (outputs.modalities, other.modalities)):
        assert torch.equal(gradient[:, 1] == 0, targets.removed_visual)
    torch.testing.assert_close(losses["visual"], (joint * targets.visual_weights).mean(dim=1))


@pytest.mark.parametrize("method", NAMES)
def test_a_label_that_a_refiner_removed_is_absent(method):
    batch, outputs = batch_and_outputs(weak=torch.ones(30, 3))
    refined = torch.ones(30, 3).index_fill(1, torch.tensor([1]), 0)
    targets = stage_of(method).targets(
        outputs, replace(batch, refined=Refined(None, {"audio": batch.weak, "visual": refined})), at(20), LocalCollective()
    )
    assert not targets.removed_visual[:, 1].any()
    assert (targets.visual_weights[:, 1] == 1).all()
    assert (targets.visual[:, 1] == 0).all()
    assert targets.removed_visual.sum() >= 60 - int(0.65 * 60)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("method", NAMES)
def test_ranks_select_the_same_labels_as_one_process(method, world):
    batch, outputs = batch_and_outputs(31)  # not divisible: the parts of the ranks differ in length
    whole = stage_of(method).targets(outputs, batch, at(7), LocalCollective())

    def work(collective):
        sizes = split_sizes(31, world)
        start = sum(sizes[: collective.rank])
        local, local_outputs = select_rows(batch, outputs, slice(start, start + sizes[collective.rank]))
        return stage_of(method).targets(local_outputs, local, at(7), collective)

    ranks = FakeCollective.run(world, work)
    for name in ("removed_audio", "removed_visual", "audio_weights", "visual_weights"):
        assert torch.equal(torch.cat([getattr(rank, name) for rank in ranks]), getattr(whole, name)), name
        for number, other in enumerate(whole.co_trained):
            assert torch.equal(
                torch.cat([getattr(rank.co_trained[number], name) for rank in ranks]), getattr(other, name)
            ), name
