"""Metadata of the Ray job that this process belongs to, from environment variables, without importing ray."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from avvp_dist import storage
from avvp_dist.errors import ConfigError

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # environment variable that Ray sets for the entrypoint of a submitted job
_SQLITE = "sqlite:///"
_REMEDY = "give a URL (s3://bucket/folder) or an absolute path that all nodes share"
_REMEDIES = {"tracking.uri": "give the MLflow server's address, set MLFLOW_TRACKING_URI for the cluster, or tracking=none"}


def submission_id() -> str | None:
    """Return the job's id, e.g. ``raysubmit_...``; None outside the entrypoint of a submitted job."""
    text = os.environ.get(_CONFIG)
    return json.loads(text).get("metadata", {}).get("job_submission_id") if text else None


def tags() -> dict[str, str]:
    """Return the tags of a tracked run about its job; empty outside a job."""
    job = submission_id()
    return {"ray_job": job} if job else {}


def refuse_own_folder(targets: Mapping[str, str | None]) -> None:
    """Refuse to store results in the folder of a submitted job's upload: Ray deletes it, and other nodes cannot see it.

    Args:
        targets: folders, URLs or SQLite addresses of results, by the setting that names them; None for unset ones.

    Raises:
        ConfigError: all settings that point into that folder.
    """
    if submission_id() is None:
        return
    own = Path.cwd().resolve()
    problems = []
    for name, url in targets.items():
        path = storage.local_path(url.removeprefix(_SQLITE)) if url and "://" not in url.removeprefix(_SQLITE) else None
        if path is not None and path.resolve().is_relative_to(own):
            problems.append(
                f"{name}={url}: is in the job's own folder, which is deleted with the job; {_REMEDIES.get(name, _REMEDY)}"
            )
    if problems:
        raise ConfigError(problems)
