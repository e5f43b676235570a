"""JoMoLD: noise ratios, warm-up, denoised targets, ratio files."""

import json

import numpy as np
import pytest
import torch
from collectives import FakeCollective
from network_outputs import modality_outputs, rows_of

from avvp_dist.dist.collective import LocalCollective
from avvp_dist.dist.partition import split_sizes
from avvp_dist.errors import ConfigError
from avvp_dist.methods.jomold import JomoldConfig, noise_ratios, read_ratios, warmup_factor
from avvp_dist.methods.losses import bce, smooth
from avvp_dist.types import Batch, TrainPosition

CLASSES = ("Speech", "Dog", "Car")


def test_published_noise_ratios(golden):
    vectors = np.load(golden / "A_noise_ratio.npz")
    audio, visual = noise_ratios(*(torch.from_numpy(vectors[name]) for name in ("prob_audio", "prob_visual", "weak")))
    np.testing.assert_array_equal(audio.numpy(), vectors["ratio_audio"])
    np.testing.assert_array_equal(visual.numpy(), vectors["ratio_visual"])


def test_a_class_without_positives_has_no_noise():
    weak = torch.tensor([[1, 0], [1, 0]])
    audio, visual = noise_ratios(torch.full((2, 2), 0.5), torch.full((2, 2), 0.5), weak)
    assert audio[1] == visual[1] == 0


def position(epoch, step):
    return TrainPosition("denoise", epoch, step, epochs=25, steps_per_epoch=79)


def test_published_warmup_skips_the_first_epoch_and_then_applies_the_full_ratio():
    assert [warmup_factor("published", 0.9, position(0, step)) for step in (0, 40, 78)] == [0, 0, 0]
    assert [warmup_factor("published", 0.9, position(epoch, step)) for epoch, step in ((1, 0), (1, 78), (9, 3))] == [1, 1, 1]


def test_linear_warmup_is_a_ramp():
    ramp = [warmup_factor("linear", 0.9, position(0, step)) for step in range(79)]
    assert ramp[0] == 0
    assert np.all(np.diff(ramp) >= 0)
    assert ramp[36] == pytest.approx(36 / (0.9 * 79))
    assert warmup_factor("linear", 0.9, position(1, 0)) == 1
    assert warmup_factor("linear", 0, position(0, 0)) == 1


