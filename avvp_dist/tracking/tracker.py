"""The tracker of a run: appends to the run's journals, which a thread sends to the tracking server.

Importing this module imports no tracking library; the thread does.
"""

from __future__ import annotations

import functools
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate, ParamSpec

from avvp_dist.text.credentials import attach, redact
from avvp_dist.tracking.base import NullTracker, Status, Tracker, TrackingConfig, flatten
from avvp_dist.tracking.errors import explain
from avvp_dist.tracking.journal import (
    ARTIFACT_FOLDER,
    REFERENCE,
    RUN_FILE,
    journals,
    pending_entries,
    read_run,
    write_run,
)
from avvp_dist.tracking.sender import Sender

LOGGER = logging.getLogger(__name__)
SEND_INTERVAL = 1.0  # seconds between batches: a batch costs the server hardly more than a single value
MAX_RETRY_DELAY = 30.0  # seconds between attempts while the server is unavailable
ATTEMPTS_AT_END = 3  # consecutive failures after which the end of a run no longer waits
P = ParamSpec("P")


def _never_raises(
    method: Callable[Concatenate[JournalTracker, P], None],
) -> Callable[Concatenate[JournalTracker, P], None]:
    @functools.wraps(method)
    def call(self: JournalTracker, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            LOGGER.warning("tracking: %s not recorded: %s", method.__name__, error)

    return call


class JournalTracker:
    """A `Tracker` that appends to journals, which a thread of its own sends.

    Args:
        config: server, experiment and run.
        folder: local folder of this run's tracking files; if it already holds a run, that run continues.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, config: TrackingConfig, folder: Path) -> None:
        self._folder = folder = folder.absolute()
        self._flush_timeout = config.flush_timeout
        _prepare_run(config, folder)
        self._values, self._artifacts = journals(folder)
        self._values.append({"kind": "start", "time": _now()})
        self._sender = Sender(folder, config.uri)
        self._last_error = ""
        self._closing = threading.Event()
        if config.tags:
            self.tags(config.tags)
        self._thread = threading.Thread(target=self._send_until_closed, name="tracking", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the server has created it."""
        return self._sender.run_id

    @property
    def reference(self) -> str | None:
        """Value of ``parent_run`` with which other runs are nested under this one; available immediately."""
        return REFERENCE + read_run(self._folder)["key"]

    @_never_raises
    def params(self, values: Mapping[str, Any]) -> None:
        """Record parameters of the run; nested mappings become dotted keys."""
        self._values.append({"kind": "params", "values": {key: str(value) for key, value in flatten(values).items()}})

    @_never_raises
    def tags(self, values: Mapping[str, Any]) -> None:
        """Record facts that may change, e.g. the git commit or the data fingerprint."""
        self._values.append({"kind": "tags", "values": {key: str(value) for key, value in values.items()}})

    @_never_raises
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        numbers = {key: float(value) for key, value in values.items()}
        self._values.append({"kind": "metrics", "time": _now(), "step": int(step), "values": numbers})

    @_never_raises
    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a copy of a file or folder as it is now, below ``folder`` of the run's artifacts."""
        kept, copy = self._new_copy(path.name)
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copy2(path, copy)
        self._artifacts.append({"kind": "artifact", "kept": kept, "name": path.name, "folder": folder})

    @_never_raises
    def text(self, name: str, content: str) -> None:
        """Record a text as an artifact; ``name`` can contain folders."""
        path = PurePosixPath(name)
        kept, copy = self._new_copy(path.name)
        copy.write_text(redact(content), encoding="utf-8")
        folder = "" if path.parent == PurePosixPath() else str(path.parent)
        self._artifacts.append({"kind": "artifact", "kept": kept, "name": path.name, "folder": folder})

    @_never_raises
    def finish(self, status: Status) -> None:
        """End the run; wait at most ``flush_timeout`` seconds for entries that are not sent yet."""
        if self._closing.is_set():
            return
        self._values.append({"kind": "finish", "time": _now(), "status": status})
        self._closing.set()
        self._thread.join(self._flush_timeout)
        if left := pending_entries(self._folder):
            reason = self._last_error or f"not done within {self._flush_timeout:g} s"
            LOGGER.warning(
                "%d entries have not reached the tracking server (%s). They are kept on disk; send them with: avvp sync %s",
                left, reason, self._folder,
            )  # fmt: skip

    def _new_copy(self, name: str) -> tuple[str, Path]:
        """Return the name of a new folder for one artifact, and the path of its copy there."""
        kept = uuid.uuid4().hex
        copy = self._folder / ARTIFACT_FOLDER / kept / name
        copy.parent.mkdir(parents=True)
        return kept, copy

    def _send_until_closed(self) -> None:
        failures = 0
        while True:
            closing = self._closing.is_set()  # read before sending, so that the entry of finish() is sent as well
            try:
                self._sender.send()
            except Exception as error:
                failures += 1
                self._last_error = explain(error)
                if failures == 1:
                    LOGGER.warning(
                        "tracking server not reached; training continues and nothing is lost: %s", self._last_error
                    )
                if closing and failures >= ATTEMPTS_AT_END:
                    return
                self._closing.wait(min(2.0**failures, MAX_RETRY_DELAY)) if not closing else time.sleep(SEND_INTERVAL)
                continue
            if failures:
                LOGGER.info("tracking server reached again; all entries are sent")
            failures, self._last_error = 0, ""
            if closing:
                return
            self._closing.wait(SEND_INTERVAL)


def _prepare_run(config: TrackingConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    run = read_run(folder) if (folder / RUN_FILE).is_file() else {"key": uuid.uuid4().hex, "started": _now()}
    names = {"experiment": config.experiment, "run_name": config.run_name, "parent_run": config.parent_run}
    login = {"login": True} if attach(config.uri) else {}  # that the server needs credentials, not which ones
    write_run(folder, {**run, "uri": config.uri, **names, **login})


def _now() -> int:
    return int(time.time() * 1000)


def open_tracker(config: TrackingConfig, folder: Path) -> Tracker:
    """Return the tracker of the run whose tracking files are in ``folder`` (local, one per run).

    If the folder already holds a run, that MLflow run continues, and entries that were not sent are sent now.
    """
    if config.name == "none":
        return NullTracker()
    try:
        return JournalTracker(config, folder)
    except OSError as error:
        LOGGER.warning("this run is not tracked, because its tracking folder cannot be written: %s", error)
        return NullTracker()
