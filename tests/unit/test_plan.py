"""The order of videos depends only on (seed, epoch), not on the number of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avvp_dist.dist.partition import split_sizes
from avvp_dist.errors import ConfigError
from avvp_dist.loading.plan import EpochPlan, check

plans = st.builds(
    EpochPlan,
    videos=st.integers(1, 500),
    batch_size=st.integers(1, 64),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 99),
)


@given(plans, st.integers(1, 16))
def test_ranks_together_process_the_epoch_in_order(plan, world):
    processed = []
    for step in range(plan.steps):
        slices = [plan.rank_slice(step, rank, world) for rank in range(world)]
        sizes = [part.stop - part.start for part in slices]
        assert sizes == split_sizes(plan.total(step), world)
        assert max(sizes) - min(sizes) <= 1
        processed += [number for part in slices for number in plan.order()[part].tolist()]
    assert processed == plan.order().tolist()
    assert sorted(processed) == list(range(plan.videos))


@given(plans)
def test_all_batches_except_the_last_are_full(plan):
    totals = [plan.total(step) for step in range(plan.steps)]
    assert totals[:-1] == [plan.batch_size] * (plan.steps - 1)
    assert 1 <= totals[-1] <= plan.batch_size
    assert sum(totals) == plan.videos


@given(st.integers(100, 1000), st.integers(0, 2**31), st.integers(0, 99))
def test_seed_and_epoch_change_the_order(videos, seed, epoch):
    plan = EpochPlan(videos, 8, seed, epoch)
    assert (plan.order() == EpochPlan(videos, 32, seed, epoch).order()).all()
    assert (plan.order() != EpochPlan(videos, 8, seed, epoch + 1).order()).any()
    assert (plan.order() != EpochPlan(videos, 8, seed + 1, epoch).order()).any()


def test_order_is_shuffled_evenly():
    firsts = [EpochPlan(10, 5, 0, epoch).order()[0] for epoch in range(2000)]
    counts = np.bincount(firsts, minlength=10)
    assert counts.min() > 140  # 200 expected, standard deviation 13
    assert counts.max() < 260


def test_impossible_numbers_are_refused():
    with pytest.raises(ConfigError, match="batch_size 3 is the global batch: some of 4 workers .* use 4 or more"):
        check(100, 3, 4)
    with pytest.raises(ConfigError) as caught:
        check(0, 1, 2)
    assert len(caught.value.problems) == 2
    check(1, 8, 4)
    check(100, 10, 4)  # three, three, two and two
