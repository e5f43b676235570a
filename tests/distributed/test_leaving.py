"""A rank exits with its own exit code, even if threads of its process group end late."""

import os
import subprocess
import sys
from pathlib import Path

from ports import free_port

CODES = (0, 75)  # of each rank


def test_threads_of_the_process_group_end_before_the_interpreter():
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(len(CODES)),
    }
    script = str(Path(__file__).with_name("leaving.py"))
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(code)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, code in enumerate(CODES)
    ]
    errors = [rank.communicate()[1] for rank in ranks]
    assert tuple(rank.returncode for rank in ranks) == CODES, errors
