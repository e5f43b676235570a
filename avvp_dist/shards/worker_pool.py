"""Runs one function over many jobs in worker processes, and reports progress."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from avvp_dist import storage
from avvp_dist.errors import AvvpError, UserError
from avvp_dist.storage.config import StorageConfig
from avvp_dist.text.redacted_output import guard_output

LOGGER = logging.getLogger(__name__)

_LOG_EVERY = 5.0  # minimum seconds between two progress lines without a terminal
_LOG_PART = 0.02  # of the elapsed time, so that long work logs less often
_QUEUED_PER_PROCESS = 4  # jobs, so that no process waits for its next one

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True)
class Pool:
    """Workers for `run`.

    Attributes:
        executor: executes the jobs.
        max_pending: maximum number of submitted, unfinished jobs; each of them takes memory.
    """

    executor: Executor
    max_pending: int


OpenPool = Callable[[int | None], AbstractContextManager[Pool | None]]
"""Opens a pool with the given number of workers, None for a default; see `pool` and `launch.ray_pack.pool`."""


@contextmanager
def pool(workers: int | None) -> Iterator[Pool | None]:
    """Spawn worker processes, one per core by default; None for one worker, with which `run` works in this process.

    Raises:
        AvvpError: a worker process died.
    """
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    processes = ProcessPoolExecutor(workers, context, _start_worker, (storage.settings(),))
    try:
        yield Pool(processes, _QUEUED_PER_PROCESS * workers)
    except BrokenProcessPool:
        raise AvvpError(
            f"a worker process died, perhaps from lack of memory ({workers} were running); run the command again with fewer "
            "--workers, and it resumes"
        ) from None
    finally:
        processes.shutdown(cancel_futures=True)


def _start_worker(settings: StorageConfig) -> None:
    """Set up a worker: it ignores Ctrl-C, ends with its parent, and has the same storage settings."""
    guard_output()
    storage.configure(settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def call_in_task(
    settings: StorageConfig, function: Callable[..., R], *args: object, **kwargs: object
) -> tuple[R | None, AvvpError | None]:
    """Call ``function`` in a task on another machine, with the storage settings of its parent.

    Errors of this package are returned as a value, since a cluster wraps raised ones in its own tracebacks.
    """
    guard_output()
    storage.configure(settings)
    try:
        return function(*args, **kwargs), None
    except AvvpError as error:
        return None, error


def run(
    function: Callable[[J], R], jobs: Sequence[J], sizes: Sequence[int], pool: Pool | None, title: str, unit: str = ""
) -> list[R]:
    """Call ``function`` on each job; return the results in the order of the jobs.

    Args:
        function: must be picklable.
        jobs: must be picklable.
        sizes: number of videos of each job, for the progress display.
        pool: executes the jobs; None for this process.
        title: name of the work, for the progress display.
        unit: name of a job for users, such as "shards"; empty if they do not know it.

    Raises:
        UserError: the error of a job, with the problems of all jobs that were running at the time.
    """
    results: dict[int, R] = {}
    with _progress(title, len(jobs), unit, sum(sizes)) as advance:
        if pool is None:
            for number, job in enumerate(jobs):
                results[number] = function(job)
                advance(sizes[number])
        else:
            for number, result in _finished(function, jobs, pool):
                results[number] = result
                advance(sizes[number])
    return [results[number] for number in range(len(jobs))]


def _finished(function: Callable[[J], R], jobs: Sequence[J], pool: Pool) -> Iterator[tuple[int, R]]:
    """Yield number and result of each job as it finishes."""
    waiting = iter(enumerate(jobs))
    pending: dict[Future[R], int] = {}
    while True:
        for number, job in islice(waiting, pool.max_pending - len(pending)):
            pending[pool.executor.submit(function, job)] = number
        if not pending:
            return
        done = wait(pending, return_when=FIRST_COMPLETED).done
        for future in done:
            if isinstance(future.exception(), UserError):
                raise _all_problems(pending)
        for future in done:
            yield pending.pop(future), future.result()


def _all_problems(pending: Iterable[Future[R]]) -> UserError:
    """One error for all running jobs, since each of several machines may have a problem to fix."""
    errors = [future.exception() for future in wait(pending).done]
    mistakes = [error for error in errors if isinstance(error, UserError)]
    first = mistakes[0]
    if all(isinstance(error, type(first)) and error.title == first.title for error in mistakes):
        first.problems = sorted({problem for error in mistakes for problem in error.problems})
    return first


@contextmanager
def _progress(title: str, jobs: int, unit: str, videos: int) -> Iterator[Callable[[int], None]]:
    """Report progress in jobs and videos: as a bar on a terminal, else by an occasional log line."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=videos)
            yield lambda more: bar.advance(task, more)
        return
    start = last = time.monotonic()
    done = finished = 0

    def advance(more: int) -> None:
        nonlocal done, finished, last
        done += more
        finished += 1
        now = time.monotonic()
        if finished == jobs or now - last >= max(_LOG_EVERY, _LOG_PART * (now - start)):
            last = now
            counted = f"{finished} of {jobs} {unit}, " if unit else ""
            LOGGER.info("%s: %s%d of %d videos, %.0f a second", title, counted, done, videos, done / max(now - start, 1e-9))

    yield advance
