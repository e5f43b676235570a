"""Signal handling: SIGTERM and Ctrl-C request a graceful stop, a second Ctrl-C ends the process immediately."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from avvp_dist.errors import INTERRUPTED

LOGGER = logging.getLogger(__name__)

_SAME = 0.1  # seconds within which a second SIGINT is the same Ctrl-C, forwarded by a parent process
_SHOW_CURSOR = b"\x1b[?25h"


@contextlib.contextmanager
def stop_on_signals(stop: Callable[[], None], effect: str) -> Iterator[None]:
    """Call ``stop`` once, on a thread, at SIGTERM or Ctrl-C; a second Ctrl-C ends the process immediately.

    This also works while the main thread waits in native code, e.g. for other ranks, where Python runs no signal handler.
    The previous handlers are restored at the end. Does nothing outside the main thread. If Ctrl-C is ignored, as in the
    background of a shell script, it stays ignored.

    Args:
        stop: requests the stop.
        effect: what happens then, for the log.
    """
    with _watched(stop, effect, lambda *_: None):
        yield


@contextlib.contextmanager
def interrupt_on_signals(effect: str) -> Iterator[None]:
    """Raise KeyboardInterrupt in the block, once, at SIGTERM or Ctrl-C; otherwise as `stop_on_signals`."""
    raised = False

    def interrupt(*_: object) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise KeyboardInterrupt

    with _watched(lambda: None, effect, interrupt):
        yield


def end_on_ctrl_c() -> None:
    """Let Ctrl-C end this process immediately and without a traceback from now on, because it is about to end."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def _watched(stop: Callable[[], None], effect: str, handler: Callable[..., None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watch = threading.Thread(target=_watch, args=(reader, stop, effect), name="signals", daemon=True)
    watch.start()
    handled = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, action in before.items():
            signal.signal(number, action)
        writer.close()  # ends the thread
        watch.join()


def _watch(numbers: socket.socket, stop: Callable[[], None], effect: str) -> None:
    """Read the number of each received signal."""
    requested, first = False, None
    with numbers:
        while byte := numbers.recv(1):
            number = byte[0]
            if number not in (signal.SIGTERM, signal.SIGINT):
                continue
            if number == signal.SIGINT:
                now = time.monotonic()
                if first is not None and now - first > _SAME:
                    _end()
                first = first or now
            if not requested:
                requested = True
                LOGGER.info("stop requested: %s; press Ctrl-C (again) to end immediately", effect)
                stop()


def _end() -> None:
    """End the process without cleanup: what is already saved remains, and child processes end with their parent."""
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():  # a progress bar hides it
            os.write(2, _SHOW_CURSOR)
        os.write(2, b"ended immediately; the same command resumes from what was saved before\n")
    os._exit(INTERRUPTED)
