"""Sends the journals of a run to the tracking server, from the run itself or later by `avvp sync`."""

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
from avvp_dist.tracking.address import can_log_in, check_address
from avvp_dist.tracking.base import TrackingConfig
from avvp_dist.tracking.errors import HOW_TO_LOG_IN, explain
from avvp_dist.tracking.journal import (
    ARTIFACT_FOLDER,
    LOCK_FILE,
    RUN_FILE,
    RUN_FILE_REMEDY,
    Entry,
    Journal,
    journals,
    pending_entries,
    read_run,
)

LOGGER = logging.getLogger(__name__)
LOCK_TIMEOUT = 60.0  # seconds


class Sink(Protocol):
    """A connection to one run on the tracking server."""

    run_id: str

    def send(self, entries: list[Entry]) -> list[str]:
        """Send all entries, or raise; return a line for each value that the server rejects permanently."""


@dataclass(frozen=True)
class SyncReport:
    """What `sync` did.

    Attributes:
        sent, left: numbers of journal entries.
        run_id: MLflow's id of the run; None if the server was never reached.
        refused: a line for each value that the server rejects permanently.
        error: why entries are left; None if none are.
    """

    sent: int
    left: int
    run_id: str | None
    refused: tuple[str, ...] = ()
    error: str | None = None


class Sender:
    """Sends the two journals of a folder; one process at a time, each batch under the folder's lock.

    Args:
        folder: a run's tracking folder.
        uri: address of the tracking server.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder = folder
        self._uri = uri
        self._values, self._artifacts = journals(folder)
        self._sink: Sink | None = None
        self.run_id: str | None = read_run(folder).get("run_id")
        self.sent = 0
        self.refused: list[str] = []

    def send(self) -> None:
        """Send all entries that the server has not confirmed.

        Raises:
            Exception: any error of the server or the connection; what was confirmed before stays confirmed.
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
        with FileLock(self._folder / LOCK_FILE, timeout=LOCK_TIMEOUT):
            entries, offset = journal.unsent()
            if offset == journal.offset():
                return False
            refused = self._connect().send(entries)
            journal.acknowledge(offset)
        self.sent += len(entries)
        self.refused += refused
        for line in refused:
            LOGGER.warning("the tracking server rejects %s", line)
        for entry in entries:
            if entry["kind"] == "artifact":
                shutil.rmtree(self._folder / ARTIFACT_FOLDER / entry["kept"], ignore_errors=True)
        return True

    def _connect(self) -> Sink:
        if self._sink is None:
            ensure_home()  # MLflow reads the home folder when it is imported
            from avvp_dist.tracking.mlflow import MlflowSink  # takes seconds: imported by the sending thread

            self._sink = MlflowSink(self._folder, self._uri)
            self.run_id = self._sink.run_id
        return self._sink


def sync(folder: Path, uri: str | None = None) -> SyncReport:
    """Send the journal entries of a run that the server has not confirmed.

    Args:
        folder: a run's tracking folder.
        uri: the server, if it is not the one with which the run was started.

    Raises:
        DataError: the folder holds no tracked run, or the server needs credentials, which are never written to disk, and
            this process has none.
        ConfigError: the address can never work.
    """
    if not (folder / RUN_FILE).is_file():
        raise DataError(f"{folder}: no tracked run here ({RUN_FILE} is missing); give the folder named at the run's end")
    run = json_files.read_object(str(folder / RUN_FILE), {"key": str, "uri": str}, RUN_FILE_REMEDY)
    address = detach(uri or run["uri"])
    check_address(TrackingConfig(uri=address))
    needs_login = uri is None and (run.get("login", False) or address != run["uri"])
    if needs_login and not can_log_in(address):
        raise DataError(f"{folder}: the server's address {address} needs its password; {HOW_TO_LOG_IN}")
    sender = Sender(folder, address)
    error = None
    try:
        sender.send()
    except Exception as caught:
        error = explain(caught)
    return SyncReport(sender.sent, pending_entries(folder), sender.run_id, tuple(sender.refused), error)
