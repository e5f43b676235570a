"""Time measurement does not change the weights, and shows where ranks wait for each other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from measured import LATE, STEPS

WORLD = 3  # not a power of two, so that dividing by it differs from multiplying by its reciprocal


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
    done = subprocess.run(
        [sys.executable, *command, str(Path(__file__).with_name("measured.py")), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_measured_gradients_are_bitwise_equal_to_those_of_ddp(ranks):
    assert [of_rank["same"] for of_rank in ranks] == [True] * WORLD


def test_waiting_for_a_late_rank_counts_as_exchange(ranks):
    for of_rank in ranks:
        assert 0 < of_rank["exchange"] <= of_rank["ranking"] <= of_rank["step"]
        assert 0 < of_rank["all_reduce"] <= of_rank["step"]
    late = ranks.pop(1)
    for of_rank in ranks:  # they first communicate when they rank labels
        assert of_rank["exchange"] > STEPS * LATE / 3  # its forward pass is faster while the others are idle
        assert late["exchange"] < of_rank["exchange"]
