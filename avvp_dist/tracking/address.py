"""Checks the address of a tracking server before a run starts, without importing MLflow.

A server that does not respond is accepted, because entries are sent later. An address that can never work is rejected: the
run would train to its end, and its journal could never be sent.
"""

from __future__ import annotations

import os
import tempfile
from importlib import metadata, util
from pathlib import Path
from urllib.parse import urlsplit

from avvp_dist import storage
from avvp_dist.errors import ConfigError
from avvp_dist.text.credentials import attach
from avvp_dist.text.suggest import did_you_mean
from avvp_dist.tracking.base import SQLITE, TrackingConfig, absolute_uri

_LOGIN_VARIABLES = {"postgresql": ("PGPASSWORD",), "mysql": ("MYSQL_PWD",)}
_SERVER_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_DRIVERS = {"postgresql": "psycopg2", "mysql": "pymysql", "mssql": "pymssql"}  # database -> the driver to suggest
_SERVERS = ("http", "https")
_DATABRICKS = ("databricks", "databricks-uc")
_SQLITE_MAGIC = b"SQLite format 3\0"
_EXAMPLES = "http://SERVER:5000, sqlite:///PATH/mlflow.db, or postgresql+psycopg2://SERVER/DATABASE"


def check_address(config: TrackingConfig) -> None:
    """Reject an address that can never work.

    Raises:
        ConfigError: what is wrong with ``tracking.uri``; or MLflow is not installed although a server is configured.
    """
    if config.name == "none":
        return
    uri = config.uri
    problem = _problem(uri)
    if problem is None and util.find_spec("mlflow") is None and _is_configured(uri):
        problem = "MLflow is not installed; pip install 'avvp_dist[mlflow]', or tracking=none"
    if problem:
        raise ConfigError(f"tracking.uri={uri}: {problem}")


def can_log_in(uri: str) -> bool:
    """Whether this process has credentials for an address, from the whole address or from environment variables."""
    variables = _LOGIN_VARIABLES.get(uri.partition(":")[0].partition("+")[0].lower(), _SERVER_VARIABLES)
    return attach(uri) is not None or any(name in os.environ for name in variables)


def _is_configured(uri: str) -> bool:
    """Whether the user chose this address; the default store is optional."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or uri != absolute_uri(f"{SQLITE}mlflow.db")


def _problem(uri: str) -> str | None:
    if uri in _DATABRICKS:
        return None
    scheme, separator, _ = uri.partition(":")
    database, _, driver = scheme.lower().partition("+")
    if not separator or scheme.lower() == "file" or len(scheme) == 1:
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
            return None
        return f"MLflow no longer stores runs in folders; give the address of a server or database: {_EXAMPLES}"
    if scheme.lower() in _SERVERS:
        return _server_problem(uri)
    if database == "sqlite":
        return _sqlite_problem(uri)
    if database in _DRIVERS:
        return _driver_problem(scheme.lower(), database, driver)
    known = [*_SERVERS, "sqlite", *_DRIVERS, *_DATABRICKS, *_plugins()]
    if database in known:
        return None
    hint = did_you_mean(database, known, ";")
    return f"MLflow does not support the scheme {scheme!r}{hint} Supported schemes: {', '.join(known)}"


def _plugins() -> list[str]:
    """Schemes of stores that other packages provide."""
    return sorted(point.name for point in metadata.entry_points(group="mlflow.tracking_store"))


def _server_problem(uri: str) -> str | None:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:  # its text repeats the address
        return "host and port cannot be read; give an address such as http://SERVER:5000"
    if not host:
        return "has no host; give an address such as http://SERVER:5000"
    whole = attach(uri)  # with the parts that a config does not hold
    if parts.query or (whole and (whole.query or whole.fragment)):
        return "a server's address has no query and no fragment; set MLFLOW_TRACKING_TOKEN for a token"
    return None


def _driver_problem(scheme: str, database: str, driver: str) -> str | None:
    if util.find_spec("sqlalchemy") is None:  # a dependency of MLflow
        return "MLflow is not installed; pip install 'avvp_dist[mlflow]', or tracking=none"
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    suggested = _DRIVERS[database]
    try:
        make_url(f"{scheme}://").get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        other = "" if driver else f", or choose another driver: {database}+{suggested}://..."
        return f"its driver is missing ({error}); pip install it{other}"
    except (NoSuchModuleError, ArgumentError, ValueError):
        return f"SQLAlchemy has no driver {driver!r} for {database}; give an address such as {database}+{suggested}://..."
    return None


def _sqlite_problem(uri: str) -> str | None:
    location = uri.partition("://")[2].partition("?")[0]
    if not location.startswith("/"):
        return f"the path must follow three slashes: {SQLITE}PATH/mlflow.db"
    name = location[1:]
    path = Path(storage.absolute(name)) if name and not name.startswith(":") else None
    if path is None:  # in memory
        return None
    try:
        if path.exists():
            return _file_problem(path)
        folder = next(parent for parent in path.parents if parent.exists())
        if not folder.is_dir():
            return f"{path} cannot be created: {folder} is not a folder"
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"{path} cannot be used: {error.strerror or error}; give another path, or tracking=none"
    return None


def _file_problem(path: Path) -> str | None:
    if not path.is_file():
        return f"{path} is not a file, and so not a SQLite database; give the path of a file"
    with path.open("rb+") as handle:
        head = handle.read(len(_SQLITE_MAGIC))
    if head and head != _SQLITE_MAGIC:
        return f"{path} is not a SQLite database; give the path of one, or of a file that does not exist yet"
    tempfile.TemporaryFile(dir=path.parent).close()  # SQLite writes its own journal beside the file
    return None
