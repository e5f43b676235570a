"""PPL: pseudo-labels and losses against plain formulas, and the teacher against its recursion."""

import math

import pytest
import torch
import torch.nn.functional as F
from commands import train_here
from network_outputs import modality_outputs
from torch import nn

from avvp_dist.dist.collective import LocalCollective
from avvp_dist.methods.ppl import PplMethodConfig, hard_labels, weak_by_segment
from avvp_dist.train.teacher import Teacher
from avvp_dist.types import Batch, Refined, TrainPosition

VIDEOS, SEGMENTS, CLASSES, WIDTH = 6, 5, 3, 4
POSITION = TrainPosition("train", epoch=9, step=0, epochs=10, steps_per_epoch=1)
NAMES = ("Speech", "Dog", "Car")


def outputs(seed):
    generator = torch.Generator().manual_seed(seed)
    video, audio, visual = torch.rand(3, VIDEOS, CLASSES, generator=generator)
    segments = torch.rand(VIDEOS, SEGMENTS, 2, CLASSES, generator=generator)
    features = torch.randn(2, VIDEOS, SEGMENTS, WIDTH, generator=generator)
    return modality_outputs(video, audio, visual, segments, features)


def batch(refined=None):
    weak = (torch.rand(VIDEOS, CLASSES, generator=torch.Generator().manual_seed(7)) < 0.6).float()
    weak[:, 2] = 0  # no key segment of the last class, so no prototype
    weak[0] = torch.tensor([1.0, 0.0, 1.0])
    streams = {name: torch.zeros(VIDEOS, SEGMENTS, 1) for name in ("audio", "visual", "motion")}
    return Batch(streams, weak, torch.arange(VIDEOS), VIDEOS, refined)


def fitted(**settings):
    """A stage with prototypes, of which the last class has none in either modality."""
    stage = PplMethodConfig(**{"key_probability": 0.0, "prototypes": 2, **settings}).build(NAMES, SEGMENTS).stages[0]
    without = batch()
    without.weak[0, 2] = 0
    stage.scan(outputs(0), without)
    stage.finish_scan(LocalCollective())
    return stage


def compared(stage, features):
    return F.normalize(F.normalize(features, dim=-1) - stage.state_dict()["mean"][:, None, None], dim=-1)


def cosines(stage, features):
    """[B][T][M][C] largest cosine with a prototype of the class, by loops; None without a prototype."""
    state = stage.state_dict()
    centers, known = (state[name].unflatten(0, (2, CLASSES)) for name in ("centers", "known"))
    unit = compared(stage, features)

    def largest(v, t, m, c):
        found = [float(unit[m, v, t] @ center) for center, there in zip(centers[m, c], known[m, c], strict=True) if there]
        return max(found, default=None)

    return [
        [[[largest(v, t, m, c) for c in range(CLASSES)] for m in range(2)] for t in range(SEGMENTS)] for v in range(VIDEOS)
    ]


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("normalized", ["classes", "absent", "video"])
def test_soft_pseudo_labels_by_loops(tau, normalized):
    stage, found = fitted(tau=tau, similarity_scale=2.0, normalized=normalized), outputs(1)
    pseudo, weak, cosine = stage.pseudo_labels(found, batch()), batch().weak, cosines(stage, found.features)
    expected = torch.zeros(VIDEOS, SEGMENTS, 2, CLASSES)
    for v in range(VIDEOS):
        for t in range(SEGMENTS):
            for m in range(2):
                power = [0.0 if s is None else math.exp(2 * s / tau) for s in cosine[v][t][m]]
                for c in range(CLASSES):
                    if weak[v, c] and power[c]:
                        against = [d for d in range(CLASSES) if d == c or normalized != "absent" or not weak[v, d]]
                        expected[v, t, m, c] = power[c] / sum(power[d] for d in against)
    if normalized == "video":
        expected /= expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
        assert (pseudo.amax(dim=(1, 2))[:, :2] == weak[:, :2]).all()  # a segment of the video keeps each label
    torch.testing.assert_close(pseudo, expected, rtol=1e-4, atol=1e-5)


def test_hard_pseudo_labels_by_loops():
    stage, found = fitted(hard=True), outputs(1)
    pseudo, weak, cosine = stage.pseudo_labels(found, batch()), batch().weak, cosines(stage, found.features)
    for v in range(VIDEOS):
        for t in range(SEGMENTS):
            for m in range(2):
                best = max(range(CLASSES), key=lambda c: -math.inf if cosine[v][t][m][c] is None else cosine[v][t][m][c])
                assert pseudo[v, t, m].tolist() == [float(c == best and weak[v, c] > 0) for c in range(CLASSES)]


def test_pseudo_labels_stay_within_refined_labels():
    generator = torch.Generator().manual_seed(3)
    audio = (torch.rand(VIDEOS, SEGMENTS, CLASSES, generator=generator) < 0.5).float()
    visual = (torch.rand(VIDEOS, CLASSES, generator=generator) < 0.5).float()
    for tracks in ({"audio": audio, "visual": audio.flip(0)}, {"audio": visual.flip(0), "visual": visual}):
        given = batch(Refined(None, tracks))
        allowed = weak_by_segment(given).expand(-1, SEGMENTS, -1, -1)
        pseudo = fitted().pseudo_labels(outputs(1), given)
        assert (pseudo[allowed == 0] == 0).all()
        assert (pseudo > 0).any()


