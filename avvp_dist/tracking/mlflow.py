"""The tracking server: plain MLflow client calls with an explicit run id.

Imported by the sending thread only, since importing MLflow takes seconds.
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

# A request that fails is retried by the spool, with the whole batch; MLflow's own retries would hold it for minutes.
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
from avvp_dist.tracking.journal import REFERENCE, Entry, read_run, write_run

KEY_TAG = "avvp.key"  # names the run before the server has given it an id, so that it is never made twice
METRICS, PARAMS, TAGS = 1000, 50, 40  # of one request, which must stay below MLflow's 1 MB
PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = 6000, 8000, 250  # MLflow's limits

_LOGIN: list[str] = []  # variables that `_log_in` has set: another server must not get them

for _name in ("mlflow", "alembic"):  # they tell of tables and retries; what matters is reported by the spool
    logging.getLogger(_name).setLevel(logging.ERROR)


class MlflowSink:
    """One run at an MLflow server or in an MLflow database; finds the run of ``folder`` or makes it.

    Raises:
        MlflowException, OSError: not reachable, or the run was deleted.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        os.environ.update(storage.settings().mlflow_environment())
        _make_sqlite_store(uri)
        self._client = MlflowClient(tracking_uri=_log_in(uri))
        self._folder = folder
        run = read_run(folder)
        if not run.get("run_id"):
            run["run_id"] = self._find(run, uri)
            write_run(folder, run)
        self.run_id: str = run["run_id"]
        self._check_active()

    def send(self, entries: list[Entry]) -> list[str]:
        """Sends all entries, or raises; returns a line for each value that MLflow refuses for good."""
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
            ("metrics", metrics, METRICS),
            ("params", list(params.values()), PARAMS),
            ("tags", list(tags.values()), TAGS),
        ):
            for first in range(0, len(items), size):
                self._log(name, items[first : first + size], refused)
        for entry in entries:
            if entry["kind"] == "artifact":
                self._log_artifact(entry, refused)
        self._set_status(entries)
        return refused

    def _find(self, run: dict[str, Any], uri: str) -> str:
        experiment_id = _experiment(self._client, run["experiment"], uri)
        # An answer may have been lost on the way: the run can be there although its id never came back.
        for found in self._client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{run['key']}'"):
            return found.info.run_id
        tags = {KEY_TAG: run["key"]}
        if run["parent_run"]:
            tags["mlflow.parentRunId"] = self._parent(run["parent_run"], experiment_id)
        created = self._client.create_run(experiment_id, start_time=run["started"], tags=tags, run_name=run["run_name"])
        return created.info.run_id

    def _parent(self, parent: str, experiment_id: str) -> str:
        """The parent's id; one that the server has not seen yet has to be sent first."""
        if not parent.startswith(REFERENCE):
            return parent
        for found in self._client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{parent.removeprefix(REFERENCE)}'"):
            return found.info.run_id
        raise MlflowException("the run under which this one is nested has not reached the server yet; send that one first")

    def _check_active(self) -> None:
        """A deleted run refuses everything; its entries must stay unsent until it is restored."""
        if self._client.get_run(self.run_id).info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise MlflowException(f"run {self.run_id} was deleted in MLflow; restore it to send the rest")

    def _log(self, name: str, items: Sequence[Any], refused: list[str]) -> None:
        """Sends one batch; when MLflow refuses it, finds the items to blame by halving."""
        batch: dict[str, Any] = {name: items}
        try:
            self._client.log_batch(self.run_id, **batch)
        except MlflowException as error:
            if not _is_permanent(error):
                raise
            if len(items) > 1:
                middle = len(items) // 2
                self._log(name, items[:middle], refused)
                self._log(name, items[middle:], refused)
                return
            self._check_active()
            refused.append(redact(f"{name} {items[0].key}: {str(error).splitlines()[0]}"))

    def _log_artifact(self, entry: Entry, refused: list[str]) -> None:
        path = self._folder / "artifacts" / entry["kept"] / entry["name"]
        if not path.exists():
            refused.append(f"artifact {entry['name']}: its copy {path} is gone")
            return
        try:
            self._client.log_artifact(self.run_id, str(path), entry["folder"] or None)
        except MlflowException as error:
            if not _is_permanent(error):
                raise
            self._check_active()
            refused.append(redact(f"artifact {entry['folder']}/{entry['name']}: {str(error).splitlines()[0]}"))

    def _set_status(self, entries: list[Entry]) -> None:
        marks = [entry for entry in entries if entry["kind"] in ("start", "finish")]
        if not marks:
            return
        last = marks[-1]
        if last["kind"] == "start":
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self._client.set_terminated(self.run_id, last["status"], end_time=last["time"])


