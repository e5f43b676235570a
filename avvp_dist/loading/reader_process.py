"""What reads shards for a `loader.Loader`, in a process of its own or in a thread.

Imports no torch; see `avvp_dist.shards.reading`.
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

_FETCHES = 4  # shards a reader opens at a time


class Task(NamedTuple):
    """What one reader does for one batch.

    Attributes:
        slot: where in the ring the batch is put together.
        opens: shards to open, under keys that ``shards`` and ``closes`` name them by.
        shards: key of each video's shard.
        ids, offsets: of each video.
        draws, rows: place of each video in the slot.
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
    """Does tasks until one fails or the other side is gone; answers each with None, or with what went wrong.

    Args:
        receive: gives the next task.
        send: takes the answers.
        store: where the shards are.
        ring: [slots, 1+K, rows, T, width], where videos are put.
    """
    shards: dict[int, Future[ShardFile]] = {}
    pool = ThreadPoolExecutor(_FETCHES)
    failure: AvvpError | None = None
    with contextlib.suppress(EOFError, OSError):
        while failure is None:
            task = receive()
            failure = _outcome(task, pool, shards, store, ring)
            send(failure)
    pool.shutdown(wait=False, cancel_futures=True)
    for opened in shards.values():
        opened.add_done_callback(_close)


def _outcome(
    task: Task, pool: ThreadPoolExecutor, shards: dict[int, Future[ShardFile]], store: ShardStore, ring: NDArray[np.float16]
) -> AvvpError | None:
    """Does a task; what went wrong, if anything did."""
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
        return AvvpError(f"a reader of shards failed:\n{traceback.format_exc()}")
    return None


def _close(opened: Future[ShardFile]) -> None:
    if not opened.cancelled() and not opened.exception():
        opened.result().close()


def main() -> None:
    """Serves over an inherited connection and shared memory, whose file numbers are the arguments."""
    connection = Connection(int(sys.argv[1]))
    settings, store, shape = connection.recv()
    storage.configure(settings)
    memory = mmap.mmap(int(sys.argv[2]), 0)
    ring: NDArray[np.float16] = np.frombuffer(memory, np.float16).reshape(shape)
    tasks: SimpleQueue[Task] = SimpleQueue()

    def listen() -> None:
        """Takes tasks as they come, so that nobody waits to hand one over; ends this process with its parent's."""
        try:
            while True:
                tasks.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    serve(tasks.get, connection.send, store, ring)
    os._exit(1)  # it has failed, and said so
