"""What every method of `METHODS` must fulfil. A new method is tested by being in the `MethodConfig` union.

What a method needs is taken from its config (``segment_labels``) and its stages (partners, artifacts, networks). Each test
runs all stages in order, for one step each, with a small HAN network and random features.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from collectives import FakeCollective

from avvp_dist.dist.collective import LocalCollective
from avvp_dist.dist.partition import split_sizes
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods import METHODS
from avvp_dist.methods.base import CollectStage, TrainStage
from avvp_dist.models.co_trained import build_networks
from avvp_dist.models.han import HanConfig
from avvp_dist.train.step import forward
from avvp_dist.types import MODALITIES, Batch, Refined, Targets, TrainPosition

WIDTHS = {"audio": 6, "visual": 9, "motion": 7}
SHAPES = {stream: (width,) for stream, width in WIDTHS.items()}
CLASSES = ("Speech", "Dog", "Car")
VIDEOS, SEGMENTS = 13, 10
NETWORK = HanConfig(width=16, feedforward=16, dropout=0)

pytestmark = pytest.mark.parametrize("name", METHODS)


def random_batch(generator, partners, segment_labels):
    streams = {stream: torch.randn(VIDEOS, SEGMENTS, width, generator=generator) for stream, width in WIDTHS.items()}
    weak = (torch.rand(VIDEOS, len(CLASSES), generator=generator) < 0.6).float()
    refined = None
    if segment_labels:
        drawn = (torch.rand(2, VIDEOS, SEGMENTS, len(CLASSES), generator=generator) < 0.4).float()
        refined = Refined(None, dict(zip(MODALITIES, drawn, strict=True)))
    others = tuple(random_batch(generator, 0, segment_labels) for _ in range(partners))
    return Batch(streams, weak, torch.arange(VIDEOS), VIDEOS, refined, others)


def part(batch, selected):
    """The selected rows of a global batch."""
    refined = batch.refined
    if refined is not None:
        video = None if refined.video is None else refined.video[selected]
        tracks = {name: labels[selected] for name, labels in refined.tracks.items()}
        refined = replace(refined, video=video, tracks=tracks)
    return Batch(
        {stream: features[selected] for stream, features in batch.streams.items()},
        batch.weak[selected],
        batch.index[selected],
        batch.total,
        refined,
        tuple(part(partner, selected) for partner in batch.partners),
    )


@dataclass
class Step:
    """One step of a train stage on one rank."""

    losses: dict
    targets: Targets
    state: dict
    gradients: dict


def run(name, collective, models):
    """One step of every train stage on this rank's part of a global batch, and the artifacts of the collect stages."""
    config = METHODS[name]()
    sizes = split_sizes(VIDEOS, collective.world_size)
    start = sum(sizes[: collective.rank])
    local = slice(start, start + sizes[collective.rank])
    generator = torch.Generator().manual_seed(0)
    artifacts, steps, states = {}, {}, {}
    for stage in config.build(CLASSES, SEGMENTS).stages:
        batch = random_batch(generator, stage.partners, config.segment_labels)
        model = models[stage.networks if isinstance(stage, TrainStage) else 1]
        if isinstance(stage, CollectStage):
            batch = part(batch, local)
            with torch.no_grad():
                stage.start(states[stage.source], torch.device("cpu"))
                stage.collect([model(each, cross_modal=stage.cross_modal) for each in stage.inputs(batch)], batch)
                artifacts[stage.name] = stage.finish(collective, [f"v{number}" for number in range(VIDEOS)])
            continue
        if stage.labels_from:
            batch = replace(batch, refined=refined(artifacts[stage.labels_from]))
        batch = part(batch, local)
        stage.start({key: artifacts[key] for key in stage.starts_from}, torch.device("cpu"))
        # late in training, when denoising is fully active
        position = TrainPosition(stage.name, epoch=30, step=1, epochs=40, steps_per_epoch=5)
        with torch.no_grad():
            teacher = model(batch, cross_modal=stage.cross_modal) if stage.teacher_momentum is not None else None
            if stage.scans(position.epoch, position.epochs):
                stage.scan(model(batch, cross_modal=stage.cross_modal), batch)
                stage.finish_scan(collective)
        outputs = replace(forward(model, stage, batch), teacher=teacher)
        with torch.no_grad():
            targets = stage.targets(outputs, batch, position, collective)
        losses = stage.losses(outputs, targets, batch)
        gradients = torch.autograd.grad(losses["total"].sum(), list(model.parameters()), allow_unused=True)
        states[stage.name] = stage.state_dict()
        steps[stage.name] = Step(
            {key: value.detach() for key, value in losses.items()},
            targets,
            stage.state_dict(),
            {key: gradient for (key, _), gradient in zip(model.named_parameters(), gradients, strict=True)},
        )
    return steps, artifacts