def probe(uri: str, experiment: str) -> str:
    """Makes a run with a value and an artifact, reads both back and deletes it; returns what that showed.

    A SQLite file that is not there is left to the first run: its folder is looked at, no more.

    Raises:
        MlflowException, OSError: what did not work.
    """
    os.environ.update(storage.settings().mlflow_environment())
    path, started = _sqlite_file(uri), time.monotonic()
    if path and not path.exists():
        folder = next(parent for parent in path.parents if parent.is_dir())
        if not os.access(folder, os.W_OK):
            raise OSError(f"{path} cannot be made: {folder} is not writable")
        return f"{path} is made by the first run"
    address = _log_in(uri)
    client = MlflowClient(tracking_uri=address)
    run = client.create_run(_experiment(client, experiment, uri), run_name="avvp doctor").info
    try:
        client.log_metric(run.run_id, "marker", 1.0)
        client.log_text(run.run_id, "marker", "marker.txt")
        if client.get_run(run.run_id).data.metrics != {"marker": 1.0}:
            raise MlflowException("a value that was sent did not come back")
        if not any(found.path == "marker.txt" for found in client.list_artifacts(run.run_id)):
            raise MlflowException(f"an artifact that was sent is not in {redact(run.artifact_uri)}")
        get_artifact_repository(run.artifact_uri, tracking_uri=address).delete_artifacts()
    finally:
        client.delete_run(run.run_id)
    place = urlsplit(run.artifact_uri).scheme or "file"
    if place == "file":
        with contextlib.suppress(OSError):
            Path(urlsplit(run.artifact_uri).path).parent.rmdir()
    return f"{redact(uri)}: run and artifact ({place}) written, read and deleted in {time.monotonic() - started:.1f} s"


def _log_in(uri: str) -> str:
    """The address to connect to: ``uri`` with the credentials that this process, or MLFLOW_TRACKING_URI, knows for it.

    A server gets them from MLflow's variables, so that they stand in no address that a message may show; of a user name
    alone, a token is made where no password is set beside it. A database's address takes them.
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
    """Id of the experiment, made when it is not there."""
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name, artifact_location=_artifact_location(uri))


def _values(entries: list[Entry], kind: str) -> list[tuple[str, str]]:
    return [item for entry in entries if entry["kind"] == kind for item in entry["values"].items()]


def _key(name: str) -> str:
    """``name`` with the characters that MLflow does not take replaced."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:KEY_LENGTH]


def _is_permanent(error: MlflowException) -> bool:
    return error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def _sqlite_file(uri: str) -> Path | None:
    path = Path(uri.removeprefix(SQLITE))
    return path if uri.startswith(SQLITE) and path.is_absolute() else None


def _make_sqlite_store(uri: str) -> None:
    """A new store's tables, made aside by one process: several at once, or one that is killed, leave MLflow's unusable."""
    path = _sqlite_file(uri)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            aside = path.with_name(f"{path.name}.new")
            aside.unlink(missing_ok=True)
            MlflowClient(f"{SQLITE}{aside}").search_experiments()
            aside.replace(path)


def _artifact_location(uri: str) -> str | None:
    """Artifacts of a SQLite store lie beside its file, wherever their writer runs; a server decides for itself."""
    path = _sqlite_file(uri)
    return (path.parent / "mlartifacts").as_uri() if path else None
