"""Redacts the output of a process: log records, warnings and tracebacks, including those of libraries."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from avvp_dist.text.credentials import redact


@contextlib.contextmanager
def redacted_errors() -> Iterator[None]:
    """Replace an error whose traceback contains a secret, for code whose errors a framework writes to files (Ray)."""
    try:
        yield
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        if redact(text) == text:
            raise
        raise RuntimeError(redact(text)) from None


def guard_output() -> None:
    """Redact every log record, warning and uncaught traceback of this process; repeated calls have no effect."""
    if getattr(logging.getLogRecordFactory(), "redacts", False):
        return
    logging.setLogRecordFactory(_redacting_factory(logging.getLogRecordFactory()))
    format_warning = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: redact(format_warning(*args, **kwargs))
    sys.excepthook = _print_uncaught
    threading.excepthook = lambda args: _print_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _redacting_factory(factory: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        try:
            message = record.getMessage()
        except Exception:  # the arguments do not fit the message: logging reports that itself
            return record
        if redact(message) != message:
            record.msg, record.args = redact(message), ()
        if record.exc_info and record.exc_info[0]:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            if redact(text) != text:
                record.exc_info, record.exc_text = None, redact(text)
        return record

    make_record.redacts = True  # type: ignore[attr-defined]
    return make_record


def _print_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, SystemExit):
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