def test_losses_by_loops():
    config = {"segment_weight": 0.7, "contrast_weight": 0.3, "contrast_temperature": 0.2}
    stage, found, given = fitted(**config), outputs(1), batch()
    targets = stage.targets(found, given, POSITION, LocalCollective())
    losses = stage.losses(found, targets, given)
    pseudo, hard = targets.pseudo, hard_labels(targets.pseudo)
    state = stage.state_dict()
    centers, known = (state[name].unflatten(0, (2, CLASSES)) for name in ("centers", "known"))
    unit = compared(stage, found.features)
    for v in range(VIDEOS):
        elements, anchors = [], []
        for t in range(SEGMENTS):
            for m in range(2):
                for c in range(CLASSES):
                    undecided = given.weak[v, c] > 0 and not known[m, c].any()
                    loss = F.binary_cross_entropy(found.segments[v, t, m, c], pseudo[v, t, m, c])
                    elements.append(0.0 if undecided else float(loss))
                if hard[v, t, m] < 0:
                    continue
                others = [
                    (unit[m, w, s], hard[w, s, m]) for w in range(VIDEOS) for s in range(SEGMENTS) if hard[w, s, m] >= 0
                ]
                others += [(centers[m, c, k], c) for c in range(CLASSES) for k in range(2) if known[m, c, k]]
                scores = [(float(unit[m, v, t] @ key) / 0.2, int(label)) for key, label in others]
                total = math.log(sum(math.exp(score) for score, _ in scores))
                positive = [score for score, label in scores if label == hard[v, t, m]]
                anchors.append(total - sum(positive) / len(positive))
        segments = sum(elements) / len(elements)
        contrast = sum(anchors) / len(anchors) if anchors else 0.0
        video = float(F.binary_cross_entropy(found.video[v], given.weak[v]))
        assert losses["segments"][v] == pytest.approx(segments, rel=1e-4)
        assert losses["contrast"][v] == pytest.approx(contrast, rel=1e-4, abs=1e-5)
        assert losses["total"][v] == pytest.approx(video + 0.7 * segments + 0.3 * contrast, rel=1e-4)


def test_warm_up_trains_on_weak_labels_only():
    stage = PplMethodConfig(warmup_epochs=5).build(NAMES, SEGMENTS).stages[0]
    assert [stage.scans(epoch, 30) for epoch in (0, 4, 5)] == [False, False, True]
    assert [stage.scans(epoch, 3) for epoch in range(3)] == [False, True, True]  # at most half of the epochs
    assert stage.scans(0, 1)
    targets = stage.targets(outputs(0), batch(), POSITION, LocalCollective())
    losses = stage.losses(outputs(0), targets, batch())
    assert targets.pseudo is None
    assert torch.equal(losses["total"], losses["video"])


def test_features_of_the_teacher_decide():
    stage, found, teacher = fitted(), outputs(1), outputs(2)
    with_teacher = modality_outputs(found.video, found.audio, found.visual, found.segments, found.features, teacher=teacher)
    targets = stage.targets(with_teacher, batch(), POSITION, LocalCollective())
    assert torch.equal(targets.pseudo, stage.pseudo_labels(teacher, batch()))
    torch.testing.assert_close(targets.auxiliary["keys"], compared(stage, teacher.features))


def test_the_teacher_is_a_moving_average_whose_momentum_grows():
    network = nn.Linear(3, 2)
    teacher = Teacher(network, momentum=0.5)
    expected = network.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)))
        teacher.update(network, step)
        momentum = min(0.5, (1 + step) / (10 + step))
        expected = network.weight.detach().clone() if step == 0 else momentum * expected + (1 - momentum) * network.weight
        torch.testing.assert_close(teacher.network.weight, expected)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    again = Teacher(nn.Linear(3, 2), momentum=0.5)
    again.load_state_dict(teacher.state_dict())
    again.update(network, 20)
    teacher.update(network, 20)
    assert torch.equal(again.network.weight, teacher.network.weight)


def test_written_labels_are_the_pseudo_labels_and_keep_what_has_no_prototype():
    train, label = PplMethodConfig(key_probability=0.0, prototypes=2).build(NAMES, SEGMENTS).stages
    without = batch()
    without.weak[0, 2] = 0
    train.scan(outputs(0), without)
    train.finish_scan(LocalCollective())
    label.start(train.state_dict(), torch.device("cpu"))
    label.collect([outputs(1)], batch())
    written = label.finish(LocalCollective(), [f"v{number}" for number in range(VIDEOS)])
    pseudo = train.pseudo_labels(outputs(1), batch())
    for number, track in enumerate(("audio", "visual")):
        torch.testing.assert_close(torch.from_numpy(written.tracks[track])[..., :2], pseudo[:, :, number, :2])
        assert (written.tracks[track][0, :, 2] == 1).all()  # a label of the video, without prototypes


def test_epochs_of_the_warm_up_are_not_selected(packed, tmp_path):
    """Without learning all epochs are equally good, and the first of them would be selected."""
    settings = ["train.epochs=4", "train.batch_size=16", "train.device=cpu", "model.width=16", "tracking=none"]
    settings += ["optim.lr=1e-12", "evaluate.ties=first", "method.warmup_epochs=2"]
    assert train_here("han", packed, tmp_path / "han", *settings[:-1])["best"]["epoch"] == 1
    assert train_here("ppl", packed, tmp_path / "ppl", *settings)["best"]["epoch"] == 3


def test_a_run_without_key_segments_says_so(caplog):
    stage = PplMethodConfig(key_probability=1.0).build(NAMES, SEGMENTS).stages[0]
    stage.scan(outputs(0), batch())
    stage.finish_scan(LocalCollective())
    assert "no class of any video reaches method.key_probability=1" in caplog.text
