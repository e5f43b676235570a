"""MA: the published exchange rule, partner videos, refined labels."""

import numpy as np
import pytest
import torch
from collectives import FakeCollective
from network_outputs import modality_outputs

from avvp_dist.dist.collective import LocalCollective
from avvp_dist.errors import DataError
from avvp_dist.loading.partners import draw_partners
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods.losses import cross_entropy_contrastive, modality_targets
from avvp_dist.methods.ma import MaConfig, exchange_rule
from avvp_dist.types import Batch, Refined

CLASSES = ("Speech", "Dog", "Car")
NAMES = (
    "weak", "audio", "visual", "audio_given_swapped_audio", "visual_given_swapped_audio", "audio_given_swapped_visual",
    "visual_given_swapped_visual",
)  # fmt: skip


def test_published_exchange_rule(golden):
    vectors = np.load(golden / "A_exchange.npz")
    audio, visual = exchange_rule(*(torch.from_numpy(vectors[name]) for name in NAMES))
    np.testing.assert_array_equal(audio.numpy(), vectors["cleared_audio"])
    np.testing.assert_array_equal(visual.numpy(), vectors["cleared_visual"])


def test_labels_of_a_class_without_error_are_never_removed():
    weak = torch.tensor([[1, 1], [1, 0]])
    probability = torch.tensor([[0.9, 0.1], [0.9, 0.1]])  # class 0 without error, class 1 with
    zero = torch.zeros(2, 2)
    audio, visual = exchange_rule(weak, probability, probability, zero, zero, zero, zero)
    assert audio.tolist() == visual.tolist() == [[False, True], [False, False]]


def test_without_errors_no_label_is_removed():
    weak = torch.tensor([[1.0, 0.0]])
    audio, visual = exchange_rule(weak, weak, weak, *[torch.zeros(1, 2)] * 4)
    assert not audio.any()
    assert not visual.any()


def test_contrastive_loss_is_a_cross_entropy_with_soft_targets():
    torch.manual_seed(0)
    audio, visual = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    similarity = torch.nn.functional.cosine_similarity(audio[:, :, None], visual[:, None], dim=-1) / 0.2
    target = torch.full((4, 4), 0.1 / 3).fill_diagonal_(0.9)
    expected = torch.nn.functional.cross_entropy(similarity.reshape(8, 4), target.repeat(2, 1), reduction="none")
    torch.testing.assert_close(cross_entropy_contrastive(audio, visual, 0.2), expected.reshape(2, 4).mean(1))


def labeled(videos=300):
    rng = np.random.default_rng(0)
    return [f"video{number:04d}" for number in range(videos)], rng.random((videos, 6)) < 0.2


def test_partners_share_no_label_and_depend_on_ids_only():
    ids, weak = labeled()
    partners = draw_partners(ids, weak, seed=2, draws=3)
    assert not (weak[:, None] & weak[partners]).any()
    shuffled = np.random.default_rng(1).permutation(len(ids))
    again = draw_partners([ids[row] for row in shuffled], weak[shuffled], seed=2, draws=3)
    assert again.shape == (300, 3)  # another order gives another draw of the same form
    assert (draw_partners(ids, weak, seed=2, draws=3) == partners).all()
    assert (draw_partners(ids, weak, seed=3, draws=3) != partners).any()
    assert (draw_partners(ids, weak, seed=2, draws=3, epoch=1) != partners).any()
    assert len(np.unique(partners)) > 200  # the draw covers the split


def test_a_video_without_possible_partner_is_reported():
    with pytest.raises(DataError, match="b: no other video can be its partner"):
        draw_partners(["a", "b"], np.array([[True, False], [True, True]]), seed=0)


def exchange(collective, rows, settings, probabilities):
    """The artifact of the exchange stage, given probabilities [N,C] of (audio, visual) for each of the three inputs."""
    stage = MaConfig(**settings).build(CLASSES, 10).stages[1]
    index = torch.arange(20)[rows]
    batch = Batch({}, probabilities["weak"][rows], index, 20)
    outputs = [
        modality_outputs(probabilities[key][0][rows], *(modality[rows] for modality in probabilities[key]))
        for key in ("original", "swapped_audio", "swapped_visual")
    ]
    stage.collect(outputs, batch)
    return stage.finish(collective, [f"v{number}" for number in range(20)])


