"""Significance of scores and their differences: confidence intervals, a permutation test, correction for multiple tests.

A score is a mean over videos, obtained with several seeds. A difference between two settings therefore has two sources of
randomness: the videos in the split, and the seeds. All settings are scored on the same videos, so that videos are paired;
seeds are not. `compare` reports both separately:

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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK = 1000  # resamples drawn at a time: 10 MB for LLP's 1,200 test videos


@dataclass(frozen=True)
class Difference:
    """Difference between a setting and a baseline, with its significance.

    Attributes:
        mean: mean score of the setting minus that of the baseline, in the unit of the scores.
        videos: interval for *these networks*: paired bootstrap over videos.
        videos_p: the same question's two-sided p-value: sign-flip permutation test over videos.
        seeds: interval for the settings *trained again*: videos and seeds; None if either has only one seed.
        seeds_p: two-sided p-value that corresponds to ``seeds``.
    """

    mean: float
    videos: Interval
    videos_p: float
    seeds: Interval | None
    seeds_p: float | None


def compare(
    baseline: Floats, others: Sequence[Floats], *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> list[Difference]:
    """Compare each of several settings with one baseline, on the same videos.

    Seeds of two settings are treated as independent. If runs with the same seed share a stage or initial weights, they are
    positively correlated, and the intervals are wider than necessary.

    Args:
        baseline: scores of each video from each of the baseline's seeds, [K,N].
        others: the same of each other setting, [K,N] with its own K, on the same videos in the same order.
        resamples: R, number of draws of each bootstrap and of the permutation test.
        confidence: nominal coverage of the intervals.
        seed: of the draws; the same for every comparison, so that a comparison does not depend on the others.

    Returns:
        a Difference for each of ``others``.

    Raises:
        ValueError: the shapes do not fit, or there are fewer than two videos.
    """
    for scores in (baseline, *others):
        if scores.ndim != 2 or scores.shape[1] != baseline.shape[1] or scores.shape[0] < 1 or scores.shape[1] < 2:
            raise ValueError(f"scores: expected [K,N] with the baseline's N >= 2 videos, got {list(scores.shape)}")
    if not others:
        return []
    differences = np.stack([scores.mean(axis=0) - baseline.mean(axis=0) for scores in others], axis=1)  # [N,M]
    means = bootstrap_means(differences, resamples, seed)
    flipped = sign_flip(differences, resamples, seed)
    found = []
    for number, scores in enumerate(others):
        again = _with_seeds(means[:, number], baseline.mean(axis=1), scores.mean(axis=1), np.random.default_rng([seed, 1]))
        found.append(
            Difference(
                mean=float(differences[:, number].mean()),
                videos=_percentiles(means[:, number], confidence),
                videos_p=float(flipped[number]),
                seeds=None if again is None else _percentiles(again, confidence),
                seeds_p=None if again is None else _two_sided(again),
            )
        )
    return found


def bootstrap_means(values: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return means over N videos drawn with replacement, [R,M]; all M columns of ``values`` [N,M] use the same draws."""
    rng = np.random.default_rng([seed, 0])
    videos = len(values)
    rows = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = rng.integers(videos, size=(size, videos)) + videos * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * videos).reshape(size, videos)
        rows.append(counts @ values / videos)
    return np.concatenate(rows)


def sign_flip(differences: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return two-sided p-values [M] of the paired permutation test, for M columns of differences [N,M].

    Under the null hypothesis, the sign of each video's difference is arbitrary. All 2^N choices of signs are enumerated if
    there are at most ``resamples``; otherwise that many are drawn, and the observed signs are added to them.
    """
    videos = len(differences)
    exact = 2**videos <= resamples
    observed = np.abs(differences.sum(axis=0))
    reached = observed * (1 - 1e-9) - 1e-12  # tolerance for sums in another order
    rng = np.random.default_rng([seed, 2])
    total = 2**videos if exact else resamples
    count = np.zeros(differences.shape[1])
    for start in range(0, total, _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, total))
        if exact:
            positive = (numbers[:, None] >> np.arange(videos)) & 1
        else:
            positive = rng.integers(2, size=(len(numbers), videos), dtype=np.int8)
        count += (np.abs((2.0 * positive - 1) @ differences) >= reached).sum(axis=0)
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
