"""Intervals and p-values against enumeration, published tables, scipy, and simulations of their coverage."""

import itertools

import numpy as np
import pytest
from scipy import stats

from avvp_dist.metrics.significance import (
    bootstrap,
    compare,
    explained,
    holm,
    mean_of_videos,
    permutation_p,
    t_interval,
    t_quantile,
)


def sign_flip(differences, **options):
    """P-values of columns of differences [N,M] between two settings of one seed each."""
    zeros = np.zeros((1, len(differences), 1))
    return [permutation_p(zeros, column[None, :, None], mean_of_videos, **options) for column in differences.T]


def enumerated(differences):
    """The permutation test by its definition: every choice of signs."""
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    return float(np.mean([value >= abs(sum(differences)) - 1e-12 for value in sums]))


def test_permutation_test_of_few_videos_equals_enumeration():
    differences = np.random.default_rng(0).normal(0.4, 1, size=(9, 4))
    differences[:, 3] = np.arange(9) % 3 - 1  # many ties, and a sum of zero
    expected = [enumerated(column) for column in differences.T]
    assert sign_flip(differences) == pytest.approx(expected)
    assert expected[3] == 1


def test_permutation_test_of_more_videos_is_close_to_enumeration():
    differences = np.random.default_rng(1).normal(0.5, 1, size=(15, 3))
    assert sign_flip(differences) == pytest.approx([enumerated(column) for column in differences.T], abs=0.012)


def test_a_drawn_p_value_is_never_zero():
    assert sign_flip(np.ones((100, 1)), resamples=99) == pytest.approx([0.01])


def test_permutation_test_agrees_with_scipy():
    differences = np.random.default_rng(2).normal(0.3, 1, size=11)
    reference = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(differences[:, None])[0] == pytest.approx(reference.pvalue)


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(3).exponential(size=80)
    reference = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0))
    interval = np.quantile(bootstrap(values[None, :, None], mean_of_videos), [0.025, 0.975])
    assert interval == pytest.approx([*reference.confidence_interval], abs=0.02)


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_t_quantile_equals_published_tables(freedom, t):
    assert t_quantile(0.95, freedom) == pytest.approx(t, abs=5e-4)


def test_t_interval_agrees_with_scipy():
    values = [61.0, 63.5, 60.2, 64.1]
    assert t_interval(values) == pytest.approx([*stats.ttest_1samp(values, 0).confidence_interval(0.95)])


def test_one_seed_has_no_interval():
    assert t_interval([60.0]) is None
    scores = np.random.default_rng(0).random((3, 20, 1))
    (found,) = compare(scores, [scores[:1]], mean_of_videos)
    assert found.seeds is None
    assert found.seeds_p is None


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def simulated(rng, seeds, videos=40, of_seeds=0.5):
    """Scores [K,N,1] of two equally good settings, and the difference that their seeds cause."""
    seed_effects = [rng.normal(0, of_seeds, (k, 1)) for k in seeds]
    one, other = (effect + rng.normal(0, 1, (k, videos)) for effect, k in zip(seed_effects, seeds, strict=True))
    return one[..., None], (other + rng.normal(0, 1, videos))[..., None], seed_effects[1].mean() - seed_effects[0].mean()


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (3, 5)])
def test_coverage_of_intervals_for_settings_trained_again(seeds):
    rng, covered = np.random.default_rng(5), []
    for _ in range(300):
        one, other, _ = simulated(rng, seeds)
        (found,) = compare(one, [other], mean_of_videos, resamples=500)
        covered.append(found.seeds[0] <= 0 <= found.seeds[1])
        assert (found.seeds_p < 0.05) == (not covered[-1]) or abs(found.seeds_p - 0.05) < 0.01  # interval and p-value agree
    assert np.mean(covered) >= 0.92


def test_intervals_for_these_networks_do_not_include_seed_effects():
    rng, of_networks, of_settings = np.random.default_rng(6), [], []
    for _ in range(300):
        one, other, seed_effect = simulated(rng, (3, 3))
        (found,) = compare(one, [other], mean_of_videos, resamples=500)
        of_networks.append(found.videos[0] <= seed_effect <= found.videos[1])
        of_settings.append(found.videos[0] <= 0 <= found.videos[1])
    assert 0.91 <= np.mean(of_networks) <= 0.99
    assert np.mean(of_settings) < 0.8


def test_rate_of_false_positives_of_the_permutation_test():
    differences = np.random.default_rng(7).normal(size=(40, 1000))
    assert 0.03 <= np.mean(np.array(sign_flip(differences, resamples=500)) < 0.05) <= 0.07


def test_a_comparison_does_not_depend_on_the_others():
    rng = np.random.default_rng(8)
    baseline, *others = (rng.random((3, 50, 1)) for _ in range(4))
    together = compare(baseline, others, mean_of_videos)
    for other, among in zip(others, together, strict=True):
        (single,) = compare(baseline, [other], mean_of_videos)
        assert single.videos == pytest.approx(among.videos)
        assert single.seeds == pytest.approx(among.seeds)
        assert (single.videos_p, single.seeds_p) == pytest.approx((among.videos_p, among.seeds_p))


def test_a_ratio_of_sums_is_recomputed_for_every_draw():
    """The accuracy of videos of very different lengths is not the mean of their accuracies."""

    def accuracy(statistics, weights):
        right, total = (weights @ statistics).T
        return right / total

    rng = np.random.default_rng(10)
    length = rng.integers(1, 100, 30)
    one, other = (np.stack([rng.binomial(length, p), length], axis=1).astype(float)[None] for p in (0.5, 0.6))
    (found,) = compare(one, [other], accuracy)
    assert found.mean == pytest.approx((other[0, :, 0].sum() - one[0, :, 0].sum()) / length.sum())
    draws = rng.integers(30, size=(4000, 30))
    resampled = [(other[0, rows, 0] - one[0, rows, 0]).sum() / length[rows].sum() for rows in draws]
    assert found.videos == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.01)
    # swapping the videos of two settings negates the difference of right seconds; the total stays
    assert found.videos_p == pytest.approx(sign_flip((other - one)[0, :, :1], seed=0)[0], abs=1e-9)


def test_scores_of_other_videos_are_refused():
    with pytest.raises(ValueError, match="videos"):
        compare(np.zeros((3, 50, 1)), [np.zeros((3, 49, 1))], mean_of_videos)


def test_explained_variance():
    rng = np.random.default_rng(9)
    scores = [*rng.normal(0, 1, 50), *rng.normal(3, 1, 50)]
    assert explained(scores, ["a"] * 50 + ["b"] * 50) == pytest.approx(9 / 13, abs=0.1)
    assert explained(scores, rng.permutation(np.arange(100) % 20).tolist()) < 0.2  # eta squared would be 0.19
    assert explained([1.0, 1.0, 2.0, 2.0], [1, 1, 2, 2]) == 1
    assert explained(scores, ["a"] * 100) is None
    assert explained([1.0, 2.0, 3.0], [1, 2, 3]) is None