@pytest.fixture
def probabilities():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(3, 2, 20, 3, generator=generator)
    return {
        "weak": torch.ones(20, 3),
        "original": drawn[0],
        "swapped_audio": drawn[1] * 0.6,
        "swapped_visual": drawn[2] * 0.6,
    }


@pytest.mark.parametrize("settings", [{}, {"rule": "paper"}, {"refine": "audio"}, {"aliasing": "fixed"}])
def test_the_exchange_is_the_same_on_any_number_of_ranks(probabilities, settings):
    single = exchange(LocalCollective(), slice(None), settings, probabilities)
    parts = [slice(0, 9), slice(9, 20)]
    both = FakeCollective.run(2, lambda collective: exchange(collective, parts[collective.rank], settings, probabilities))
    assert both[0].fingerprint == both[1].fingerprint == single.fingerprint
    assert (single.audio == 0).any() or settings.get("refine") == "visual"


def test_rules_and_modalities(probabilities):
    weak, (audio_kept, visual_kept) = (
        probabilities["weak"] > 0,
        (probabilities["swapped_visual"][0], probabilities["swapped_audio"][1]),
    )
    paper = exchange(LocalCollective(), slice(None), {"rule": "paper"}, probabilities)
    np.testing.assert_array_equal(paper.audio == 0, (weak & (audio_kept < 0.5)).numpy())
    np.testing.assert_array_equal(paper.visual == 0, (weak & (visual_kept < 0.5)).numpy())
    assert (exchange(LocalCollective(), slice(None), {"refine": "audio"}, probabilities).visual == 1).all()
    assert (exchange(LocalCollective(), slice(None), {"refine": "visual"}, probabilities).audio == 1).all()


def test_published_aliasing_removes_the_video_label_with_the_audio_label(probabilities):
    published = exchange(LocalCollective(), slice(None), {}, probabilities)
    fixed = exchange(LocalCollective(), slice(None), {"aliasing": "fixed"}, probabilities)
    np.testing.assert_array_equal(published.video, published.audio)
    assert (fixed.video == 1).all()
    np.testing.assert_array_equal(fixed.audio, published.audio)


def test_removed_labels_are_zero_and_other_negatives_are_smoothed():
    weak = torch.tensor([[1.0, 1.0, 0.0]])
    batch = Batch({}, weak, torch.zeros(1), 1, Refined(None, {"audio": torch.tensor([[1.0, 0.0, 0.0]]), "visual": weak}))
    assert batch.audio_labels.tolist() == [[1, 0, 0]]
    assert torch.equal(batch.video_labels, weak)
    torch.testing.assert_close(modality_targets(batch.audio_labels, weak, 0.1), torch.tensor([[0.95, 0.0, 0.05]]))


def test_refined_labels_are_aligned_by_id(tmp_path):
    rng = np.random.default_rng(0)
    found = RefinedLabels(
        ("a", "b", "c"),
        CLASSES,
        None,
        dict(zip(("audio", "visual"), rng.random((2, 3, 10, 3), np.float32), strict=True)),
        {"refiner": "test"},
    )
    (tmp_path / "refined.npz").write_bytes(found.to_bytes())
    read = RefinedLabels.load(str(tmp_path / "refined.npz"))
    assert read.fingerprint == found.fingerprint
    assert read.provenance == {"refiner": "test"}
    aligned = read.aligned(["c", "a"], CLASSES, 10, "source")
    np.testing.assert_array_equal(aligned.audio, found.audio[[2, 0]])
    with pytest.raises(DataError) as caught:
        read.aligned(["a", "z"], ("Dog", "Speech", "Car"), 9, "source")
    assert len(caught.value.problems) == 4
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="not a file of refined labels"):
        RefinedLabels.load(str(tmp_path / "bad.npz"))
    with pytest.raises(DataError, match="no such file"):
        RefinedLabels.load(str(tmp_path / "none.npz"))
