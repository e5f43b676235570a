"""Significance of scores and their differences: confidence intervals, a permutation test, correction for multiple tests.

A score depends on the videos of the split, and is obtained with several seeds. A difference between two settings therefore
has two sources of randomness: the videos, and the seeds. All settings are scored on the same videos, so that videos are
paired; seeds are not. `compare` reports both separately:

- *these networks*: only videos vary. States whether the trained networks differ on videos like these.
- *trained again*: seeds vary too. States whether the settings differ. Needs more than one seed.

With few seeds, resampling seeds as well as videos (a hierarchical bootstrap) gives intervals that are too narrow: if seeds
have an effect, the coverage of 95 % intervals is 84 % for three seeds and 69 % for two, because a few resampled values vary
less than the distribution they come from. Here, only videos are resampled, and the seeds' contribution is drawn from
Student's t with Welch's degrees of freedom. The coverage is 94 to 99 % for equal numbers of seeds, and 91 % for two seeds
against five (simulated; tests/unit/test_significance.py repeats a part).

Shape letters: N videos, K seeds, M comparisons, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Recompute = Callable[[Floats, Floats], Floats]

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK = 1000  # resamples drawn at a time: 10 MB for LLP's 1,200 test videos


@dataclass(frozen=True)
class Difference:
    """Difference between a setting and a baseline, with its significance.

    Attributes:
        mean: mean score of the setting minus that of the baseline, in the unit of the scores.
        videos: interval for *these networks*: paired bootstrap over videos.
        videos_p: the same question's two-sided p-value: paired permutation test over videos.
        seeds: interval for the settings *trained again*: videos and seeds; None if either has only one seed.
        seeds_p: two-sided p-value that corresponds to ``seeds``.
    """

    mean: float
    videos: Interval
    videos_p: float
    seeds: Interval | None
    seeds_p: float | None


def mean_of_videos(statistics: Floats, weights: Floats) -> Floats:
    """Recompute a metric that is a mean over videos: its values [N,1] and weights [R,N] -> weighted means [R]."""
    return weights @ statistics[:, 0] / weights.sum(axis=1)


def compare(
    baseline: Floats,
    others: Sequence[Floats],
    recompute: Recompute,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[Difference]:
    """Compare each of several settings with one baseline, on the same videos.

    Seeds of two settings are treated as independent. If runs with the same seed share a stage or initial weights, they are
    positively correlated, and the intervals are wider than necessary.

    Args:
        baseline: statistics of each video from each of the baseline's seeds, [K,N,S].
        others: the same of each other setting, [K,N,S] with its own K, on the same videos in the same order.
        recompute: computes the metric from statistics [N,S] for R multisets of the videos, given by weights [R,N], as [R].
        resamples: R, number of draws of each bootstrap and of the permutation test.
        confidence: nominal coverage of the intervals.
        seed: of the draws; the same for every comparison, so that a comparison does not depend on the others.

    Returns:
        a Difference for each of ``others``.

    Raises:
        ValueError: the shapes do not fit, or there are fewer than two videos.
    """
    for found in (baseline, *others):
        if found.ndim != 3 or found.shape[1:] != baseline.shape[1:] or found.shape[0] < 1 or found.shape[1] < 2:
            raise ValueError(f"statistics: expected [K,N,S] with the baseline's N >= 2 videos, got {list(found.shape)}")
    if not others:
        return []
    once = np.ones((1, baseline.shape[1]))
    scores = [np.array([recompute(of_seed, once)[0] for of_seed in of]) for of in (baseline, *others)]
    draws = [bootstrap(of, recompute, resamples, seed) for of in (baseline, *others)]
    differences = []
    for other, of_other, drawn in zip(others, scores[1:], draws[1:], strict=True):
        by_video = drawn - draws[0]
        again = _with_seeds(by_video, scores[0], of_other, np.random.default_rng([seed, 1]))
        differences.append(
            Difference(
                mean=float(of_other.mean() - scores[0].mean()),
                videos=_percentiles(by_video, confidence),
                videos_p=permutation_p(baseline, other, recompute, resamples, seed),
                seeds=None if again is None else _percentiles(again, confidence),
                seeds_p=None if again is None else _two_sided(again),
            )
        )
    return differences


def bootstrap(statistics: Floats, recompute: Recompute, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the metric of N videos drawn with replacement, averaged over the K seeds, [R].

    Settings whose ``statistics`` [K,N,S] have the same N use the same draws.
    """
    rng = np.random.default_rng([seed, 0])
    videos = statistics.shape[1]
    rows = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = rng.integers(videos, size=(size, videos)) + videos * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * videos).reshape(size, videos).astype(float)
        rows.append(np.mean([recompute(of_seed, counts) for of_seed in statistics], axis=0))
    return np.concatenate(rows)


