"""Packs on Ray: the jobs of a pack as Ray tasks, wherever the cluster has a CPU to spare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from avvp_dist import storage
from avvp_dist.errors import AvvpError
from avvp_dist.launch.ray_start import start_ray
from avvp_dist.launch.resources import ResourceRequest, wait_for
from avvp_dist.shards.workers import Pool, in_task

_AT_ONCE = 500  # tasks that Ray knows of: enough to fill a large cluster, and to make a small one grow
_RETRIES = 3  # of a task whose process or node died
_TASK = ResourceRequest("task", 1, {"CPU": 1.0}, {}, "a cluster with CPUs for work")


@contextmanager
def pool(workers: int | None, wait: float) -> Iterator[Pool]:
    """Ray tasks of one CPU each, on the cluster that RAY_ADDRESS names or on this machine.

    Args:
        workers: tasks at once; None for as many as there are CPUs.
        wait: seconds until the first of them can start.

    Raises:
        ConfigError: no task can start.
        AvvpError: Ray has lost a task again and again.
    """
    started_here = not ray.is_initialized()
    if started_here:
        start_ray()
    tasks = _Tasks()
    try:
        wait_for(_TASK, wait, "launch.wait")
        yield Pool(tasks, workers or _AT_ONCE)
    except RayTaskError:  # a mistake of ours; those of users arrive as they are
        raise
    except RayError as error:
        raise AvvpError(
            f"Ray lost a task {_RETRIES + 1} times, perhaps for want of memory: {error}; run the command again with fewer "
            "--workers, it goes on where it stopped"
        ) from error
    finally:
        tasks.shutdown(cancel_futures=True)
        if started_here:
            ray.shutdown()


class _Tasks(Executor):
    """`Executor` over Ray: one task a call, started again by Ray where its process or node dies."""

    def __init__(self) -> None:
        # spread: packing waits for disks and network of a node more than for its CPU
        self._task = ray.remote(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="SPREAD")(in_task)
        self._pending: set[ObjectRef] = set()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor`."""
        ref = self._task.remote(storage.settings(), function, *args, **kwargs)
        self._pending.add(ref)
        future: Future[Any] = Future()

        def settle(answer: Future[Any]) -> None:
            self._pending.discard(ref)
            try:
                result, mistake = answer.result()
            except BaseException as error:
                future.set_exception(error)
                return
            if mistake is None:
                future.set_result(result)
            else:
                future.set_exception(mistake)

        ref.future().add_done_callback(settle)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `Executor`; what has begun ends by itself, and nobody waits for it."""
        if cancel_futures and ray.is_initialized():
            for ref in list(self._pending):
                ray.cancel(ref, force=False)
