"""Location of a run's tracking files: its output folder, or this machine's cache if the output is in object storage.

A journal grows line by line, which objects cannot. Two objects below ``<output>/tracking`` let any machine continue such a
run and send its entries: ``run.json``, which identifies the run on the server, and, if the server was unavailable at the end
of the run, ``unsent.tar`` with the whole folder.
"""

from __future__ import annotations

import io
import json
import logging
import re
import tarfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avvp_dist import storage
from avvp_dist.errors import AvvpError, DataError
from avvp_dist.storage.user_folders import user_cache
from avvp_dist.tracking.journal import LOCK_FILE, RUN_FILE, pending_entries, read_run, write_run

LOGGER = logging.getLogger(__name__)

_UNSENT = "unsent.tar"


@dataclass(frozen=True)
class TrackingHome:
    """A run's tracking files.

    Attributes:
        folder: their folder on this machine.
        url: URL of the copy if the run's output is in object storage, else None.
    """

    folder: Path
    url: str | None = None

    def keep(self) -> None:
        """Copy to ``url`` what another machine needs. Call it after the last write. Never raises."""
        if self.url is None or not (self.folder / RUN_FILE).is_file():
            return
        try:
            if pending_entries(self.folder):
                storage.write_bytes(storage.join(self.url, _UNSENT), _pack(self.folder))
                LOGGER.warning(
                    "entries that were not sent are also stored in %s; `avvp sync` of this URL sends them", self.url
                )
            else:
                storage.remove(storage.join(self.url, _UNSENT))
            storage.write_text(storage.join(self.url, RUN_FILE), json.dumps(read_run(self.folder), indent=1))
        except (AvvpError, OSError) as error:
            LOGGER.warning("tracking files are in %s only: %s", self.folder, error)


def open_home(output: str) -> TrackingHome:
    """Return the tracking files of the run at ``output``: the existing ones, or new ones.

    Raises:
        AvvpError: object storage cannot be used, or another kind of object is stored there.
    """
    local = storage.local_path(output)
    if local is not None:
        return TrackingHome(local / "tracking")
    url = storage.join(output, "tracking")
    run = _read_remote(url)
    if run is None:
        run = {"key": uuid.uuid4().hex, "started": int(time.time() * 1000)}
        storage.write_text(storage.join(url, RUN_FILE), json.dumps(run))
    return _fetch(url, run)


def find_home(run: str) -> TrackingHome:
    """Return the tracking files of a run.

    Args:
        run: output of the run, a folder or URL, or the folder of the tracking files itself.

    Raises:
        DataError: there are none.
        AvvpError: object storage cannot be used.
    """
    local = storage.local_path(run)
    if local is not None:
        return TrackingHome(local / "tracking" if (local / "tracking").is_dir() else local)
    urls = (run, storage.join(run, "tracking"))
    found = next(((url, content) for url in urls if (content := _read_remote(url)) is not None), None)
    if found is None:
        raise DataError(f"{run}: no tracked run here (tracking/{RUN_FILE} is missing)")
    return _fetch(*found)


def find_homes(folder: str) -> list[TrackingHome]:
    """Return the tracking files of a run, or of a sweep followed by its trials, which are nested under it on the server.

    Raises:
        DataError: there are none.
        AvvpError: object storage cannot be used.
    """
    trials = storage.join(folder, "runs")
    below = [storage.join(trials, name) for name in storage.names(trials)]
    tracked = [run for run in below if storage.exists(storage.join(run, "tracking"))]
    return [find_home(run) for run in (folder, *tracked)]


def _read_remote(url: str) -> dict[str, Any] | None:
    """Return the content of run.json, or None if there is none; its key becomes the name of a folder."""
    source = storage.join(url, RUN_FILE)
    try:
        content = json.loads(storage.read_bytes(source))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict) or not re.fullmatch(r"[0-9a-f]{32}", str(content.get("key"))):
        raise DataError(f"{source}: not the file of a tracked run; delete it, or choose another output")
    return content


def _fetch(url: str, run: dict[str, Any]) -> TrackingHome:
    """Return the local copy of the files at ``url``, fetched if this machine has none."""
    folder = user_cache("XDG_CACHE_HOME") / "avvp" / "tracking" / run["key"]
    if not (folder / RUN_FILE).is_file():  # otherwise this machine wrote them, and they are the newest
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(storage.join(url, _UNSENT)))) as tar:
                tar.extractall(folder, filter="data")
        except FileNotFoundError:
            write_run(folder, run)
        except (tarfile.TarError, EOFError) as error:
            source = storage.join(url, _UNSENT)
            raise DataError(f"{source}: cannot be unpacked ({error}); delete it to continue without it") from None
    return TrackingHome(folder, url)


def _pack(folder: Path) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            if path.name != LOCK_FILE:
                tar.add(path, path.name)
    return sink.getvalue()
