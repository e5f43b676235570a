"""Where a run is written down. Write-only: a tracker that fails never stops or delays training.

Importing this module imports no tracking library; `open_tracker` starts a thread that does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field, PositiveFloat

from avvp_dist import storage
from avvp_dist.config import PathMarker, Section, Text
from avvp_dist.text.credentials import detach

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
SQLITE = "sqlite:///"
"""What the URI of a store in a local file begins with."""


def absolute_uri(uri: str) -> str:
    """``uri`` with a relative SQLite path made absolute, for workers and commands that run elsewhere."""
    path = uri.removeprefix(SQLITE)
    return f"{SQLITE}{storage.absolute(path)}" if path != uri and path and not path.startswith(":") else uri


TrackingUri = Annotated[str, AfterValidator(detach), PathMarker(absolute_uri)]
"""Address of a tracking server; what a config holds of it are scheme, host, port and path (see `credentials.detach`)."""


class TrackingConfig(Section):
    """Which tracking server keeps the run, and under which names."""

    name: Literal["mlflow", "none"] = "mlflow"
    """`mlflow`, or `none` to keep nothing beyond the run folder."""
    uri: TrackingUri = Field(default_factory=lambda: detach(os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"))
    """MLflow tracking URI, by default that of MLFLOW_TRACKING_URI; a relative SQLite path counts from the folder in which
    the run was started. User name, password or token in it are kept in memory alone."""
    experiment: Text = "avvp"
    """MLflow experiment; made when it is not there."""
    run_name: Text | None = None
    """Name shown in MLflow; null for <recipe>-seed<seed>."""
    parent_run: str | None = None
    """MLflow run id under which this run is nested, or the `reference` of a run that no server may have seen yet."""
    tags: dict[str, Text] = Field(default_factory=dict)
    """Tags of the run beside our own, e.g. tracking.tags.team=audio."""
    flush_timeout: PositiveFloat = 30.0
    """Seconds the end of a run waits for the server; what is left then waits for `avvp sync`."""


class Tracker(Protocol):
    """What a run tells about itself. No call raises or waits, whatever the server does."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None as long as no server has seen it."""

    @property
    def reference(self) -> str | None:
        """What other runs give as ``parent_run`` to be nested under this one; known at once."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings of the run; nested mappings become dotted keys."""

    def tags(self, values: Mapping[str, Any]) -> None:
        """Facts that may change, e.g. the git commit or the data fingerprint."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at one step."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or folder as it is now, kept below ``folder`` of the run's artifacts."""

    def text(self, name: str, content: str) -> None:
        """A text artifact; ``name`` may carry folders."""

    def finish(self, status: Status) -> None:
        """Ends the run; waits at most ``flush_timeout`` seconds for what is not sent yet."""


class NullTracker:
    """Keeps nothing: ranks other than 0, and ``tracking.name=none``."""

    run_id: str | None = None
    reference: str | None = None

    def params(self, values: Mapping[str, Any]) -> None: ...  # noqa: D102
    def tags(self, values: Mapping[str, Any]) -> None: ...  # noqa: D102
    def metrics(self, values: Mapping[str, float], step: int) -> None: ...  # noqa: D102
    def artifact(self, path: Path, folder: str = "") -> None: ...  # noqa: D102
    def text(self, name: str, content: str) -> None: ...  # noqa: D102
    def finish(self, status: Status) -> None: ...  # noqa: D102


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim": {"lr": 1e-3}}`` as ``{"optim.lr": 1e-3}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
