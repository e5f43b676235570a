"""Measuring changes no weight, and shows where ranks wait for each other."""

import json
from pathlib import Path

import forks
import pytest
from measured import LATE, STEPS

WORLD = 3  # not a power of two, so that dividing by it differs from multiplying by its reciprocal


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    forks.ranks(WORLD, [str(folder)], program=str(Path(__file__).with_name("measured.py")))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_gradients_are_bit_for_bit_those_of_ddp_when_measured(ranks):
    assert [found["same"] for found in ranks] == [True] * WORLD


def test_waiting_for_a_late_rank_is_measured_where_it_happens(ranks):
    for found in ranks:
        assert 0 < found["exchange"] <= found["ranking"] <= found["step"]
        assert 0 < found["all_reduce"] <= found["step"]
    late = ranks.pop(1)
    for of_rank in ranks:  # they first communicate when they rank labels
        assert of_rank["exchange"] > STEPS * LATE / 3  # its forward pass is faster while the others are idle
        assert late["exchange"] < of_rank["exchange"]
