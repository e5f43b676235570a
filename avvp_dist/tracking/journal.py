"""The journal of a run: what its tracker recorded, on disk before it is sent to the tracking server.

Every call of a tracker appends one line to a journal in the run's folder and returns. `tracking.sender` sends the lines and
stores how many bytes the server has confirmed. A slow or unavailable server, or a killed process, therefore delays nothing
and loses nothing.

Files in the folder:
    run.json                        server, experiment and run (with its MLflow id once the server has created it)
    spool.jsonl, artifacts.jsonl    the two journals; a broken artifact store does not hold up metrics
    spool.sent, artifacts.sent      bytes of each journal that the server has confirmed
    artifacts/                      copies of artifacts that are still to be sent
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avvp_dist import storage
from avvp_dist.storage import json_files
from avvp_dist.text.credentials import redact_all

LOGGER = logging.getLogger(__name__)

RUN_FILE, LOCK_FILE, ARTIFACT_FOLDER = "run.json", "spool.lock", "artifacts"
BATCH_BYTES = 1 << 20
REFERENCE = "key:"
"""Prefix of a ``parent_run`` that is the key of a run in its ``run.json`` rather than an MLflow id."""
RUN_FILE_REMEDY = "delete the tracking folder to track the run as a new one"

Entry = dict[str, Any]


class Journal:
    """A file of JSON lines, with the number of bytes that the server has confirmed.

    Args:
        path: the file, created by the first `append`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sent = path.with_suffix(".sent")
        self._guard = threading.Lock()
        self._torn = self._ends_torn()

    def append(self, entry: Entry) -> None:
        """Append one line, without credentials; it survives the death of this process.

        Raises:
            OSError: the line could not be written completely.
        """
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
        """Return the next complete lines, about `BATCH_BYTES` of them, and the offset at which they end."""
        offset = self.offset()
        if not self._path.is_file():
            return [], offset
        with self._path.open("rb") as handle:
            handle.seek(offset)
            lines = [line for line in handle.readlines(BATCH_BYTES) if line.endswith(b"\n")]
        entries = [self._parse(line) for line in lines]
        return [entry for entry in entries if entry is not None], offset + sum(map(len, lines))

    def offset(self) -> int:
        """Return the number of bytes that the server has confirmed."""
        return int(self._sent.read_text()) if self._sent.is_file() else 0

    def acknowledge(self, offset: int) -> None:
        """Store that the server has confirmed everything before ``offset``."""
        storage.write_text(self._sent, str(offset))

    def pending(self) -> int:
        """Return the number of lines that the server has not confirmed."""
        if not self._path.is_file():
            return 0
        with self._path.open("rb") as handle:
            handle.seek(self.offset())
            return sum(1 for line in handle if line.endswith(b"\n") and line.strip())

    def _ends_torn(self) -> bool:
        """Whether the last line is incomplete because its writer was killed."""
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
            LOGGER.warning("%s: left out an incomplete line of a process that was killed: %.80r", self._path, line)
            return None


def journals(folder: Path) -> tuple[Journal, Journal]:
    """Return the two journals of a folder: values, and artifacts."""
    return Journal(folder / "spool.jsonl"), Journal(folder / "artifacts.jsonl")


def pending_entries(folder: Path) -> int:
    """Return the number of entries in both journals of a folder that the server has not confirmed."""
    return sum(journal.pending() for journal in journals(folder))


def read_run(folder: Path) -> dict[str, Any]:
    """Return the content of ``run.json``.

    Raises:
        DataError: it cannot be read or lacks the run's key.
    """
    return json_files.read_object(str(folder / RUN_FILE), {"key": str}, RUN_FILE_REMEDY)


def write_run(folder: Path, content: Mapping[str, Any]) -> None:
    """Replace ``run.json``."""
    storage.write_text(folder / RUN_FILE, json.dumps(content, indent=1))
