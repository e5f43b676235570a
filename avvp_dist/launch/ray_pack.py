"""Packs on Ray: runs the jobs of a pack as Ray tasks on any free CPU of the cluster."""

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
from avvp_dist.shards.worker_pool import Pool, call_in_task

_MAX_TASKS = 500  # submitted at the same time: enough to fill a large cluster, or to make a small one grow
_RETRIES = 3  # of a task whose process or node dies
_TASK = ResourceRequest("task", 1, {"CPU": 1.0}, {}, "use a cluster with CPUs for tasks")


@contextmanager
def pool(workers: int | None, wait: float) -> Iterator[Pool]:
    """Provide a pool of Ray tasks with one CPU each, on the cluster of RAY_ADDRESS or on this machine.

    Args:
        workers: maximum number of concurrent tasks; None for as many as there are CPUs.
        wait: seconds to wait until the first task can start.

    Raises:
        ConfigError: no task can start.
        AvvpError: Ray lost a task repeatedly.
    """
    started_here = not ray.is_initialized()
    if started_here:
        start_ray()
    tasks = _Tasks()
    try:
        wait_for(_TASK, wait, "launch.wait")
        yield Pool(tasks, workers or _MAX_TASKS)
    except RayTaskError:  # a bug in a task; user errors are returned as values
        raise
    except RayError as error:
        raise AvvpError(
            f"Ray lost a task {_RETRIES + 1} times, perhaps because memory ran out: {error}; run the command again with "
            "fewer --workers; it resumes"
        ) from error
    finally:
        tasks.shutdown(cancel_futures=True)
        if started_here:
            ray.shutdown()


class _Tasks(Executor):
    """`Executor` on Ray: one task per call, which Ray restarts if its process or node dies."""

    def __init__(self) -> None:
        # spread: packing is limited by disk and network of a node more than by its CPU
        self._task = ray.remote(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="SPREAD")(call_in_task)
        self._pending: set[ObjectRef] = set()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor`."""
        ref = self._task.remote(storage.settings(), function, *args, **kwargs)
        self._pending.add(ref)
        future: Future[Any] = Future()

        def settle(done: Future[Any]) -> None:
            self._pending.discard(ref)
            try:
                result, user_error = done.result()
            except BaseException as error:
                future.set_exception(error)
                return
            if user_error is None:
                future.set_result(result)
            else:
                future.set_exception(user_error)

        ref.future().add_done_callback(settle)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `Executor`; running tasks are not waited for."""
        if cancel_futures and ray.is_initialized():
            for ref in list(self._pending):
                ray.cancel(ref, force=False)
