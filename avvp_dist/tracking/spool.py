"""Write first, send later: a run's own journal, and the thread that carries it to the tracking server.

Every call of a tracker appends one line to a journal in the run's folder and returns. A daemon thread sends the lines and
notes how far it got, so a server that is down, a slow one, or a killed process delays nothing and loses nothing.

Files in the folder:
    run.json                                    which server, experiment and run (its id once the server has given one)
    spool.jsonl, artifacts.jsonl               what was told; two journals, so that a broken artefact store stops no metrics
    spool.sent, artifacts.sent                 bytes of each journal that the server has confirmed
    artifacts/                                  copies of artefacts that are still to be sent
"""

from __future__ import annotations

import functools
import json
import logging
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate, ParamSpec, Protocol

from filelock import FileLock

from avvp_dist import json_files, storage
from avvp_dist.credentials import attach, detach, redact, redact_all
from avvp_dist.errors import DataError
from avvp_dist.folders import ensure_home
from avvp_dist.tracking.address import HOW_TO_LOG_IN, can_log_in, check_address
from avvp_dist.tracking.base import Status, TrackingConfig, flatten

log = logging.getLogger(__name__)

GATHER = 1.0  # seconds between sendings: one batch costs the server hardly more than one value
LONGEST_PAUSE = 30.0  # seconds between attempts while the server is down
ATTEMPTS_AT_END = 3  # failures in a row after which the end of a run waits no longer
BATCH_BYTES = 1 << 20
LOCK_TIMEOUT = 60.0
REFERENCE = "key:"  # begins a parent_run that is a run's own key and no id of MLflow's

_ANEW = "delete the tracking folder to track the run anew"

P = ParamSpec("P")
Entry = dict[str, Any]


class Sink(Protocol):
    """A connection to one run at the server."""

    run_id: str

    def send(self, entries: list[Entry]) -> list[str]:
        """Sends all entries, or raises; returns a line for each value the server refuses for good."""


@dataclass(frozen=True)
class SyncReport:
    """What `sync` did. ``error`` says why something is left; ``refused`` what the server will never take."""

    sent: int
    left: int
    run_id: str | None
    refused: tuple[str, ...] = ()
    error: str | None = None


class Journal:
    """A file of JSON lines of which a known first part has been sent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sent = path.with_suffix(".sent")
        self._guard = threading.Lock()
        self._torn = self._ends_torn()

    def append(self, entry: Entry) -> None:
        """Adds one line, without credentials; it survives the death of this process."""
        line = json.dumps(redact_all(entry)).encode() + b"\n"
        with self._guard, self._path.open("ab", buffering=0) as handle:
            if self._torn:
                line = b"\n" + line
            self._torn = True
            written = handle.write(line)
            if written != len(line):
                raise OSError(f"{self._path}: only {written} of {len(line)} bytes written; is the disk full?")
            self._torn = False

    def unsent(self) -> tuple[list[Entry], int]:
        """The next whole lines, about `BATCH_BYTES` of them, and the offset behind them."""
        offset = self.offset()
        if not self._path.is_file():
            return [], offset
        with self._path.open("rb") as handle:
            handle.seek(offset)
            lines = [line for line in handle.readlines(BATCH_BYTES) if line.endswith(b"\n")]
        entries = [self._parse(line) for line in lines]
        return [entry for entry in entries if entry is not None], offset + sum(map(len, lines))

    def offset(self) -> int:
        """Bytes confirmed by the server."""
        return int(self._sent.read_text()) if self._sent.is_file() else 0

    def acknowledge(self, offset: int) -> None:
        """Notes that everything before ``offset`` has arrived."""
        storage.write_text(self._sent, str(offset))

    def left(self) -> int:
        """Number of lines not confirmed yet."""
        if not self._path.is_file():
            return 0
        with self._path.open("rb") as handle:
            handle.seek(self.offset())
            return sum(1 for line in handle if line.endswith(b"\n") and line.strip())

    def _ends_torn(self) -> bool:
        """Whether a writer was stopped in the middle of its last line."""
        if not self._path.is_file() or self._path.stat().st_size == 0:
            return False
        with self._path.open("rb") as handle:
            handle.seek(-1, 2)
            return handle.read(1) != b"\n"

    def _parse(self, line: bytes) -> Entry | None:
        if not line.strip():
            return None
        try:
            return dict(json.loads(line))
        except ValueError:
            log.warning("%s: a line was cut short when its writer died, left out: %.80r", self._path, line)
            return None


class Sender:
    """Carries the two journals of a folder to the server; one process at a time, each batch under the folder's lock."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder = folder
        self._uri = uri
        self._values, self._artifacts = journals(folder)
        self._sink: Sink | None = None
        self.run_id: str | None = read_run(folder).get("run_id")
        self.sent = 0
        self.refused: list[str] = []

    def send(self) -> None:
        """Sends everything there is.

        Raises:
            Exception: whatever the server or the way to it did; everything confirmed before stays confirmed.
        """
        try:
            while self._send_batch(self._values):
                pass
            while self._send_batch(self._artifacts):
                pass
        except Exception:
            self._sink = None
            raise

    def _send_batch(self, journal: Journal) -> bool:
        with FileLock(self._folder / "spool.lock", timeout=LOCK_TIMEOUT):
            entries, offset = journal.unsent()
            if offset == journal.offset():
                return False
            refused = self._connect().send(entries)
            journal.acknowledge(offset)
        self.sent += len(entries)
        self.refused += refused
        for line in refused:
            log.warning("the tracking server refuses %s", line)
        for entry in entries:
            if entry["kind"] == "artifact":
                shutil.rmtree(self._folder / "artifacts" / entry["kept"], ignore_errors=True)
        return True

    def _connect(self) -> Sink:
        if self._sink is None:
            ensure_home()  # MLflow asks for it when it is imported
            from avvp_dist.tracking.mlflow import MlflowSink  # takes seconds: imported by the thread that sends

            self._sink = MlflowSink(self._folder, self._uri)
            self.run_id = self._sink.run_id
        return self._sink


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
        """A file or folder as it is now, kept below ``folder`` of the run's artefacts."""
        kept, place = self._make_place(path.name)
        if path.is_dir():
            shutil.copytree(path, place)
        else:
            shutil.copy2(path, place)
        self._artifacts.append({"kind": "artifact", "kept": kept, "name": path.name, "folder": folder})

    @_never_raises
    def text(self, name: str, content: str) -> None:
        """A text artefact; ``name`` may carry folders."""
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


