"""SIGTERM and Ctrl-C: both ask a command to end well, a second Ctrl-C ends it at once."""

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

_log = logging.getLogger(__name__)

INTERRUPTED = 130  # exit code of a second Ctrl-C, as shells give it
_SAME = 0.1  # seconds within which a second SIGINT is the same Ctrl-C, passed on by a parent that got it too
_SHOW_CURSOR = b"\x1b[?25h"


@contextlib.contextmanager
def stop_on_signals(stop: Callable[[], None], what: str) -> Iterator[None]:
    """Calls ``stop``, once and on a thread, when this process is asked to end; a second Ctrl-C ends the process at once.

    That holds while the main thread waits in native code too, for other ranks say, where Python runs no signal handler.
    Afterwards signals do what they did before. Nothing changes outside the main thread, and Ctrl-C stays ignored where it
    is, as in the background of a shell script.

    Args:
        stop: asks for the end.
        what: what happens then, for the log.
    """
    with _watched(stop, what, lambda *_: None):
        yield


@contextlib.contextmanager
def interrupt_on_signals(what: str) -> Iterator[None]:
    """Raises KeyboardInterrupt in the block, once, when this process is asked to end; otherwise as `stop_on_signals`."""
    raised = False

    def interrupt(*_: object) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise KeyboardInterrupt

    with _watched(lambda: None, what, interrupt):
        yield


def end_on_ctrl_c() -> None:
    """From now on Ctrl-C ends this process at once and without a traceback: it is about to end anyway."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def _watched(stop: Callable[[], None], what: str, handler: Callable[..., None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    watch = threading.Thread(target=_watch, args=(ours, stop, what), name="signals", daemon=True)
    watch.start()
    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, action in before.items():
            signal.signal(number, action)
        theirs.close()  # which ends the thread
        watch.join()


def _watch(numbers: socket.socket, stop: Callable[[], None], what: str) -> None:
    """Reads the number of each signal as it comes."""
    asked, first = False, None
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
            if not asked:
                asked = True
                _log.info("asked to stop: %s; Ctrl-C (again) ends it at once", what)
                stop()


def _end() -> None:
    """Ends the process without any of its ends: what is safe by now is safe, and children end with their parent."""
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():  # a bar of progress hides it
            os.write(2, _SHOW_CURSOR)
        os.write(2, b"ended at once; the same command goes on from what was safe before\n")
    os._exit(INTERRUPTED)
