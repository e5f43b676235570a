"""A TCP proxy of limited speed in front of a server on loopback, to emulate a network in benchmarks."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 65536


class _Budget:
    """Rate limit over all connections together."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait until ``count`` bytes can be sent."""
        with self._lock:
            begin = max(self._free_at, time.monotonic())
            self._free_at = begin + count / self._rate
        time.sleep(max(0.0, begin - time.monotonic()))


@contextmanager
def slow_link(port: int, megabytes_per_second: float) -> Iterator[int]:
    """Yield a loopback port that forwards to ``port``; responses are limited to ``megabytes_per_second`` (10^6 bytes)."""
    budget = _Budget(megabytes_per_second * 1e6)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, port, budget), daemon=True).start()
        yield listener.getsockname()[1]


def _accept(listener: socket.socket, port: int, budget: _Budget) -> None:
    with suppress(OSError):  # the listener was closed
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=_forward, args=(client, server, None), daemon=True).start()
            threading.Thread(target=_forward, args=(server, client, budget), daemon=True).start()


def _forward(source: socket.socket, target: socket.socket, budget: _Budget | None) -> None:
    with suppress(OSError):  # either side can close the connection
        while chunk := source.recv(_CHUNK):
            if budget:
                budget.take(len(chunk))
            target.sendall(chunk)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
