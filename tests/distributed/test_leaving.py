"""A rank exits with its own exit code, even if threads of its process group end late."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

WORLD = 2


@pytest.mark.parametrize("code", [0, 75])
def test_threads_of_the_process_group_end_before_the_interpreter(code):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(WORLD),
    }
    command = [sys.executable, str(Path(__file__).with_name("leaving.py")), str(code)]
    ranks = [
        subprocess.Popen(
            command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(WORLD)
    ]
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [code] * WORLD, errors
