"""Interface and config of trackers, which record runs. A tracker that fails never stops or delays training.

Importing this module imports no tracking library; `open_tracker` starts a thread that does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field, PositiveFloat

from avvp_dist import storage
from avvp_dist.config import PathMarker, Section, Text
from avvp_dist.text.credentials import detach

Status = Literal["FINISHED", "FAILED", "KILLED"]
SQLITE = "sqlite:///"
"""Prefix of the URI of a store in a local file."""


def absolute_uri(uri: str) -> str:
    """Make the path of a relative SQLite URI absolute, for workers and commands with another working directory."""
    path = uri.removeprefix(SQLITE)
    return f"{SQLITE}{storage.absolute(path)}" if path != uri and path and not path.startswith(":") else uri


TrackingUri = Annotated[str, AfterValidator(detach), PathMarker(absolute_uri)]
"""Address of a tracking server; a config holds only its scheme, host, port and path (see `credentials.detach`)."""


class TrackingConfig(Section):
    """Tracking server that records the run, and the names used there."""

    name: Literal["mlflow", "none"] = "mlflow"
    """`mlflow`, or `none` to record nothing outside the run folder."""
    uri: TrackingUri = Field(default_factory=lambda: detach(os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"))
    """MLflow tracking URI, by default that of MLFLOW_TRACKING_URI; a relative SQLite path is relative to the folder in which
    the run was started. User name, password or token in it are kept in memory only."""
    experiment: Text = "avvp"
    """MLflow experiment; created if it does not exist."""
    run_name: Text | None = None
    """Name shown in MLflow; null for <recipe>-seed<seed>."""
    parent_run: str | None = None
    """MLflow id of the run under which this one is nested, or the `reference` of a run that the server may not have yet."""
    tags: dict[str, Text] = Field(default_factory=dict)
    """Additional tags of the run, e.g. tracking.tags.team=audio."""
    flush_timeout: PositiveFloat = 30.0
    """Seconds that the end of a run waits for the server; `avvp sync` sends what is left then."""


class Tracker(Protocol):
    """Records one run. No call raises, and none but `finish` waits, whatever the server does."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the server has created it."""

    @property
    def reference(self) -> str | None:
        """Value of ``parent_run`` with which other runs are nested under this one; available immediately."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Record parameters of the run; nested mappings become dotted keys."""

    def tags(self, values: Mapping[str, Any]) -> None:
        """Record facts that may change, e.g. the git commit or the data fingerprint."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a copy of a file or folder as it is now, below ``folder`` of the run's artifacts."""

    def text(self, name: str, content: str) -> None:
        """Record a text as an artifact; ``name`` can contain folders."""

    def finish(self, status: Status) -> None:
        """End the run; wait at most ``flush_timeout`` seconds for entries that are not sent yet."""


class NullTracker:
    """Records nothing: for ranks other than 0, and for ``tracking.name=none``."""

    run_id: str | None = None
    reference: str | None = None

    def params(self, values: Mapping[str, Any]) -> None: ...  # noqa: D102
    def tags(self, values: Mapping[str, Any]) -> None: ...  # noqa: D102
    def metrics(self, values: Mapping[str, float], step: int) -> None: ...  # noqa: D102
    def artifact(self, path: Path, folder: str = "") -> None: ...  # noqa: D102
    def text(self, name: str, content: str) -> None: ...  # noqa: D102
    def finish(self, status: Status) -> None: ...  # noqa: D102


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings: ``{"optim": {"lr": 1e-3}}`` becomes ``{"optim.lr": 1e-3}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
