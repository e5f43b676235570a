"""The local collective and the fake one of the tests; `TorchCollective` is tested in tests/distributed."""

import pytest
import torch
from collectives import FakeCollective

from avvp_dist.dist.collective import LocalCollective


def test_all_gather_keeps_rank_order_and_uneven_rows():
    rows = FakeCollective.run(3, lambda c: c.all_gather(torch.full((c.rank, 2), float(c.rank))))
    expected = torch.tensor([[1.0, 1], [2, 2], [2, 2]])
    assert all(torch.equal(of_rank, expected) for of_rank in rows)


def test_all_reduce_sums_over_ranks():
    sums = FakeCollective.run(4, lambda c: c.all_reduce_sum(torch.tensor([c.rank, 1])))
    assert [of_rank.tolist() for of_rank in sums] == [[6, 4]] * 4


def test_a_failing_rank_ends_the_others():
    def work(collective):
        if collective.rank == 1:
            raise ValueError("rank 1 failed")
        return collective.all_gather(torch.zeros(1))

    with pytest.raises(ValueError, match="rank 1 failed"):
        FakeCollective.run(2, work)


def test_one_process_exchanges_nothing():
    rows = torch.arange(6).reshape(3, 2)
    assert torch.equal(LocalCollective().all_gather(rows, total=3), rows)
    assert torch.equal(LocalCollective().all_reduce_sum(rows), rows)
