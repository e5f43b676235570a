"""Checks for `avvp doctor` that processes on this machine can communicate, by a real all_reduce.

Each process runs this module: ``python -m avvp_dist.dist.probe BACKEND RANK PROCESSES FILE SECONDS``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

FLOATS = 1 << 20
_ROUNDS = 5


def all_reduce_seconds(backend: str, processes: int, timeout: float) -> float:
    """Measure the median time of an all_reduce of 4 MB, over loopback for gloo; with nccl, process N uses GPU N.

    Raises:
        RuntimeError: a process failed (contains the last line of its output), or did not finish in ``timeout`` seconds.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    loopback = next((name for name in psutil.net_if_addrs() if name.startswith("lo")), None)
    if loopback:
        environment.setdefault("GLOO_SOCKET_IFNAME", loopback)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "rendezvous")
        command = [sys.executable, "-m", "avvp_dist.dist.probe", backend]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(processes), file, str(timeout)],
                env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(processes)
        ]  # fmt: skip
        end = time.monotonic() + timeout
        try:
            outputs = [rank.communicate(timeout=max(end - time.monotonic(), 0.1)) for rank in ranks]
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{processes} processes did not finish in {timeout:g} s") from None
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        if rank.returncode:
            raise RuntimeError((errors.strip().splitlines() or [f"exit code {rank.returncode}"])[-1])
    return float(outputs[0][0].split()[-1])


def _measure(backend: str, rank: int, processes: int, file: str, timeout: float) -> float:
    """Run one of the processes and return the median time of an all_reduce in seconds."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"file://{file}", rank=rank, world_size=processes, timeout=timedelta(seconds=timeout)
    )
    seconds = []
    for _ in range(_ROUNDS):
        values = torch.full((FLOATS,), rank + 1.0, device=device)
        started = time.perf_counter()
        dist.all_reduce(values)
        if values.sum().item() != FLOATS * processes * (processes + 1) / 2:
            raise RuntimeError(f"{backend} all_reduce returned a wrong sum")
        seconds.append(time.perf_counter() - started)
    dist.destroy_process_group()
    return sorted(seconds)[_ROUNDS // 2]


if __name__ == "__main__":
    _, name, number, count, path, limit = sys.argv
    print(_measure(name, int(number), int(count), path, float(limit)))
