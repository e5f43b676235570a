"""The tracker of a run: appends to journals, which a thread sends.

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
from avvp_dist.tracking.journal import REFERENCE, explain, journals, read_run, write_run
from avvp_dist.tracking.sender import Sender

log = logging.getLogger(__name__)
GATHER = 1.0  # seconds between sendings: one batch costs the server hardly more than one value
LONGEST_PAUSE = 30.0  # seconds between attempts while the server is down
ATTEMPTS_AT_END = 3  # failures in a row after which the end of a run waits no longer
P = ParamSpec("P")


def _never_raises(
    method: Callable[Concatenate[SpoolTracker, P], None],
) -> Callable[Concatenate[SpoolTracker, P], None]:
    @functools.wraps(method)
    def call(self: SpoolTracker, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            log.warning("tracking: %s was not written down: %s", method.__name__, error)

    return call


class SpoolTracker:
    """The `Tracker` that writes journals and lets a thread send them.

    Args:
        config: server, experiment and run.
        folder: local folder of this run's tracking files. When it holds a run already, that run goes on.

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
        self._thread = threading.Thread(target=self._ship, name="tracking", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None as long as no server has seen it."""
        return self._sender.run_id

    @property
    def reference(self) -> str | None:
        """What other runs give as ``parent_run`` to be nested under this one; known at once."""
        return REFERENCE + read_run(self._folder)["key"]

    @_never_raises
    def params(self, values: Mapping[str, Any]) -> None:
        """Settings of the run; nested mappings become dotted keys."""
        self._values.append({"kind": "params", "values": {key: str(value) for key, value in flatten(values).items()}})

    @_never_raises
    def tags(self, values: Mapping[str, Any]) -> None:
        """Facts that may change, e.g. the git commit or the data fingerprint."""
        self._values.append({"kind": "tags", "values": {key: str(value) for key, value in values.items()}})

    @_never_raises
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at one step."""
        numbers = {key: float(value) for key, value in values.items()}
        self._values.append({"kind": "metrics", "time": _now(), "step": int(step), "values": numbers})

    @_never_raises
    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or folder as it is now, kept below ``folder`` of the run's artifacts."""
        kept, place = self._make_place(path.name)
        if path.is_dir():
            shutil.copytree(path, place)
        else:
            shutil.copy2(path, place)
        self._artifacts.append({"kind": "artifact", "kept": kept, "name": path.name, "folder": folder})

    @_never_raises
    def text(self, name: str, content: str) -> None:
        """A text artifact; ``name`` may carry folders."""
        where = PurePosixPath(name)
        kept, place = self._make_place(where.name)
        place.write_text(redact(content), encoding="utf-8")
        folder = "" if where.parent == PurePosixPath() else str(where.parent)
        self._artifacts.append({"kind": "artifact", "kept": kept, "name": where.name, "folder": folder})

    @_never_raises
    def finish(self, status: Status) -> None:
        """Ends the run; waits at most ``flush_timeout`` seconds for what is not sent yet."""
        if self._closing.is_set():
            return
        self._values.append({"kind": "finish", "time": _now(), "status": status})
        self._closing.set()
        self._thread.join(self._flush_timeout)
        if left := self._values.left() + self._artifacts.left():
            reason = self._last_error or f"not done within {self._flush_timeout:g} s"
            log.warning(
                "%d entries have not reached the tracking server (%s). They are safe; send them with: avvp sync %s",
                left, reason, self._folder,
            )  # fmt: skip

    def _make_place(self, name: str) -> tuple[str, Path]:
        kept = uuid.uuid4().hex
        place = self._folder / "artifacts" / kept / name
        place.parent.mkdir(parents=True)
        return kept, place

    def _ship(self) -> None:
        failures = 0
        while True:
            closing = self._closing.is_set()  # read before sending: what finish() wrote is then sent as well
            try:
                self._sender.send()
            except Exception as error:
                failures += 1
                self._last_error = explain(error)
                if failures == 1:
                    log.warning("tracking server not reached, training goes on and nothing is lost: %s", self._last_error)
                if closing and failures >= ATTEMPTS_AT_END:
                    return
                self._closing.wait(min(2.0**failures, LONGEST_PAUSE)) if not closing else time.sleep(GATHER)
                continue
            if failures:
                log.info("tracking server reached again, everything sent")
            failures, self._last_error = 0, ""
            if closing:
                return
            self._closing.wait(GATHER)


def _prepare_run(config: TrackingConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    known = read_run(folder) if (folder / "run.json").is_file() else {"key": uuid.uuid4().hex, "started": _now()}
    names = {"experiment": config.experiment, "run_name": config.run_name, "parent_run": config.parent_run}
    login = {"login": True} if attach(config.uri) else {}  # that it needs credentials, not which
    write_run(folder, {**known, "uri": config.uri, **names, **login})


def _now() -> int:
    return int(time.time() * 1000)


def open_tracker(config: TrackingConfig, folder: Path) -> Tracker:
    """The tracker of the run whose tracking files live in ``folder`` (local, one per run).

    A folder that already holds a run continues it: same MLflow run, and what had not been sent is sent now.
    """
    if config.name == "none":
        return NullTracker()
    try:
        return SpoolTracker(config, folder)
    except OSError as error:
        log.warning("this run is not tracked, its folder cannot be written: %s", error)
        return NullTracker()
