"""Runs one function over many jobs in worker processes, and tells how far it came."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from avvp_dist import storage
from avvp_dist.errors import AvvpError
from avvp_dist.storage_config import StorageConfig

LOGGER = logging.getLogger(__name__)

_LOG_EVERY = 5.0  # seconds between two lines of progress where there is no terminal

J = TypeVar("J")
R = TypeVar("R")


@contextmanager
def pool(workers: int | None) -> Iterator[Executor | None]:
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
        yield processes
    except BrokenProcessPool:
        raise AvvpError(
            f"a worker process died, perhaps for want of memory ({workers} were at work); run the command again with fewer "
            "--workers, it goes on where it stopped"
        ) from None
    finally:
        processes.shutdown(cancel_futures=True)


def _start_worker(settings: StorageConfig) -> None:
    """A worker leaves Ctrl-C to its parent, dies with it rather than writing on unseen, and reaches the same storage."""
    storage.configure(settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def run(
    function: Callable[[J], R], jobs: Sequence[J], sizes: Sequence[int], executor: Executor | None, title: str
) -> list[R]:
    """``function`` of each job, in the order of the jobs; ``sizes`` are videos a job, for the progress."""
    results: dict[int, R] = {}
    with _progress(title, sum(sizes)) as advance:
        if executor is None:
            for number, job in enumerate(jobs):
                results[number] = function(job)
                advance(sizes[number])
        else:
            futures = {executor.submit(function, job): number for number, job in enumerate(jobs)}
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                advance(sizes[futures[future]])
    return [results[number] for number in range(len(jobs))]


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Counts videos: a bar on a terminal, a log line now and then elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total)
            yield lambda videos: bar.advance(task, videos)
        return
    start = last = time.monotonic()
    done = 0

    def advance(videos: int) -> None:
        nonlocal done, last
        done += videos
        now = time.monotonic()
        if done == total or now - last >= _LOG_EVERY:
            last = now
            LOGGER.info("%s: %d of %d videos, %.0f a second", title, done, total, done / max(now - start, 1e-9))

    yield advance
