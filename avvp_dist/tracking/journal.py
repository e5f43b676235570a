"""Write first, send later: a run's own journal, and the thread that carries it to the tracking server.

Every call of a tracker appends one line to a journal in the run's folder and returns. A daemon thread sends the lines and
notes how far it got, so a server that is down, a slow one, or a killed process delays nothing and loses nothing.

Files in the folder:
    run.json                                    which server, experiment and run (its id once the server has given one)
    spool.jsonl, artifacts.jsonl               what was told; two journals, so that a broken artifact store stops no metrics
    spool.sent, artifacts.sent                 bytes of each journal that the server has confirmed
    artifacts/                                  copies of artifacts that are still to be sent
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avvp_dist import storage
from avvp_dist.storage import json_files
from avvp_dist.text.credentials import redact, redact_all
from avvp_dist.tracking.address import HOW_TO_LOG_IN

log = logging.getLogger(__name__)
BATCH_BYTES = 1 << 20
REFERENCE = "key:"  # begins a parent_run that is a run's own key and no id of MLflow's
REMEDY = "delete the tracking folder to track the run anew"
Entry = dict[str, Any]


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


def journals(folder: Path) -> tuple[Journal, Journal]:
    """Values and artifacts."""
    return Journal(folder / "spool.jsonl"), Journal(folder / "artifacts.jsonl")


def read_run(folder: Path) -> dict[str, Any]:
    """Content of ``run.json``."""
    return json_files.read_object(str(folder / "run.json"), {"key": str}, REMEDY)


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
