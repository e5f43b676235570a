"""Connection to an MLflow server or database: plain client calls with an explicit run id.

Imported only by the thread that sends, since importing MLflow takes seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

# `tracking.tracker` retries a failed request, with the whole batch; MLflow's own retries would block it for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from avvp_dist import storage
from avvp_dist.text.credentials import attach, redact
from avvp_dist.tracking.base import SQLITE
from avvp_dist.tracking.journal import ARTIFACT_FOLDER, REFERENCE, Entry, read_run, write_run

KEY_TAG = "avvp.key"  # identifies the run before the server has given it an id, so that it is never created twice
METRICS_PER_REQUEST, PARAMS_PER_REQUEST, TAGS_PER_REQUEST = 1000, 50, 40  # a request must stay below MLflow's 1 MB
PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = 6000, 8000, 250  # MLflow's limits, characters

_LOGIN: list[str] = []  # variables that `_log_in` has set; they must not be sent to another server

for _name in ("mlflow", "alembic"):  # they log tables and retries; the tracker reports what matters
    logging.getLogger(_name).setLevel(logging.ERROR)


class MlflowSink:
    """One run on an MLflow server or in an MLflow database: that of ``folder``, created if it does not exist.

    Args:
        folder: a run's tracking folder.
        uri: address of the server or database.

    Raises:
        MlflowException, OSError: the server cannot be reached, or the run was deleted.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        os.environ.update(storage.settings().mlflow_environment())
        _create_sqlite_store(uri)
        self._client = MlflowClient(tracking_uri=_log_in(uri))
        self._folder = folder
        run = read_run(folder)
        if not run.get("run_id"):
            run["run_id"] = self._find(run, uri)
            write_run(folder, run)
        self.run_id: str = run["run_id"]
        self._check_active()

    def send(self, entries: list[Entry]) -> list[str]:
        """Send all entries, or raise; return a line for each value that MLflow rejects permanently."""
        refused: list[str] = []
        metrics = [
            Metric(_key(key), value, entry["time"], entry["step"])
            for entry in entries
            if entry["kind"] == "metrics"
            for key, value in entry["values"].items()
        ]
        params = {key: Param(_key(key), value[:PARAM_LENGTH]) for key, value in _values(entries, "params")}
        tags = {key: RunTag(_key(key), value[:TAG_LENGTH]) for key, value in _values(entries, "tags")}
        for name, items, size in (
            ("metrics", metrics, METRICS_PER_REQUEST),
            ("params", list(params.values()), PARAMS_PER_REQUEST),
            ("tags", list(tags.values()), TAGS_PER_REQUEST),
        ):
            for first in range(0, len(items), size):
                self._log_batch(name, items[first : first + size], refused)
        for entry in entries:
            if entry["kind"] == "artifact":
                self._log_artifact(entry, refused)
        self._set_status(entries)
        return refused

    def _find(self, run: dict[str, Any], uri: str) -> str:
        experiment_id = _experiment(self._client, run["experiment"], uri)
        # A response may have been lost: the run can exist although its id never arrived.
        for found in self._client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{run['key']}'"):
            return found.info.run_id
        tags = {KEY_TAG: run["key"]}
        if run["parent_run"]:
            tags["mlflow.parentRunId"] = self._parent(run["parent_run"], experiment_id)
        created = self._client.create_run(experiment_id, start_time=run["started"], tags=tags, run_name=run["run_name"])
        return created.info.run_id

    def _parent(self, parent: str, experiment_id: str) -> str:
        """Return the parent's id; a parent that the server does not have yet must be sent first."""
        if not parent.startswith(REFERENCE):
            return parent
        for found in self._client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{parent.removeprefix(REFERENCE)}'"):
            return found.info.run_id
        raise MlflowException("the run under which this one is nested is not on the server yet; send that one first")

    def _check_active(self) -> None:
        """Raise if the run was deleted: it rejects everything, and its entries must stay unsent until it is restored."""
        if self._client.get_run(self.run_id).info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise MlflowException(f"run {self.run_id} was deleted in MLflow; restore it to send the rest")

    def _log_batch(self, name: str, items: Sequence[Any], refused: list[str]) -> None:
        """Send one batch; if MLflow rejects it, find the rejected items by bisection."""
        batch: dict[str, Any] = {name: items}
        try:
            self._client.log_batch(self.run_id, **batch)
        except MlflowException as error:
            if not _is_permanent(error):
                raise
            if len(items) > 1:
                middle = len(items) // 2
                self._log_batch(name, items[:middle], refused)
                self._log_batch(name, items[middle:], refused)
                return
            self._check_active()
            refused.append(redact(f"{name} {items[0].key}: {str(error).splitlines()[0]}"))

    def _log_artifact(self, entry: Entry, refused: list[str]) -> None:
        path = self._folder / ARTIFACT_FOLDER / entry["kept"] / entry["name"]
        if not path.exists():
            refused.append(f"artifact {entry['name']}: its copy {path} is missing")
            return
        try:
            self._client.log_artifact(self.run_id, str(path), entry["folder"] or None)
        except MlflowException as error:
            if not _is_permanent(error):
                raise
            self._check_active()
            refused.append(redact(f"artifact {entry['folder']}/{entry['name']}: {str(error).splitlines()[0]}"))

    def _set_status(self, entries: list[Entry]) -> None:
        changes = [entry for entry in entries if entry["kind"] in ("start", "finish")]
        if not changes:
            return
        last = changes[-1]
        if last["kind"] == "start":
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self._client.set_terminated(self.run_id, last["status"], end_time=last["time"])


