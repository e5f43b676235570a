"""Whether processes of this machine can talk to each other: a real all_reduce among a few of them, for `avvp doctor`.

Run as a module it is one of those processes: ``python -m avvp_dist.dist.probe BACKEND RANK PROCESSES FILE SECONDS``.
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
    """Median time of an all_reduce of 4 MB, over loopback for gloo; each process takes the GPU of its number for nccl.

    Raises:
        RuntimeError: a process failed (its last words), or they were not done in ``timeout`` seconds.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    loopback = next((name for name in psutil.net_if_addrs() if name.startswith("lo")), None)
    if loopback:
        environment.setdefault("GLOO_SOCKET_IFNAME", loopback)
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        command = [sys.executable, "-m", "avvp_dist.dist.probe", backend]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(processes), meeting, str(timeout)],
                env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(processes)
        ]  # fmt: skip
        end = time.monotonic() + timeout
        try:
            told = [rank.communicate(timeout=max(end - time.monotonic(), 0.1)) for rank in ranks]
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{processes} processes were not done in {timeout:g} s") from None
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    for rank, (_, errors) in zip(ranks, told, strict=True):
        if rank.returncode:
            raise RuntimeError((errors.strip().splitlines() or [f"exit code {rank.returncode}"])[-1])
    return float(told[0][0].split()[-1])


def _talk(backend: str, rank: int, processes: int, meeting: str, timeout: float) -> float:
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=processes, timeout=timedelta(seconds=timeout)
    )
    seconds = []
    for _ in range(_ROUNDS):
        values = torch.full((FLOATS,), rank + 1.0, device=device)
        started = time.perf_counter()
        dist.all_reduce(values)
        if values.sum().item() != FLOATS * processes * (processes + 1) / 2:
            raise RuntimeError(f"{backend} all_reduce came to a wrong sum")
        seconds.append(time.perf_counter() - started)
    dist.destroy_process_group()
    return sorted(seconds)[_ROUNDS // 2]


if __name__ == "__main__":
    _, name, number, count, file, limit = sys.argv
    print(_talk(name, int(number), int(count), file, float(limit)))
