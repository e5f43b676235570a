"""Small work that goes on beside training."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class PeriodicTask:
    """Calls ``work`` again and again on a thread of its own, from `start` to `stop` or to the end of the process.

    What goes wrong is logged, once until it goes well again, and tried again.

    Args:
        name: what it is, for the log.
        every: seconds between two calls.
    """

    def __init__(self, name: str, work: Callable[[], None], every: float) -> None:
        self._name = name
        self._work = work
        self._every = every
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins, with a call at once; does nothing where it has begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends after the call that is under way, for which it does not wait."""
        self._stopped.set()

    def _run(self) -> None:
        well = True
        while not self._stopped.is_set():
            try:
                self._work()
                well = True
            except Exception as error:  # nobody would hear of it here, and training need not end for it
                if well:
                    _log.warning("%s: %s; tried again every %g s", self._name, error, self._every)
                well = False
            self._stopped.wait(self._every)
