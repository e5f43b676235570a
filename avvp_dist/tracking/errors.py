"""Errors of tracking servers, as one line for a log or a message."""

from __future__ import annotations

import re

from avvp_dist.text.credentials import redact

HOW_TO_LOG_IN = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN (for PostgreSQL PGUSER and "
    "PGPASSWORD), or give the whole address again, as MLFLOW_TRACKING_URI or with --uri"
)


def explain(error: Exception) -> str:
    """Return one short line about an error, without credentials."""
    if isinstance(error, ModuleNotFoundError) and error.name == "mlflow":
        return "MLflow is not installed; pip install 'avvp_dist[mlflow]'"
    text = " ".join(redact(str(error)).split())
    advice = f"; {HOW_TO_LOG_IN}" if re.search(r"error code 40[13]\b", text) else ""
    return f"{type(error).__name__}: {text[:200]}{advice}"