def batch_and_outputs(videos, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weak = (torch.rand(videos, 3, generator=generator) < 0.7).float()
    score_audio, score_visual = torch.rand(2, videos, 3, generator=generator)
    features = torch.randn(4, videos, 10, 8, generator=generator)[:2]
    pooled = torch.rand(3, videos, 3, generator=generator)
    segments = torch.rand(videos, 10, 2, 3, generator=generator)
    scoring = modality_outputs(pooled[0], score_audio, score_visual, segments, features)
    return Batch({}, weak, torch.arange(videos), videos), modality_outputs(*pooled, segments, features, scoring=scoring)


def select_rows(batch, outputs, rows):
    return Batch({}, batch.weak[rows], batch.index[rows], batch.total), rows_of(outputs, rows)


def denoise_stage(**settings):
    ratios = {"audio": dict.fromkeys(CLASSES, 0.4), "visual": dict.fromkeys(CLASSES, 0.7)}
    stage = JomoldConfig(**settings).build(CLASSES, 10).stages[-1]
    stage.start({"ratios": ratios}, torch.device("cpu"))
    return stage


def test_removed_labels_are_zero_and_the_video_label_is_kept():
    batch, outputs = batch_and_outputs(40)
    targets = denoise_stage().targets(outputs, batch, position(1, 0), LocalCollective())
    assert targets.removed_visual.any()
    assert targets.removed_audio.any()
    assert torch.equal(targets.video, batch.weak)
    assert (targets.visual[targets.removed_visual] == 0).all()
    kept = ~targets.removed_visual
    assert torch.equal(targets.visual[kept], smooth(batch.weak, 0.1)[kept])  # negatives stay at 0.05
    assert (targets.audio == torch.where(targets.removed_audio, 0.0, batch.weak)).all()
    assert not (targets.removed_audio & (batch.weak == 0)).any()


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("rounding", ["floor", "carry"])
def test_ranks_remove_the_same_labels_as_one_process(world, rounding):
    batch, outputs = batch_and_outputs(41)  # not divisible: the parts of the ranks differ in length
    single = denoise_stage(rounding=rounding)
    whole = [single.targets(outputs, batch, position(1, step), LocalCollective()) for step in range(3)]

    def work(collective):
        sizes = split_sizes(41, world)
        start = sum(sizes[: collective.rank])
        local, local_outputs = select_rows(batch, outputs, slice(start, start + sizes[collective.rank]))
        stage = denoise_stage(rounding=rounding)
        return [stage.targets(local_outputs, local, position(1, step), collective) for step in range(3)]

    ranks = FakeCollective.run(world, work)
    for step in range(3):
        assert torch.equal(torch.cat([rank[step].removed_audio for rank in ranks]), whole[step].removed_audio)
        assert torch.equal(torch.cat([rank[step].removed_visual for rank in ranks]), whole[step].removed_visual)


@pytest.mark.parametrize("skip", [True, False])
def test_scoring_without_exchange_is_an_option(skip):
    estimate, ratios, denoise = JomoldConfig(skip_exchange=skip).build(CLASSES, 10).stages
    assert [estimate.cross_modal, ratios.cross_modal, denoise.scoring_pass.cross_modal] == [not skip] * 3
    assert denoise.cross_modal  # the network that is evaluated always exchanges
    assert denoise.scoring_pass.dropout


def test_total_loss_is_the_published_sum():
    batch, outputs = batch_and_outputs(8)
    stage = denoise_stage()
    targets = stage.targets(outputs, batch, position(1, 0), LocalCollective())
    losses = stage.losses(outputs, targets, batch)
    audio, visual, video = (bce(getattr(outputs, name), getattr(targets, name)) for name in ("audio", "visual", "video"))
    torch.testing.assert_close(losses["total"], 2 * audio + visual + video + losses["contrastive"])
    assert losses["total"].shape == (8,)


def test_a_ratio_file_replaces_the_first_two_stages(tmp_path):
    path = tmp_path / "ratios.json"
    content = {"audio": dict.fromkeys(CLASSES, 0.1), "visual": {"Car": 0.3, "Dog": 0.2, "Speech": 0.9}}
    path.write_text(json.dumps(content))
    stages = JomoldConfig(ratios=str(path)).build(CLASSES, 10).stages
    assert [stage.name for stage in stages] == ["denoise"]
    stages[0].start({}, torch.device("cpu"))
    assert stages[0].ratio_visual.tolist() == [0.9, 0.2, 0.3]  # in the class order of the data, not of the file
    assert [stage.name for stage in JomoldConfig().build(CLASSES, 10).stages] == ["estimate", "ratios", "denoise"]


def test_a_bad_ratio_file_is_refused_with_all_problems(tmp_path):
    path = tmp_path / "ratios.json"
    path.write_text(
        json.dumps({"audio": {"Speech": 1.5, "Dog": 0.1, "Horse": 0.1}, "visual": {"Speech": "much", "Dog": 0, "Car": 1}})
    )
    with pytest.raises(ConfigError) as caught:
        read_ratios(str(path), CLASSES)
    assert sorted(caught.value.problems) == [
        "audio.Speech: 1.5 is not a ratio between 0 and 1",
        "audio: no ratio for class 'Car'",
        "audio: unknown class 'Horse'",
        "visual.Speech: 'much' is not a ratio between 0 and 1",
    ]
    with pytest.raises(ConfigError, match="no such file"):
        read_ratios(str(tmp_path / "none.json"), CLASSES)
