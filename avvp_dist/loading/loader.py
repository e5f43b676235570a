"""Reader processes (or one thread) that fill a ring of batches in shared memory ahead of training."""

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
_PATIENCE = 5.0  # seconds a reader gets to end by itself


class Loader:
    """Fills batches ahead, always in the order of the steps, however fast each reader is.

    Every reader does its part of every batch; a batch is given out when all have done theirs. Readers end when this process
    does, however it ends: they notice that the other end of their connection is gone.

    Args:
        store: where the shards are.
        shape: [slots, 1+K, rows, T, width]: batches read ahead, and the largest batch.
        readers: processes; 0 for one thread of this process.
    """

    def __init__(self, store: ShardStore, shape: tuple[int, ...], readers: int) -> None:
        self.shape = shape
        self._readers: list[_Reader] = []
        if not readers:
            self._ring = np.empty(shape, np.float16)
            self._readers.append(_ThreadReader(store, self._ring))
            return
        size = 2 * int(np.prod(shape))
        # An unnamed file, in memory where there is enough (a container may have little): gone when the last user is gone
        roomy = os.path.isdir(_MEMORY) and shutil.disk_usage(_MEMORY).free > size
        with tempfile.TemporaryFile(dir=_MEMORY if roomy else None) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)  # now, since a write beyond a full disk ends a process by SIGBUS
            except OSError as error:
                raise AvvpError(
                    f"{size / 1e6:.3g} MB in {_MEMORY if roomy else tempfile.gettempdir()} for batches that are read ahead "
                    f"cannot be had: {error}; make room there, lower data.prefetch, or set data.workers=0"
                ) from None
            self._ring = np.frombuffer(mmap.mmap(file.fileno(), 0), np.float16).reshape(shape)
            for _ in range(readers):
                self._readers.append(_ProcessReader(store, shape, file.fileno()))

    def run(
        self, tasks: Callable[[int, int], Sequence[Task]], first: int, steps: int
    ) -> Generator[NDArray[np.float16], None, None]:
        """The slot [1+K, rows, T, width] of each step, which holds its batch until the next is asked for.

        Args:
            tasks: for a step and a slot, the tasks of the readers.
            first, steps: steps ``first`` to ``steps - 1`` are read.

        Raises:
            DataError: a shard that is not what the index says.
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
        """Ends the readers."""
        for reader in self._readers:
            reader.connection.close()
        for reader in self._readers:
            reader.join()
        self._readers.clear()


class _Reader:
    """This end of a reader."""

    connection: Connection

    def send(self, task: Task) -> None:
        try:
            self.connection.send(task)
        except OSError:
            while True:  # it has said why it is gone, if it could, after its last answers
                self.wait()

    def wait(self) -> None:
        """Until the reader has done its oldest task."""
        try:
            failure = self.connection.recv()
        except (EOFError, OSError):
            raise AvvpError(f"{self.death()}; run the same command again, it goes on where it stopped") from None
        if failure is not None:
            raise failure

    def death(self) -> str:
        return "the thread that reads shards ended"

    def join(self) -> None:
        """Waits until the reader has ended."""


class _ThreadReader(_Reader):
    def __init__(self, store: ShardStore, ring: NDArray[np.float16]) -> None:
        self.connection, theirs = Pipe()

        def work() -> None:
            with contextlib.suppress(EOFError, OSError), theirs:
                serve(theirs.recv, theirs.send, store, ring)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(_PATIENCE)


class _ProcessReader(_Reader):
    def __init__(self, store: ShardStore, shape: tuple[int, ...], memory: int) -> None:
        self.connection, theirs = Pipe()
        # Not multiprocessing's spawn: that imports the program's main module again, and with it torch. The child finds
        # modules where this process does; a session of its own keeps Ctrl-C, which is ours to handle, away from it.
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno()), str(memory)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.connection.send((storage.settings(), store, shape))

    def death(self) -> str:
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return f"a process that reads shards (pid {self._process.pid}) closed its connection"
        how = f"killed by {signal.Signals(-code).name}, perhaps from lack of memory" if code < 0 else f"exit code {code}"
        return f"a process that reads shards (pid {self._process.pid}) died: {how}"

    def join(self) -> None:
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
