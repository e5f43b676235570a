"""Periodic background work during training."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

LOGGER = logging.getLogger(__name__)


class PeriodicTask:
    """Calls ``work`` periodically on its own thread, from `start` to `stop` or the end of the process.

    An exception is logged, once until the next success, and does not stop the task.

    Args:
        name: description of the work, for the log.
        work: called without arguments.
        every: seconds between two calls.
    """

    def __init__(self, name: str, work: Callable[[], None], every: float) -> None:
        self._name = name
        self._work = work
        self._every = every
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start with an immediate call; does nothing if already started."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop after the current call, without waiting for it."""
        self._stopped.set()

    def _run(self) -> None:
        succeeded = True
        while not self._stopped.is_set():
            try:
                self._work()
                succeeded = True
            except Exception as error:  # an exception on this thread would be lost, and must not stop the training
                if succeeded:
                    LOGGER.warning("%s: %s; retrying every %g s", self._name, error, self._every)
                succeeded = False
            self._stopped.wait(self._every)
