"""LR: windows inserted into other videos, labels of windows, training on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from collectives import FakeCollective
from network_outputs import modality_outputs, rows_of

from avvp_dist.dist.collective import LocalCollective
from avvp_dist.errors import ConfigError
from avvp_dist.methods.losses import bce
from avvp_dist.methods.lr import LrConfig, windows
from avvp_dist.types import Batch, Refined, TrainPosition

CLASSES = ("Speech", "Dog", "Car")
POSITION = TrainPosition("base", 0, 0, 1, 1)


def batch_of(weak, fill):
    weak = torch.tensor(weak, dtype=torch.float32)
    streams = {name: torch.full((len(weak), 10, 2), float(fill)) for name in ("audio", "visual", "motion")}
    return Batch(streams, weak, torch.arange(len(weak)), len(weak))


def outputs_of(videos, generator, weights=True):
    pooled = torch.rand(3, videos, 3, generator=generator)
    segments = torch.rand(videos, 10, 2, 3, generator=generator)
    attention = torch.rand(videos, 10, 2, 3, generator=generator).softmax(1) if weights else None
    return modality_outputs(*pooled, segments, temporal_weights=attention)


def test_published_windows():
    assert windows(10, 4, 2) == ((0, 4), (2, 6), (4, 8), (6, 10))


@pytest.mark.parametrize(
    ("length", "stride", "keys"),
    [(4, 4, ["method.stride"]), (6, 2, ["method.window"]), (6, 3, ["method.stride", "method.window"])],
)
def test_windows_that_do_not_fit_are_refused_with_all_problems(length, stride, keys):
    with pytest.raises(ConfigError) as caught:
        LrConfig(window=length, stride=stride).build(CLASSES, 10)
    assert [problem.split(":")[0] for problem in caught.value.problems] == keys


def test_base_training_adds_one_mixture_per_window():
    base = LrConfig().build(CLASSES, 10).stages[0]
    other = batch_of([[0, 1, 0]], fill=2)
    video = batch_of([[1, 0, 0]], fill=1)
    batch = Batch(video.streams, video.weak, video.index, 1, partners=(other,)).with_mixtures(base.mixed_windows)
    for name, stream in batch.materialized().streams.items():
        own, *mixed = stream
        assert torch.equal(own, video.streams[name][0])
        assert len(mixed) == 4
        for (start, stop), inserted in zip(windows(10, 4, 2), mixed, strict=True):
            assert (inserted[start:stop] == 1).all()
            assert (inserted == 2).sum() == (10 - 4) * 2
    plain = LrConfig(mixing_weight=0).build(CLASSES, 10).stages[0]
    assert (plain.partners, plain.mixed_windows) == (0, ())


def test_targets_of_mixed_videos_are_the_union_of_labels():
    base = LrConfig(mixing_weight=0.5).build(CLASSES, 10).stages[0]
    generator = torch.Generator().manual_seed(0)
    video, other = batch_of([[1, 0, 0]], 1), batch_of([[0, 1, 0]], 2)
    batch = Batch(video.streams, video.weak, video.index, 1, partners=(other,))
    plain = outputs_of(1, generator)
    others = tuple(outputs_of(1, generator) for _ in range(4))
    outputs = replace(plain, extra=others)
    losses = base.losses(outputs, base.targets(outputs, batch, POSITION, LocalCollective()), batch)
    union = torch.tensor([[1.0, 1.0, 0.0]])
    expected = sum(bce(output.video, union) for output in others) / 4
    torch.testing.assert_close(losses["mixed"], expected)
    torch.testing.assert_close(losses["total"], losses["video"] + losses["audio"] + losses["visual"] + 0.5 * expected)


def relabel(collective, rows, weak, of_windows):
    stage = LrConfig(tau=0.5).build(CLASSES, 10).stages[1]
    outputs = [rows_of(output, rows) for output in of_windows]
    stage.collect(outputs, Batch({}, weak[rows], torch.arange(len(weak))[rows], len(weak)))
    return stage.finish(collective, [f"v{number}" for number in range(len(weak))])


def test_a_window_keeps_the_labels_that_are_probable_in_it():
    generator = torch.Generator().manual_seed(0)
    weak = (torch.rand(9, 3, generator=generator) < 0.6).float()
    of_windows = [outputs_of(9, generator) for _ in range(4)]
    found = relabel(LocalCollective(), slice(None), weak, of_windows)
    assert found.windows == windows(10, 4, 2)
    assert found.audio.shape == found.visual.shape == (9, 4, 3)
    for number, output in enumerate(of_windows):
        np.testing.assert_array_equal(found.audio[:, number], ((weak > 0) & (output.audio >= 0.5)).float().numpy())
        np.testing.assert_array_equal(found.visual[:, number], ((weak > 0) & (output.visual >= 0.5)).float().numpy())
    parts = [slice(0, 5), slice(5, 9)]
    both = FakeCollective.run(2, lambda collective: relabel(collective, parts[collective.rank], weak, of_windows))
    assert both[0].fingerprint == both[1].fingerprint == found.fingerprint


@pytest.mark.parametrize("weights", [True, False])
def test_the_last_stage_pools_each_window_separately(weights):
    generator = torch.Generator().manual_seed(0)
    outputs = outputs_of(2, generator, weights)
    spans = windows(10, 4, 2)
    audio, visual = (torch.rand(2, 2, 4, 3, generator=generator) < 0.5).float()
    weak = torch.ones(2, 3)
    batch = Batch({}, weak, torch.arange(2), 2, Refined(None, {"audio": audio, "visual": visual}, spans))
    stage = LrConfig().build(CLASSES, 10).stages[2]
    losses = stage.losses(outputs, stage.targets(outputs, batch, POSITION, LocalCollective()), batch)
    expected = torch.zeros(2)
    for number, (start, stop) in enumerate(spans):
        inside = outputs.segments[:, start:stop, 1]
        if weights:
            share = outputs.temporal_weights[:, start:stop, 1]
            pooled = (inside * share / share.sum(1, keepdim=True)).sum(1)
        else:
            pooled = inside.amax(1)
        expected += bce(pooled, visual[:, number]) / 4
    torch.testing.assert_close(losses["visual"], expected)
    torch.testing.assert_close(losses["total"], losses["video"] + losses["audio"] + losses["visual"])
