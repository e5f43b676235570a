"""Sends a run's journals to its tracking server, from the run itself or later by `avvp sync`."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from avvp_dist.errors import DataError
from avvp_dist.storage import json_files
from avvp_dist.storage.user_folders import ensure_home
from avvp_dist.text.credentials import detach
from avvp_dist.tracking.address import HOW_TO_LOG_IN, can_log_in, check_address
from avvp_dist.tracking.base import TrackingConfig
from avvp_dist.tracking.journal import REMEDY, Entry, Journal, explain, journals, read_run

log = logging.getLogger(__name__)
LOCK_TIMEOUT = 60.0


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
    known = json_files.read_object(str(folder / "run.json"), {"key": str, "uri": str}, REMEDY)
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
