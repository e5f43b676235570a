"""JoMoLD's noise ranking against the published code's selections and against its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avvp_dist.methods.ranking import budgets, noisy_masks, resolve_overlap, select_noisy


@pytest.mark.parametrize("batch", ["b0", "b1", "b2"])
def test_published_selection(golden, batch):
    vectors = np.load(golden / "A_ranking.npz")
    names = ("loss_audio", "loss_visual", "weak", "ratio_audio", "ratio_visual")
    audio, visual = select_noisy(*(torch.from_numpy(vectors[f"{batch}_{name}"]) for name in names))
    np.testing.assert_array_equal(audio.numpy(), vectors[f"{batch}_removed_audio"])
    np.testing.assert_array_equal(visual.numpy(), vectors[f"{batch}_removed_visual"])


def reference(loss_audio, loss_visual, positives, ratio_audio, ratio_visual):
    """A literal implementation of the rule: one class at a time, with lists and sorting."""
    noisy_audio, noisy_visual = np.zeros_like(positives), np.zeros_like(positives)
    for c in range(positives.shape[1]):
        rows = np.flatnonzero(positives[:, c])
        k_audio, k_visual = int(np.floor(ratio_audio[c] * len(rows))), int(np.floor(ratio_visual[c] * len(rows)))
        by_audio = sorted(rows, key=lambda b: loss_audio[b, c])
        by_visual = sorted(rows, key=lambda b: loss_visual[b, c])
        from_largest_audio = sorted(rows, key=lambda b: -loss_audio[b, c])
        from_largest_visual = sorted(rows, key=lambda b: -loss_visual[b, c])
        for b in set(by_audio[:k_visual]) & set(from_largest_visual[:k_visual]):
            noisy_visual[b, c] = True
        for b in set(from_largest_audio[:k_audio]) & set(by_visual[:k_audio]):
            noisy_audio[b, c] = True
    return noisy_audio, noisy_visual


@given(st.integers(0, 10_000), st.integers(1, 40), st.booleans())
def test_equals_the_literal_implementation(seed, videos, ties):
    rng = np.random.default_rng(seed)
    losses = rng.random((2, videos, 6)).round(1 if ties else 12).astype(np.float32)
    positives = rng.random((videos, 6)) < 0.5
    ratios = rng.random((2, 6))
    expected = reference(*losses, positives, *ratios)
    noisy = select_noisy(*map(torch.from_numpy, (*losses, positives, *ratios)))
    np.testing.assert_array_equal(noisy[0].numpy(), expected[0])
    np.testing.assert_array_equal(noisy[1].numpy(), expected[1])


def test_small_batches_remove_nothing_without_carry():
    positives = torch.ones(10, 1, dtype=torch.bool)
    ratio = torch.tensor([0.07], dtype=torch.float64)
    floored = sum(int(budgets(positives, ratio)[0]) for _ in range(100))
    carry, carried = torch.zeros(1, dtype=torch.float64), 0
    for _ in range(100):
        budget, carry = budgets(positives, ratio, carry)
        carried += int(budget)
        assert 0 <= float(carry) < 1
    assert floored == 0
    assert carried in (69, 70)  # 0.07 * 1000 videos


def test_keep_one_never_removes_a_label_from_both_modalities():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(2, 64, 25, generator=generator)
    positives = torch.rand(64, 25, generator=generator) < 0.6
    budget = torch.full((25,), 30)
    audio, visual = noisy_masks(*losses, positives, budget, budget)
    both = audio & visual
    assert both.any()
    kept_audio, kept_visual = resolve_overlap(audio, visual, *losses)
    assert not (kept_audio & kept_visual).any()
    assert torch.equal(kept_audio | kept_visual, audio | visual)  # each label is still removed from one modality
    assert torch.equal(kept_visual & both, both & (losses[0] < losses[1]))
