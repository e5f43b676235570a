"""Whether the address of a tracking server can work at all, found out before a run starts; imports no MLflow.

A server that does not answer is no reason to refuse: what it misses is sent later. An address that no server and no database
can ever have is one, since a run would train to its end and its journal could never be sent.
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
HOW_TO_LOG_IN = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN (for PostgreSQL PGUSER and "
    "PGPASSWORD), or give the whole address again, as MLFLOW_TRACKING_URI or with --uri"
)

_DRIVERS = {"postgresql": "psycopg2", "mysql": "pymysql", "mssql": "pymssql"}  # database -> the driver to suggest
_SERVERS = ("http", "https")
_DATABRICKS = ("databricks", "databricks-uc")
_MAGIC = b"SQLite format 3\0"
_EXAMPLES = "http://SERVER:5000, sqlite:///PATH/mlflow.db, or postgresql+psycopg2://SERVER/DATABASE"


def check_address(config: TrackingConfig) -> None:
    """Refuses a run whose tracking can never work.

    Raises:
        ConfigError: what is wrong with ``tracking.uri``, or MLflow is not installed and a server is named.
    """
    if config.name == "none":
        return
    uri = config.uri
    problem = _problem(uri)
    if problem is None and util.find_spec("mlflow") is None and _named(uri):
        problem = "MLflow is not installed; pip install 'avvp_dist[mlflow]', or tracking=none"
    if problem:
        raise ConfigError(f"tracking.uri={uri}: {problem}")


def can_log_in(uri: str) -> bool:
    """Whether this process has credentials for an address: those of the whole address, or in variables of their own."""
    variables = _LOGIN_VARIABLES.get(uri.partition(":")[0].partition("+")[0].lower(), _SERVER_VARIABLES)
    return attach(uri) is not None or any(name in os.environ for name in variables)


def _named(uri: str) -> bool:
    """Whether somebody asked for this place, which is not where runs are kept without a word."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or uri != absolute_uri(f"{SQLITE}mlflow.db")


def _problem(uri: str) -> str | None:
    if uri in _DATABRICKS:
        return None
    scheme, separator, _ = uri.partition(":")
    database, _, driver = scheme.lower().partition("+")
    if not separator or scheme.lower() == "file" or len(scheme) == 1:
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
            return None
        return f"MLflow keeps no runs in folders any more; give the address of a server or database: {_EXAMPLES}"
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
    return f"MLflow knows no scheme {scheme!r}{hint} Known are {', '.join(known)}"


def _plugins() -> list[str]:
    """Schemes of stores that other packages bring."""
    return sorted(point.name for point in metadata.entry_points(group="mlflow.tracking_store"))


def _server_problem(uri: str) -> str | None:
    try:
        place = urlsplit(uri)
        host, _ = place.hostname, place.port
    except ValueError:  # which repeats what stands there
        return "host and port cannot be read; give it like http://SERVER:5000"
    if not host:
        return "names no host; give it like http://SERVER:5000"
    given = attach(uri)  # which has the parts that are kept out of a config
    if place.query or (given and (given.query or given.fragment)):
        return "a server's address has no query and no fragment; a token goes into MLFLOW_TRACKING_TOKEN"
    return None


def _driver_problem(scheme: str, database: str, driver: str) -> str | None:
    if util.find_spec("sqlalchemy") is None:  # comes with MLflow
        return "MLflow is not installed; pip install 'avvp_dist[mlflow]', or tracking=none"
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    better = _DRIVERS[database]
    try:
        make_url(f"{scheme}://").get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        other = "" if driver else f", or name another driver: {database}+{better}://..."
        return f"its driver is missing ({error}); pip install it{other}"
    except (NoSuchModuleError, ArgumentError, ValueError):
        return f"SQLAlchemy knows no driver {driver!r} for {database}; give it like {database}+{better}://..."
    return None


def _sqlite_problem(uri: str) -> str | None:
    found = uri.partition("://")[2].partition("?")[0]
    if not found.startswith("/"):
        return f"a path follows after three slashes: {SQLITE}PATH/mlflow.db"
    path = Path(storage.absolute(found[1:])) if found[1:] and not found[1:].startswith(":") else None
    if path is None:  # in memory
        return None
    try:
        if path.exists():
            return _file_problem(path)
        folder = next(parent for parent in path.parents if parent.exists())
        if not folder.is_dir():
            return f"{path} cannot be made: {folder} is no folder"
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"{path} cannot be used: {error.strerror or error}; give another path, or tracking=none"
    return None


def _file_problem(path: Path) -> str | None:
    if not path.is_file():
        return f"{path} is no file, so no SQLite database; give the path of a file"
    with path.open("rb+") as handle:
        head = handle.read(len(_MAGIC))
    if head and head != _MAGIC:
        return f"{path} is no SQLite database; give the path of one, or of a file that is not there yet"
    tempfile.TemporaryFile(dir=path.parent).close()  # SQLite keeps its own journal beside the file
    return None