def sync(folder: Path, uri: str | None = None) -> SyncReport:
    """Sends what a run in ``folder`` could not send itself, from the place where it stopped.

    Args:
        folder: a run's tracking folder.
        uri: the server, where it is not the one the run was started with.

    Raises:
        DataError: no tracked run there, or the server asked for credentials, which are never written down and not given.
        ConfigError: such an address can never work.
    """
    if not (folder / "run.json").is_file():
        raise DataError(f"{folder}: no tracked run here (run.json is missing); give the folder named at the run's end")
    known = json_files.record(str(folder / "run.json"), {"key": str, "uri": str}, _ANEW)
    address = detach(uri or known["uri"])
    check_address(TrackingConfig(uri=address))
    asks = uri is None and (known.get("login", False) or address != known["uri"])
    if asks and not can_log_in(address):
        raise DataError(f"{folder}: the server's address {address} needs its password; {HOW_TO_LOG_IN}")
    sender = Sender(folder, address)
    error = None
    try:
        sender.send()
    except Exception as caught:
        error = explain(caught)
    left = sum(journal.left() for journal in journals(folder))
    return SyncReport(sender.sent, left, sender.run_id, tuple(sender.refused), error)


def journals(folder: Path) -> tuple[Journal, Journal]:
    """Values and artefacts."""
    return Journal(folder / "spool.jsonl"), Journal(folder / "artifacts.jsonl")


def read_run(folder: Path) -> dict[str, Any]:
    """Content of ``run.json``."""
    return json_files.record(str(folder / "run.json"), {"key": str}, _ANEW)


def write_run(folder: Path, content: Mapping[str, Any]) -> None:
    """Replaces ``run.json``."""
    storage.write_text(folder / "run.json", json.dumps(content, indent=1))


def explain(error: Exception) -> str:
    """One short line about an error, without credentials."""
    if isinstance(error, ModuleNotFoundError) and error.name == "mlflow":
        return "MLflow is not installed; pip install 'avvp_dist[mlflow]'"
    text = " ".join(redact(str(error)).split())
    advice = f"; {HOW_TO_LOG_IN}" if re.search(r"error code 40[13]\b", text) else ""
    return f"{type(error).__name__}: {text[:200]}{advice}"


def _prepare_run(config: TrackingConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    known = read_run(folder) if (folder / "run.json").is_file() else {"key": uuid.uuid4().hex, "started": _now()}
    names = {"experiment": config.experiment, "run_name": config.run_name, "parent_run": config.parent_run}
    login = {"login": True} if attach(config.uri) else {}  # that it needs credentials, not which
    write_run(folder, {**known, "uri": config.uri, **names, **login})


def _now() -> int:
    return int(time.time() * 1000)