@pytest.fixture(scope="module")
def models():
    """Modules of one and of several networks, without dropout, which the ranks share: they are only read."""
    torch.manual_seed(0)
    counts = {
        stage.networks
        for config in METHODS.values()
        for stage in config().build(CLASSES, SEGMENTS).stages
        if isinstance(stage, TrainStage)
    }
    return {count: build_networks(lambda: NETWORK.build(SHAPES, len(CLASSES)), count)[0].train() for count in {1, *counts}}


def refined(labels):
    video = None if labels.video is None else torch.from_numpy(labels.video)
    tracks = {name: torch.from_numpy(values) for name, values in labels.tracks.items()}
    return Refined(video, tracks, labels.windows)


def removed(targets):
    masks = [targets.removed_audio, targets.removed_visual]
    return [mask for mask in masks if mask is not None] + [mask for other in targets.co_trained for mask in removed(other)]


def assert_same_artifact(artifact, expected):
    if not isinstance(expected, RefinedLabels):
        assert artifact == expected
        return
    assert (artifact.ids, artifact.classes, artifact.windows) == (expected.ids, expected.classes, expected.windows)
    for track, labels in expected.tracks.items():
        hard = set(labels.ravel().tolist()) <= {0.0, 1.0}
        np.testing.assert_allclose(artifact.tracks[track], labels, atol=0 if hard else 1e-5)


def test_stages_are_named_once_and_need_earlier_ones(name):
    stages = METHODS[name]().build(CLASSES, SEGMENTS).stages
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    for number, stage in enumerate(stages):
        assert set(stage.needs) <= set(names[:number])
    assert any(isinstance(stage, TrainStage) for stage in stages)  # whose network is evaluated


def test_losses_are_finite_and_train_every_network(name, models):
    steps, _ = run(name, LocalCollective(), models)
    assert steps
    for step in steps.values():
        assert "total" in step.losses
        for loss in step.losses.values():
            assert loss.shape == (VIDEOS,)
            assert loss.isfinite().all()
        gradients = {key: gradient for key, gradient in step.gradients.items() if gradient is not None}
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        # the parameters of network k among several are named networks.k
        trained = {
            key.split(".")[1] for key, gradient in gradients.items() if key.startswith("networks.") and gradient.any()
        }
        assert trained == {key.split(".")[1] for key in step.gradients if key.startswith("networks.")}


@pytest.mark.parametrize("world", [2, 3, 16])  # 16: some ranks have no video
def test_ranks_together_equal_one_rank(name, world, models):
    steps, artifacts = run(name, LocalCollective(), models)
    ranks = FakeCollective.run(world, lambda collective: run(name, collective, models))
    for key, artifact in artifacts.items():
        for _, of_rank in ranks:
            assert_same_artifact(of_rank[key], artifact)
    for key, step in steps.items():
        for loss, expected in step.losses.items():
            joined = torch.cat([of_rank[key].losses[loss] for of_rank, _ in ranks])
            torch.testing.assert_close(joined, expected, rtol=1e-5, atol=1e-5)
        masks = [removed(of_rank[key].targets) for of_rank, _ in ranks]
        for number, mask in enumerate(removed(step.targets)):
            assert torch.equal(torch.cat([of_rank[number] for of_rank in masks]), mask)
        for of_rank, _ in ranks:
            assert of_rank[key].state.keys() == step.state.keys()
            for entry, value in step.state.items():
                torch.testing.assert_close(of_rank[key].state[entry], value)


def test_state_round_trip(name, models):
    steps, artifacts = run(name, LocalCollective(), models)
    for stage in METHODS[name]().build(CLASSES, SEGMENTS).stages:
        if isinstance(stage, TrainStage):
            stage.start({key: artifacts[key] for key in stage.starts_from}, torch.device("cpu"))
            state = {key: value + 0.25 for key, value in steps[stage.name].state.items()}
            stage.load_state_dict(state)
            assert stage.state_dict().keys() == state.keys()
            for key, value in state.items():
                assert torch.equal(stage.state_dict()[key], value)
