"""The distribution of counts against enumeration, closed forms and finite differences, and at the ends of probability."""

import itertools

import pytest
import torch
from scipy.stats import binom

from avvp_dist.methods.poisson_binomial import log_count_probability


def random_probabilities(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def of_all_counts(p, largest=None):
    """Log-probabilities of the counts 0, ..., T (or the largest), as a new first dimension."""
    last = p.shape[-1] if largest is None else largest
    return torch.stack([log_count_probability(p, torch.full(p.shape[:-1], n), largest) for n in range(last + 1)])


@pytest.mark.parametrize("segments", range(1, 11))
def test_it_is_the_sum_over_all_outcomes(segments):
    p = random_probabilities(2, 3, segments)
    expected = torch.zeros(segments + 1, 2, 3, dtype=torch.float64)
    for outcome in itertools.product([False, True], repeat=segments):
        positive = torch.tensor(outcome)
        expected[sum(outcome)] += torch.where(positive, p, 1 - p).prod(dim=-1)
    torch.testing.assert_close(of_all_counts(p).exp(), expected, rtol=1e-12, atol=0)


def test_each_element_has_its_own_count():
    p = random_probabilities(2, 3, 6)
    counts = torch.tensor([[0, 3, 6], [1, 2, 5]])
    found = log_count_probability(p, counts)
    for place in itertools.product(range(2), range(3)):
        torch.testing.assert_close(found[place], log_count_probability(p[place], counts[place]))


def test_gradient_equals_finite_differences():
    p = random_probabilities(3, 7).requires_grad_()
    for counts in torch.tensor([[0, 1, 7], [2, 4, 6]]):
        assert torch.autograd.gradcheck(log_count_probability, (p, counts))


def test_at_least_one_is_noisy_or():
    p = random_probabilities(4, 10)
    found = of_all_counts(p)
    torch.testing.assert_close(found[0], torch.log1p(-p).sum(dim=-1))  # the loss of an absent label: all are negative
    torch.testing.assert_close(found[1:].logsumexp(dim=0).exp(), 1 - (1 - p).prod(dim=-1))
    one = torch.stack([p[:, t] * torch.cat([1 - p[:, :t], 1 - p[:, t + 1 :]], dim=1).prod(dim=1) for t in range(10)])
    torch.testing.assert_close(found[1].exp(), one.sum(dim=0))
    torch.testing.assert_close(found[10], p.log().sum(dim=-1))


def test_counts_up_to_the_largest_are_the_same_without_those_above():
    p = random_probabilities(4, 10)
    torch.testing.assert_close(of_all_counts(p, largest=3), of_all_counts(p)[:4])


@pytest.mark.parametrize("p", [1e-12, 0.01, 0.5, 0.999])
def test_equal_probabilities_are_the_binomial_distribution_in_long_videos(p):
    counts = torch.tensor([0, 1, 30, 1000, 1999, 2000])
    expected = torch.from_numpy(binom.logpmf(counts.numpy(), 2000, p))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        probability = torch.full((6, 2000), p, dtype=dtype)
        found = log_count_probability(probability, counts)
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("segments", [1, 10, 2000])
def test_values_and_gradients_are_finite_at_the_ends(segments, dtype):
    ends = torch.tensor([0.0, 1e-12, 1 - 1e-12, 1.0], dtype=dtype)
    mixed = ends[torch.randint(4, (segments,), generator=torch.Generator().manual_seed(0))]
    counts = torch.tensor(sorted({0, 1, min(3, segments), segments // 2, segments}))
    p = torch.cat([ends[:, None].expand(4, segments), mixed[None]]).repeat(len(counts), 1, 1).requires_grad_()
    value = log_count_probability(p, counts[:, None].expand(-1, 5))
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert value.isfinite().all()
    assert (value < 1e-3).all()
    assert gradient.isfinite().all()
    assert (gradient[0, 1] < 0).all()  # p = 1e-12
    assert (gradient[1:, 1] > 0).all()  # any count above 0 raises every segment


def test_saturated_logits_still_learn():
    logits = torch.full((2, 10), 15.0) * torch.tensor([[1.0], [-1.0]])
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(log_count_probability(logits.sigmoid(), torch.tensor([2, 2])).sum(), logits)
    assert (gradient[0] < -0.5).all()  # eight of ten too many
    assert (gradient[1] > 0.1).all()  # two of ten too few


def test_counts_out_of_range_are_refused():
    for counts, options in ((4, {}), (-1, {}), (2, {"largest": 1})):
        with pytest.raises(ValueError, match="expected 0 to"):
            log_count_probability(torch.full((3,), 0.5), torch.tensor(counts), **options)