def probe(uri: str, experiment: str) -> str:
    """Create a run with a metric and an artifact, read both back and delete it; return a line that describes the result.

    A SQLite file that does not exist is left to the first run; only its folder is checked.

    Raises:
        MlflowException, OSError: the step that failed.
    """
    os.environ.update(storage.settings().mlflow_environment())
    path, started = _sqlite_file(uri), time.monotonic()
    if path and not path.exists():
        folder = next(parent for parent in path.parents if parent.is_dir())
        if not os.access(folder, os.W_OK):
            raise OSError(f"{path} cannot be created: {folder} is not writable")
        return f"{path} is created by the first run"
    address = _log_in(uri)
    client = MlflowClient(tracking_uri=address)
    run = client.create_run(_experiment(client, experiment, uri), run_name="avvp doctor").info
    try:
        client.log_metric(run.run_id, "marker", 1.0)
        client.log_text(run.run_id, "marker", "marker.txt")
        if client.get_run(run.run_id).data.metrics != {"marker": 1.0}:
            raise MlflowException("a metric that was sent could not be read back")
        if not any(found.path == "marker.txt" for found in client.list_artifacts(run.run_id)):
            raise MlflowException(f"an artifact that was sent is missing in {redact(run.artifact_uri)}")
        get_artifact_repository(run.artifact_uri, tracking_uri=address).delete_artifacts()
    finally:
        client.delete_run(run.run_id)
    scheme = urlsplit(run.artifact_uri).scheme or "file"
    if scheme == "file":
        with contextlib.suppress(OSError):
            Path(urlsplit(run.artifact_uri).path).parent.rmdir()
    return f"{redact(uri)}: run and artifact ({scheme}) written, read and deleted in {time.monotonic() - started:.1f} s"


def _log_in(uri: str) -> str:
    """Return the address to connect to: ``uri`` with the credentials that this process or MLFLOW_TRACKING_URI has for it.

    For a server, MLflow's variables hold them, so that no address in a message shows them; a user name alone becomes a token
    if no password is set. For a database they are part of the address.
    """
    for name in _LOGIN:
        os.environ.pop(name, None)
    _LOGIN.clear()
    known = attach(uri)
    if known is None:
        return uri
    if known.scheme.lower() not in ("http", "https"):
        return known.with_secrets()
    if known.user is None:
        return uri
    user, password = unquote(known.user or ""), unquote(known.password or "")
    if password or "MLFLOW_TRACKING_PASSWORD" in os.environ:
        login = {"MLFLOW_TRACKING_USERNAME": user} | ({"MLFLOW_TRACKING_PASSWORD": password} if password else {})
    else:
        login = {"MLFLOW_TRACKING_TOKEN": user}
    _LOGIN.extend(name for name in login if name not in os.environ)
    os.environ.update(login)
    return uri


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    """Return the id of the experiment, created if it does not exist."""
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name, artifact_location=_artifact_location(uri))


def _values(entries: list[Entry], kind: str) -> list[tuple[str, str]]:
    return [item for entry in entries if entry["kind"] == kind for item in entry["values"].items()]


def _key(name: str) -> str:
    """Replace the characters of ``name`` that MLflow does not allow."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:KEY_LENGTH]


def _is_permanent(error: MlflowException) -> bool:
    return error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def _sqlite_file(uri: str) -> Path | None:
    path = Path(uri.removeprefix(SQLITE))
    return path if uri.startswith(SQLITE) and path.is_absolute() else None


def _create_sqlite_store(uri: str) -> None:
    """Create a new store's tables in a temporary file that one process renames.

    Several processes that create them at the same time, or one that is killed, would leave an unusable store.
    """
    path = _sqlite_file(uri)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            new = path.with_name(f"{path.name}.new")
            new.unlink(missing_ok=True)
            MlflowClient(f"{SQLITE}{new}").search_experiments()
            new.replace(path)


def _artifact_location(uri: str) -> str | None:
    """Return the folder of artifacts beside a SQLite store's file; None for a server, which has its own."""
    path = _sqlite_file(uri)
    return (path.parent / "mlartifacts").as_uri() if path else None
