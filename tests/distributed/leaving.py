"""One of two ranks, which exits while a thread of the process group still has Python code to run; see test_leaving.py."""

import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from avvp_dist.dist.runtime import LocalRuntime


def main(code: int) -> None:
    runtime = LocalRuntime("none", "cpu")
    try:
        model = DistributedDataParallel(torch.nn.Linear(2, 2))
        model(torch.rand(1, 2)).sum().backward()
        summed = dist.all_reduce(torch.zeros(1), async_op=True).get_future()
        summed.then(lambda _: [time.sleep(0.1) for _ in range(20)])  # each iteration acquires the GIL again
        if code:
            raise SystemExit(code)
    finally:
        runtime.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
