"""Connects to the cluster of RAY_ADDRESS, or starts Ray on this machine, for a run, a sweep or packing."""

from __future__ import annotations

import logging
import os
import socket
from urllib.parse import urlsplit

from avvp_dist.errors import ConfigError, UserError
from avvp_dist.text import credentials

ADVICE = "start the cluster, correct RAY_ADDRESS, or unset it to start Ray on this machine"
_TOKEN = "if it requires a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH unless it is in ~/.ray/auth_token"
_ON_NODES = "set MLFLOW_TRACKING_URI with the credentials, or MLflow's variables for them, in the environment of its nodes"
_SLOW = (
    "check it with `avvp doctor timeout=120`; on a slow or busy machine set RAY_raylet_start_wait_time_s=120, or "
    "train with launch=local"
)
LOGGER = logging.getLogger(__name__)
_PORTS = {"http": 80, "https": 443, "ray": 10001}


def check_reachable(address: str, timeout: float = 5.0) -> str:
    """Check that a server accepts connections at ``address``; Ray itself would wait for minutes.

    Returns:
        "RAY_ADDRESS=host:port", for messages.

    Raises:
        ConfigError: no connection within ``timeout`` seconds.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port or _PORTS.get(parts.scheme, 6379)
        shown = f"RAY_ADDRESS={parts.hostname}:{port}"
        socket.create_connection((parts.hostname or "", port), timeout=timeout).close()
    except ValueError as error:
        raise ConfigError(f"RAY_ADDRESS={address}: {error}; {ADVICE}") from error
    except OSError as error:
        raise ConfigError(f"{shown}: cannot connect ({error.strerror or error}); {ADVICE}") from error
    return shown


def start_ray(log_to_driver: bool = True) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine.

    Raises:
        ConfigError: the cluster cannot be reached or refuses the connection, or Ray does not start.
    """
    import ray  # slow, and not needed by `check_reachable`, which the doctor uses without ray installed

    address = os.environ.get("RAY_ADDRESS", "local")
    if address not in ("local", "auto"):
        check_reachable(address)
    if credentials.child_environment():
        if address == "local":  # local workers inherit this environment; those of a cluster do not
            os.environ.update(credentials.child_environment())
        else:
            LOGGER.warning("workers of a cluster do not receive the credentials of tracking.uri: %s", _ON_NODES)
    try:
        # on this machine, the dashboard would be a dozen processes that end with the run
        dashboard = False if address == "local" else None
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=log_to_driver, include_dashboard=dashboard)
    except Exception as error:  # Ray's start raises exceptions of many classes
        if isinstance(error, UserError) or (address != "local" and not isinstance(error, ConnectionError | RuntimeError)):
            raise
        message = " ".join(str(error).split()).rstrip(".")
        if address == "local":
            raise ConfigError(f"Ray did not start on this machine: {message[:400]}; {_SLOW}") from error
        if isinstance(error, ConnectionError):  # Ray describes other errors well, e.g. another version
            message += f"; {ADVICE if address == 'auto' else _TOKEN}"
        raise ConfigError(f"RAY_ADDRESS={address}: {message}") from error
