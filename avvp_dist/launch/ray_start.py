"""The Ray that a run, a sweep or a packing uses: the cluster of RAY_ADDRESS, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
import socket
from urllib.parse import urlsplit

from avvp_dist.errors import ConfigError, UserError
from avvp_dist.text import credentials

ADVICE = "start the cluster, mend RAY_ADDRESS, or unset it for a Ray of your own"
_LOCKED = "if it asks for a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH unless it is in ~/.ray/auth_token"
_ON_NODES = "set MLFLOW_TRACKING_URI to the whole address, or MLflow's variables for them, in the environment of its nodes"
_SLOW = (
    "see with `avvp doctor timeout=120` what it wants; on a slow or busy machine set RAY_raylet_start_wait_time_s=120, or "
    "train with launch=local"
)
_log = logging.getLogger(__name__)
_PORTS = {"http": 80, "https": 443, "ray": 10001}


def check_reachable(address: str, timeout: float = 5.0) -> str:
    """Knocks at ``address``, since Ray itself waits for minutes where nobody is; returns "RAY_ADDRESS=host:port".

    Raises:
        ConfigError: nobody answers there within ``timeout`` seconds.
    """
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = place.port or _PORTS.get(place.scheme, 6379)
        shown = f"RAY_ADDRESS={place.hostname}:{port}"
        socket.create_connection((place.hostname or "", port), timeout=timeout).close()
    except ValueError as error:
        raise ConfigError(f"RAY_ADDRESS={address}: {error}; {ADVICE}") from error
    except OSError as error:
        raise ConfigError(f"{shown} not reached ({error.strerror or error}); {ADVICE}") from error
    return shown


def start_ray(log_to_driver: bool = True) -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts Ray on this machine.

    Raises:
        ConfigError: there is no such cluster, or it does not let us in.
    """
    import ray  # takes a while, and may not be installed where the doctor asks for `check_reachable`

    address = os.environ.get("RAY_ADDRESS", "local")
    if address not in ("local", "auto"):
        check_reachable(address)
    if credentials.for_children():
        if address == "local":  # its workers inherit this environment; nothing is sent to those of a cluster
            os.environ.update(credentials.for_children())
        else:
            _log.warning("the workers of a cluster do not get the credentials of tracking.uri: %s", _ON_NODES)
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=log_to_driver)
    except Exception as error:  # what Ray's own start ends in is of many classes
        if isinstance(error, UserError) or (address != "local" and not isinstance(error, ConnectionError | RuntimeError)):
            raise
        said = " ".join(str(error).split()).rstrip(".")
        if address == "local":
            raise ConfigError(f"Ray did not start on this machine: {said[:400]}; {_SLOW}") from error
        if isinstance(error, ConnectionError):  # what else it may be, a version of Ray for one, Ray tells well
            said += f"; {ADVICE if address == 'auto' else _LOCKED}"
        raise ConfigError(f"RAY_ADDRESS={address}: {said}") from error
