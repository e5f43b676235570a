"""The command `avvp` in forks of one process that has torch imported: each starts in a moment instead of five seconds.

Real processes, real gloo, real sockets. A user's process imports everything itself, and so does each rank of torchrun: some
tests start processes that way.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from pathlib import Path

import torch
from torch.distributed import TCPStore

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(  # what a tracked training imports; not Ray, which reads its environment when it is imported
    ["avvp_dist.cli.main", "avvp_dist.launch.local", "torch._dynamo", "pandas", "mlflow"]
)


def avvp(
    *arguments: object, cwd: Path | None = None, without: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with this environment but for the variables of ``without``."""
    with tempfile.TemporaryDirectory() as folder:
        words = [str(argument) for argument in arguments]
        kept = {name: value for name, value in os.environ.items() if name not in without}
        process = start(words, kept | environment, Path(folder), cwd)
        process.join()
        out, err = ((Path(folder) / name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def ranks(world: int, arguments: list[str], timeout: float = 300, program: str = "avvp_dist") -> None:
    """Run a program, a module or a file, on every rank of ``world``; when one fails, end the others and show its output."""
    # what torchrun's agent does: a store of its own, where all ranks are guests
    store = TCPStore("127.0.0.1", 0, world, is_master=True, wait_for_workers=False)
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for rank in range(world):
            identity = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), **rendezvous}
            output = Path(folder) / str(rank)
            output.mkdir()
            running[start(arguments, os.environ | identity, output, program=program)] = output / "err"
        try:
            while running:
                ended = connection.wait([process.sentinel for process in running], timeout)
                assert ended, f"still running after {timeout} s"
                for process in [process for process in running if process.sentinel in ended]:
                    process.join()
                    assert process.exitcode == 0, running[process].read_text()
                    del running[process]
        finally:
            for process in running:
                process.kill()
                process.join()


def start(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    cwd: Path | None = None,
    program: str = "avvp_dist",
) -> multiprocessing.process.BaseProcess:
    """Start a program, whose output goes into the files ``out`` and ``err`` of a folder."""
    given = (list(arguments), dict(environment), str(folder), cwd and str(cwd), program)
    process = _server.Process(target=_command, args=given)
    process.start()
    return process


def _command(arguments: list[str], environment: dict[str, str], folder: str, cwd: str | None, program: str) -> None:
    for name, stream in (("out", 1), ("err", 2)):
        with open(Path(folder) / name, "w") as file:
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    if cwd:
        os.chdir(cwd)
    torch.set_num_threads(1)
    sys.argv = ["avvp", *arguments]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__")
