"""Runs of `avvp` as forks of one process that has torch imported: each starts in a moment instead of five seconds.

Real processes, real gloo, real sockets. torchrun would start Python anew for every rank; one test runs it all the same.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing import connection
from pathlib import Path

import torch
from torch.distributed import TCPStore

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["avvp_dist.cli", "avvp_dist.launch.local", "torch._dynamo"])  # what a training imports


def run(arguments: list[str], world: int = 1, timeout: float = 300) -> None:
    """``avvp <arguments>`` on every rank of ``world``; when one fails, ends the others and tells what it said."""
    store = TCPStore("127.0.0.1", 0, world, is_master=True, wait_for_workers=False)
    met = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), **met} for rank in range(world)]
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"rank-{rank}.log" for rank in range(world)]
        processes = [
            _forks.Process(target=_rank, args=(arguments, os.environ | (environment if world > 1 else {}), str(log)))
            for environment, log in zip(ranks, logs, strict=True)
        ]
        for process in processes:
            process.start()
        try:
            running = dict(zip(processes, logs, strict=True))
            while running:
                ended = connection.wait([process.sentinel for process in running], timeout)
                assert ended, f"still running after {timeout} s"
                for process in [process for process in running if process.sentinel in ended]:
                    process.join()
                    assert process.exitcode == 0, running[process].read_text()
                    del running[process]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _rank(arguments: list[str], environment: dict[str, str], log: str) -> None:
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["avvp", *arguments]
    runpy.run_module("avvp_dist", run_name="__main__")
