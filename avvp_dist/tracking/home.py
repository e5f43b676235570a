"""Where a run's tracking files lie: in its folder, or in this machine's cache when that folder is in object storage.

A journal grows line by line, which object storage cannot do. So that such a run goes on, and is sent, from any machine, two
objects lie below ``<output>/tracking``: ``run.json``, which names the run at the server, and, where the end of a run found
the server away, ``unsent.tar`` with the whole folder.
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
from avvp_dist.tracking.journal import journals, read_run, write_run

_log = logging.getLogger(__name__)

_RUN, _UNSENT = "run.json", "unsent.tar"


@dataclass(frozen=True)
class TrackingHome:
    """A run's tracking files.

    Attributes:
        folder: where they are, on this machine.
        url: where a copy belongs when the run's output is elsewhere, else None.
    """

    folder: Path
    url: str | None = None

    def keep(self) -> None:
        """Copies to ``url`` what another machine would need; to be called when nobody writes any more. Never raises."""
        if self.url is None or not (self.folder / _RUN).is_file():
            return
        try:
            if sum(journal.left() for journal in journals(self.folder)):
                storage.write_bytes(storage.join(self.url, _UNSENT), _packed(self.folder))
                _log.warning("what was not sent is kept in %s as well: `avvp sync` of this URL sends it", self.url)
            else:
                storage.remove(storage.join(self.url, _UNSENT))
            storage.write_text(storage.join(self.url, _RUN), json.dumps(read_run(self.folder), indent=1))
        except (AvvpError, OSError) as error:
            _log.warning("tracking files stay in %s alone: %s", self.folder, error)


def open_home(output: str) -> TrackingHome:
    """The tracking files of the run at ``output``: those it has, or new ones.

    Raises:
        AvvpError: object storage cannot be used, or holds something else there.
    """
    here = storage.local_path(output)
    if here is not None:
        return TrackingHome(here / "tracking")
    url = storage.join(output, "tracking")
    known = _known(url)
    if known is None:
        known = {"key": uuid.uuid4().hex, "started": int(time.time() * 1000)}
        storage.write_text(storage.join(url, _RUN), json.dumps(known))
    return _fetched(url, known)


def find_home(run: str) -> TrackingHome:
    """The tracking files of a run: of its output, folder or URL, or the folder of the files itself.

    Raises:
        DataError: there are none.
        AvvpError: object storage cannot be used.
    """
    here = storage.local_path(run)
    if here is not None:
        return TrackingHome(here / "tracking" if (here / "tracking").is_dir() else here)
    urls = (run, storage.join(run, "tracking"))
    found = next(((url, known) for url in urls if (known := _known(url)) is not None), None)
    if found is None:
        raise DataError(f"{run}: no tracked run here (tracking/{_RUN} is missing)")
    return _fetched(*found)


def find_homes(folder: str) -> list[TrackingHome]:
    """The tracking files of a run, or of a sweep and then of its trials, which are nested under it at the server.

    Raises:
        DataError: there are none.
        AvvpError: object storage cannot be used.
    """
    trials = storage.join(folder, "runs")
    below = [storage.join(trials, name) for name in storage.names(trials)]
    tracked = [run for run in below if storage.exists(storage.join(run, "tracking"))]
    return [find_home(run) for run in (folder, *tracked)]


def _known(url: str) -> dict[str, Any] | None:
    """What run.json says; its key becomes the name of a folder."""
    source = storage.join(url, _RUN)
    try:
        content = json.loads(storage.read_bytes(source))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict) or not re.fullmatch(r"[0-9a-f]{32}", str(content.get("key"))):
        raise DataError(f"{source}: not the file of a tracked run; delete it, or choose another output")
    return content


def _fetched(url: str, known: dict[str, Any]) -> TrackingHome:
    folder = user_cache("XDG_CACHE_HOME") / "avvp" / "tracking" / known["key"]
    if not (folder / _RUN).is_file():  # else this machine wrote them, and they are the newest
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(storage.join(url, _UNSENT)))) as tar:
                tar.extractall(folder, filter="data")
        except FileNotFoundError:
            write_run(folder, known)
        except (tarfile.TarError, EOFError) as error:
            source = storage.join(url, _UNSENT)
            raise DataError(f"{source}: cannot be unpacked ({error}); delete it to go on without") from None
    return TrackingHome(folder, url)


def _packed(folder: Path) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            if path.name != "spool.lock":
                tar.add(path, path.name)
    return sink.getvalue()
