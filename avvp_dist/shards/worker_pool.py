"""Runs one function over many jobs in worker processes, and tells how far it came."""

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

_LOG_EVERY = 5.0  # seconds between two lines of progress where there is no terminal, at least
_LOG_PART = 0.02  # of the time gone by: long work tells less often
_AT_ONCE = 4  # jobs a process, so that none waits for its next one

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True)
class Pool:
    """Workers that `run` gives jobs to.

    Attributes:
        executor: takes the jobs.
        at_once: jobs that are handed over and not done, at most; each takes memory where it waits.
    """

    executor: Executor
    at_once: int


OpenPool = Callable[[int | None], AbstractContextManager[Pool | None]]
"""Makes a pool of so many workers, None for a number that suits; `pool` is one, `launch.ray_pack.pool` another."""


@contextmanager
def pool(workers: int | None) -> Iterator[Pool | None]:
    """Spawned worker processes, by default one a core; None for one worker, as `run` works in this process then.

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
        yield Pool(processes, _AT_ONCE * workers)
    except BrokenProcessPool:
        raise AvvpError(
            f"a worker process died, perhaps for want of memory ({workers} were at work); run the command again with fewer "
            "--workers, it goes on where it stopped"
        ) from None
    finally:
        processes.shutdown(cancel_futures=True)


def _start_worker(settings: StorageConfig) -> None:
    """A worker leaves Ctrl-C to its parent, dies with it rather than writing on unseen, and reaches the same storage."""
    guard_output()
    storage.configure(settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def call_in_task(
    settings: StorageConfig, function: Callable[..., R], *args: object, **kwargs: object
) -> tuple[R | None, AvvpError | None]:
    """What a task on another machine does: ``function``, with storage reached as its parent does.

    Our own errors are handed back as a value, since those that a cluster raises are wrapped in its tracebacks.
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
    """``function`` of each job, in the order of the jobs.

    Args:
        function: may be pickled.
        jobs: likewise.
        sizes: videos a job, for the progress.
        pool: who does it, None for this process.
        title: what is done, for the progress.
        unit: what a job is called there, where the user knows it: "shards".

    Raises:
        UserError: that of a job, with the problems of all jobs that were under way at the time.
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
    """Number and result of each job, as they come."""
    waiting = iter(enumerate(jobs))
    pending: dict[Future[R], int] = {}
    while True:
        for number, job in islice(waiting, pool.at_once - len(pending)):
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
    """One error for all jobs under way: several machines may have something each to be mended."""
    errors = [future.exception() for future in wait(pending).done]
    mistakes = [error for error in errors if isinstance(error, UserError)]
    first = mistakes[0]
    if all(isinstance(error, type(first)) and error.title == first.title for error in mistakes):
        first.problems = sorted({problem for error in mistakes for problem in error.problems})
    return first


@contextmanager
def _progress(title: str, jobs: int, unit: str, videos: int) -> Iterator[Callable[[int], None]]:
    """Counts jobs and their videos: a bar on a terminal, a log line now and then elsewhere."""
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