def permutation_p(baseline: Floats, other: Floats, recompute: Recompute, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired permutation test of two settings.

    Under the null hypothesis, it is arbitrary which of the two settings produced a video's statistics, so that they can be
    swapped. All 2^N choices are enumerated if there are at most ``resamples``; otherwise that many are drawn, and the
    observed one is added to them. The seeds of a setting are pooled, each with an equal share.

    Args:
        baseline: statistics of the videos from each seed, [K,N,S].
        other: the same of the other setting, with its own K.
        recompute: see `compare`.
        resamples: number of draws.
        seed: of the draws.
    """
    videos, counts = baseline.shape[1], (len(baseline), len(other))
    pooled = np.concatenate([*baseline, *other])  # [KN,S]

    def difference(swapped: Floats) -> Floats:
        def metric(of_other: Floats) -> Floats:
            shares = [(1 - of_other) / counts[0]] * counts[0] + [of_other / counts[1]] * counts[1]
            return recompute(pooled, np.concatenate(shares, axis=1))

        return metric(1 - swapped) - metric(swapped)

    reached = abs(float(difference(np.zeros((1, videos)))[0])) * (1 - 1e-9) - 1e-12  # tolerance for sums in another order
    exact = 2**videos <= resamples
    rng = np.random.default_rng([seed, 2])
    total = 2**videos if exact else resamples
    chunk = max(1, _CHUNK // sum(counts))
    count = 0
    for start in range(0, total, chunk):
        numbers = np.arange(start, min(start + chunk, total))
        if exact:
            swapped = (numbers[:, None] >> np.arange(videos)) & 1
        else:
            swapped = rng.integers(2, size=(len(numbers), videos), dtype=np.int8)
        count += int((np.abs(difference(swapped.astype(float))) >= reached).sum())
    return count / total if exact else (count + 1) / (total + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple tests after Holm (1979), which bounds the probability of any false positive."""
    order = np.argsort(p_values, kind="stable")
    ranked = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(ranked), 1.0)
    return corrected.tolist()


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Return the confidence interval of the mean of normal values (scores of K seeds); None for fewer than two."""
    if len(values) < 2:
        return None
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = t_quantile(confidence, len(values) - 1) * spread / math.sqrt(len(values))
    return mean - half, mean + half


def t_quantile(confidence: float, freedom: int) -> float:
    """Return the value that the absolute value of Student's t stays below with this probability."""
    from scipy import stats  # takes most of a second to import, and most commands do not need it

    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def explained(scores: Sequence[float], groups: Sequence[Hashable]) -> float | None:
    """Return the share of the scores' variance that their groups explain, from 0 to 1.

    This is epsilon squared, which unlike eta squared is corrected for the number of groups: about 0 for random groups.

    Returns:
        None if it is undefined: one group, no group with two members, or no variance.
    """
    values = np.asarray(scores, dtype=float)
    names = list(dict.fromkeys(groups))
    number = np.array([names.index(group) for group in groups], dtype=np.int64)
    within_freedom = len(values) - len(names)
    if len(names) < 2 or within_freedom < 1:
        return None
    means = np.bincount(number, weights=values) / np.bincount(number)
    within = float(((values - means[number]) ** 2).sum()) / within_freedom
    total = float(((values - values.mean()) ** 2).sum()) / (len(values) - 1)
    return None if total == 0 else max(0.0, 1 - within / total)


def _with_seeds(means: Floats, baseline: Floats, other: Floats, rng: np.random.Generator) -> Floats | None:
    """Add the variation of seeds to bootstrapped differences [R]; ``baseline`` and ``other`` are scores per seed, [K]."""
    if min(len(baseline), len(other)) < 2:
        return None
    variances = [float(np.var(scores, ddof=1)) / len(scores) for scores in (baseline, other)]
    variance = sum(variances)
    if variance == 0:
        return means
    freedom = variance**2 / sum(v**2 / (len(s) - 1) for v, s in zip(variances, (baseline, other), strict=True))
    return means + math.sqrt(variance) * rng.standard_t(freedom, size=len(means))


def _percentiles(draws: Floats, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _two_sided(draws: Floats) -> float:
    """Return the two-sided p-value of zero in the distribution of drawn differences."""
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    return min(1.0, 2 * float(tail + 1) / (len(draws) + 1))
