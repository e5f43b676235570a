"""What a process knows of the Ray job it runs in, from its environment alone; imports nothing of Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from avvp_dist import storage
from avvp_dist.errors import ConfigError

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # the variable's name; Ray sets it for the entrypoint of a submitted job
_SQLITE = "sqlite:///"
_URL = "give a URL (s3://bucket/folder) or an absolute path that all nodes share"
_BETTER = {"tracking.uri": "give the MLflow server's address, set MLFLOW_TRACKING_URI for the cluster, or tracking=none"}


def submission_id() -> str | None:
    """The job's id as ``ray job list`` shows it, e.g. ``raysubmit_...``; None outside the entrypoint of a submitted job."""
    text = os.environ.get(_CONFIG)
    return json.loads(text).get("metadata", {}).get("job_submission_id") if text else None


def tags() -> dict[str, str]:
    """What a tracked run says of the job that it belongs to; empty outside one."""
    job = submission_id()
    return {"ray_job": job} if job else {}


def refuse_own_folder(places: Mapping[str, str | None]) -> None:
    """Refuses to write where a submitted job's upload was unpacked: Ray deletes it, and other nodes do not see it.

    Args:
        places: folders, URLs or SQLite addresses that are to last, by the setting that names them; None for unset ones.

    Raises:
        ConfigError: names every setting that lies there.
    """
    if submission_id() is None:
        return
    own = Path.cwd().resolve()
    problems = []
    for name, url in places.items():
        here = storage.local_path(url.removeprefix(_SQLITE)) if url and "://" not in url.removeprefix(_SQLITE) else None
        if here is not None and here.resolve().is_relative_to(own):
            problems.append(
                f"{name}={url}: lies in the job's own folder, which ends with the job; {_BETTER.get(name, _URL)}"
            )
    if problems:
        raise ConfigError(problems)
