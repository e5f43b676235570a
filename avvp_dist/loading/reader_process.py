"""Reads shards for a `loader.Loader`, in a separate process or in a thread.

Does not import torch; see `avvp_dist.shards.reading`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.errors import AvvpError
from avvp_dist.shards.reading import ShardFile, ShardStore
from avvp_dist.shards.reference import ShardRef

_FETCHES = 4  # shards that a reader opens at a time


class Task(NamedTuple):
    """The work of one reader for one batch.

    Attributes:
        slot: of the ring buffer that receives the batch.
        opens: shards to open, with the keys by which ``shards`` and ``closes`` refer to them.
        shards: key of each video's shard.
        ids, offsets: of each video.
        draws, rows: position of each video in the slot.
        closes: shards that no later task needs.
    """

    slot: int
    opens: list[tuple[int, ShardRef]]
    shards: list[int]
    ids: list[str]
    offsets: list[int]
    draws: list[int]
    rows: list[int]
    closes: list[int]


def serve(
    receive: Callable[[], Task], send: Callable[[AvvpError | None], Any], store: ShardStore, ring: NDArray[np.float16]
) -> None:
    """Execute tasks until one fails or the connection is closed; answer each with None or with its error.

    Args:
        receive: returns the next task.
        send: sends an answer.
        store: location of the shards.
        ring: [slots, 1+K, rows, T, width], receives the videos.
    """
    shards: dict[int, Future[ShardFile]] = {}
    pool = ThreadPoolExecutor(_FETCHES)
    failure: AvvpError | None = None
    with contextlib.suppress(EOFError, OSError):
        while failure is None:
            task = receive()
            failure = _execute(task, pool, shards, store, ring)
            send(failure)
    pool.shutdown(wait=False, cancel_futures=True)
    for opened in shards.values():
        opened.add_done_callback(_close)


def _execute(
    task: Task, pool: ThreadPoolExecutor, shards: dict[int, Future[ShardFile]], store: ShardStore, ring: NDArray[np.float16]
) -> AvvpError | None:
    """Execute a task; return its error, if any."""
    try:
        for key, shard in task.opens:
            shards[key] = pool.submit(store.open, shard, ring.shape[3:])
        for key, name, offset, draw, row in zip(task.shards, task.ids, task.offsets, task.draws, task.rows, strict=True):
            shards[key].result().read(name, offset, ring[task.slot, draw, row])
        for key in task.closes:
            _close(shards.pop(key))
    except AvvpError as error:
        return error
    except OSError as error:
        return AvvpError(f"{store.url}: shards cannot be read: {type(error).__name__}: {error}")
    except Exception:
        return AvvpError(f"a shard reader failed:\n{traceback.format_exc()}")
    return None


def _close(opened: Future[ShardFile]) -> None:
    if not opened.cancelled() and not opened.exception():
        opened.result().close()


def main() -> None:
    """Serve over an inherited connection and shared memory, whose file descriptors are the arguments."""
    connection = Connection(int(sys.argv[1]))
    settings, store, shape = connection.recv()
    storage.configure(settings)
    memory = mmap.mmap(int(sys.argv[2]), 0)
    ring: NDArray[np.float16] = np.frombuffer(memory, np.float16).reshape(shape)
    tasks: SimpleQueue[Task] = SimpleQueue()

    def listen() -> None:
        """Receive tasks as they arrive, so that the sender never waits; end this process with its parent."""
        try:
            while True:
                tasks.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    serve(tasks.get, connection.send, store, ring)
    os._exit(1)  # a task failed, and its error was sent
