"""Reader processes (or one thread) that prefetch batches into a ring buffer in shared memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.errors import AvvpError
from avvp_dist.loading.reader_process import Task, serve
from avvp_dist.shards.reading import ShardStore

_MEMORY = "/dev/shm"
_MAIN = "from avvp_dist.loading.reader_process import main; main()"
_PATIENCE = 5.0  # seconds that a reader has to end on its own


class Loader:
    """Prefetches batches in the order of the steps, however fast each reader is.

    Every reader reads its part of every batch; a batch is returned once all parts are complete. Readers end with this
    process, however it ends, because they detect that their connection is closed.

    Args:
        store: location of the shards.
        shape: [slots, 1+K, rows, T, width]: number of prefetched batches, and size of the largest batch.
        readers: number of processes; 0 for one thread of this process.
    """

    def __init__(self, store: ShardStore, shape: tuple[int, ...], readers: int) -> None:
        self.shape = shape
        self._readers: list[_Reader] = []
        if not readers:
            self._ring = np.empty(shape, np.float16)
            self._readers.append(_ThreadReader(store, self._ring))
            return
        size = 2 * int(np.prod(shape))
        # An unnamed file, in memory if there is enough (a container may have little); freed with its last user
        in_memory = os.path.isdir(_MEMORY) and shutil.disk_usage(_MEMORY).free > size
        folder = _MEMORY if in_memory else tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)  # else a write to a full disk ends the process by SIGBUS
            except OSError as error:
                raise AvvpError(
                    f"cannot allocate {size / 1e6:.3g} MB in {folder} for prefetched batches: {error}; free some space "
                    "there, lower data.prefetch, or set data.workers=0"
                ) from None
            self._ring = np.frombuffer(mmap.mmap(file.fileno(), 0), np.float16).reshape(shape)
            for _ in range(readers):
                self._readers.append(_ProcessReader(store, shape, file.fileno()))

    def run(
        self, tasks: Callable[[int, int], Sequence[Task]], first: int, steps: int
    ) -> Generator[NDArray[np.float16], None, None]:
        """Yield the slot [1+K, rows, T, width] of each step, which is valid until the next one is requested.

        Args:
            tasks: maps a step and a slot to the tasks of the readers.
            first, steps: steps ``first`` to ``steps - 1`` are read.

        Raises:
            DataError: a shard differs from the index.
            AvvpError: a reader died.
        """
        slots, sent = self.shape[0], first
        for step in range(first, steps):
            while sent < min(step + slots, steps):
                for reader, task in zip(self._readers, tasks(sent, sent % slots), strict=True):
                    reader.send(task)
                sent += 1
            for reader in self._readers:
                reader.wait()
            yield self._ring[step % slots]

    def close(self) -> None:
        """End the readers."""
        for reader in self._readers:
            reader.connection.close()
        for reader in self._readers:
            reader.join()
        self._readers.clear()


class _Reader:
    """This process's end of the connection to a reader."""

    connection: Connection

    def send(self, task: Task) -> None:
        try:
            self.connection.send(task)
        except OSError:
            while True:  # its last messages contain the reason, if it could send one
                self.wait()

    def wait(self) -> None:
        """Wait until the reader has finished its oldest task."""
        try:
            failure = self.connection.recv()
        except (EOFError, OSError):
            raise AvvpError(f"{self.failure()}; run the same command again, and it resumes") from None
        if failure is not None:
            raise failure

    def failure(self) -> str:
        return "the thread that reads shards ended"

    def join(self) -> None:
        """Wait until the reader has ended."""


class _ThreadReader(_Reader):
    def __init__(self, store: ShardStore, ring: NDArray[np.float16]) -> None:
        self.connection, reader_end = Pipe()

        def work() -> None:
            with contextlib.suppress(EOFError, OSError), reader_end:
                serve(reader_end.recv, reader_end.send, store, ring)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(_PATIENCE)


class _ProcessReader(_Reader):
    def __init__(self, store: ShardStore, shape: tuple[int, ...], memory: int) -> None:
        self.connection, reader_end = Pipe()
        # Not multiprocessing's spawn, which imports the program's main module and thereby torch. The child gets the module
        # search path of this process, and a session of its own, so that only this process receives Ctrl-C.
        with reader_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(reader_end.fileno()), str(memory)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                pass_fds=(reader_end.fileno(), memory),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.connection.send((storage.settings(), store, shape))

    def failure(self) -> str:
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return f"a process that reads shards (pid {self._process.pid}) closed its connection"
        cause = f"killed by {signal.Signals(-code).name}, perhaps from lack of memory" if code < 0 else f"exit code {code}"
        return f"a process that reads shards (pid {self._process.pid}) died: {cause}"

    def join(self) -> None:
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
