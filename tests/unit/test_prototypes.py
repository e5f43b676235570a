"""Spherical k-means over key segments: against a plain implementation, for any number of ranks, with bounded memory."""

import pytest
import torch
import torch.nn.functional as F
from collectives import FakeCollective

from avvp_dist.dist.collective import LocalCollective
from avvp_dist.dist.partition import split_sizes
from avvp_dist.methods.prototypes import KeySegments, Prototypes, priorities

GROUPS, COUNT, WIDTH = 4, 3, 8
CPU = torch.device("cpu")


@pytest.fixture
def segments():
    """200 segments around three directions of each of three groups; group 3 has two segments only."""
    generator = torch.Generator().manual_seed(0)
    group = torch.cat([torch.randint(0, 3, (198,), generator=generator), torch.tensor([3, 3])])
    centers = F.normalize(torch.randn(GROUPS, COUNT, WIDTH, generator=generator), dim=-1)
    which = torch.randint(0, COUNT, (200,), generator=generator)
    features = F.normalize(centers[group, which] + 0.2 * torch.randn(200, WIDTH, generator=generator), dim=-1)
    return features, group, priorities(torch.arange(200))


def fitted(segments, collective, capacity=1000, iterations=5, prototypes=None, batch=7):
    features, group, priority = segments
    sizes = split_sizes(len(group), collective.world_size)
    start = sum(sizes[: collective.rank])
    keys = KeySegments(GROUPS, capacity, CPU)
    for first in range(start, start + sizes[collective.rank], batch):
        rows = slice(first, min(first + batch, start + sizes[collective.rank]))
        keys.add(features[rows], group[rows], priority[rows])
    found = prototypes or Prototypes(2, 2, COUNT)
    found.fit(keys, iterations, collective)
    return found


def plain_k_means(segments, iterations):
    """The same by loops over groups and segments."""
    features, group, priority = segments
    centers = torch.zeros(GROUPS, COUNT, WIDTH)
    for number in range(GROUPS):
        members = sorted((int(priority[row]), row) for row in range(len(group)) if group[row] == number)
        count = min(COUNT, len(members))
        centers[number, :count] = features[[row for _, row in members[:count]]]
        for _ in range(iterations):
            assigned = [[] for _ in range(count)]
            for _, row in members:
                assigned[int((centers[number, :count] @ features[row]).argmax())].append(row)
            for place, rows in enumerate(assigned):
                if rows:
                    centers[number, place] = F.normalize(features[rows].double().sum(dim=0), dim=0).float()
    return centers


def test_equals_k_means_by_loops(segments):
    found = fitted(segments, LocalCollective())
    torch.testing.assert_close(found.centers, plain_k_means(segments, 5), rtol=0, atol=1e-6)
    assert found.known.tolist() == [[True] * 3] * 3 + [[True, True, False]]


@pytest.mark.parametrize("world", [2, 3, 250])  # 250: some ranks have no segment
@pytest.mark.parametrize("capacity", [1000, 20])
def test_ranks_together_equal_one_rank(segments, world, capacity):
    one = fitted(segments, LocalCollective(), capacity)
    for found in FakeCollective.run(world, lambda collective: fitted(segments, collective, capacity)):
        assert torch.equal(found.known, one.known)
        torch.testing.assert_close(found.centers, one.centers, rtol=0, atol=1e-6)


def test_memory_is_bounded_and_the_sample_depends_on_no_order(segments):
    features, group, priority = segments
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    samples = []
    for rows in (torch.arange(200), order):
        keys = KeySegments(GROUPS, 10, CPU)
        for part in rows.split(3):
            keys.add(features[part], group[part], priority[part])
            assert sum(len(column) for _, column, _ in keys._parts) <= 2 * GROUPS * 10 + 3
        keys.prepare(LocalCollective())
        samples.append(keys.gathered(LocalCollective()))
    assert torch.bincount(samples[0][1]).tolist() == [10, 10, 10, 2]
    for one, other in zip(*samples, strict=True):
        assert torch.equal(one, other)


def test_fits_start_from_the_previous_prototypes(segments):
    first = fitted(segments, LocalCollective(), iterations=1)
    twice = fitted(segments, LocalCollective(), iterations=1, prototypes=first)
    torch.testing.assert_close(twice.centers, fitted(segments, LocalCollective(), iterations=2).centers)
    kept = twice.centers.clone()
    keys = KeySegments(GROUPS, 10, CPU)
    twice.fit(keys, 3, LocalCollective())  # without a segment nothing changes
    assert torch.equal(twice.centers, kept)


def test_similarity_to_the_nearest_prototype_of_each_class(segments):
    found = fitted(segments, LocalCollective())
    features = F.normalize(torch.randn(2, 5, 4, WIDTH), dim=-1)  # two modalities with two classes each
    similarity = found.similarity(features)
    assert similarity.shape == (5, 4, 2, 2)
    expected = [float(features[1, 3, 2] @ center) for center in found.centers[3][:2]]
    assert similarity[3, 2, 1, 1] == pytest.approx(max(expected), abs=1e-6)
    found.known[3] = False
    assert (found.similarity(features)[:, :, 1, 1] == -torch.inf).all()


def test_priorities_are_spread_and_depend_on_every_number():
    number = torch.arange(10_000)
    drawn = priorities(number, torch.zeros_like(number))
    assert (drawn >= 0).all()
    assert len(drawn.unique()) == 10_000
    assert abs(drawn.double().mean() / 2**63 - 0.5) < 0.01
    assert (drawn != priorities(number, torch.ones_like(number))).all()
    assert (drawn != priorities(torch.zeros_like(number), number)).float().mean() > 0.99


def test_features_are_centered_by_modality(segments):
    features, group, priority = segments
    shift = F.normalize(torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(5)), dim=-1)
    shifted = F.normalize(features + 2 * shift[group // 2], dim=-1)
    found = fitted((shifted, group, priority), LocalCollective(), prototypes=Prototypes(2, 2, COUNT, centered=True))
    for modality in range(2):
        mean = shifted[group // 2 == modality].double().mean(dim=0).float()
        torch.testing.assert_close(found.mean[modality], mean)
    centered = F.normalize(shifted - found.mean[group // 2], dim=-1)
    again = fitted((centered, group, priority), LocalCollective())
    torch.testing.assert_close(found.centers, again.centers, rtol=0, atol=1e-5)
    compared = found.centered_features(shifted[:6].view(2, 1, 3, WIDTH))
    torch.testing.assert_close(compared[1, 0, 2], F.normalize(shifted[5] - found.mean[1], dim=-1))
    one = fitted((shifted, group, priority), LocalCollective(), prototypes=Prototypes(2, 2, COUNT, centered=True))
    for other in FakeCollective.run(
        3, lambda each: fitted((shifted, group, priority), each, prototypes=Prototypes(2, 2, COUNT, centered=True))
    ):
        torch.testing.assert_close(other.centers, one.centers, rtol=0, atol=1e-6)
