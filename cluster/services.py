"""The services of a cluster on one machine: S3, MLflow, a Ray head and Ray nodes, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import psutil

BUCKET = "avvp"
_HEAD = "10.77.0.1"  # addresses of nodes, on the loopback interface of a network namespace
_GCS, _POSTGRES = 6379, 5432
_START_SECONDS = 240.0
_REMOVED = ("RAY_", "AWS_", "MLFLOW_", "AVVP_")
_KEYS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local-secret", "AWS_DEFAULT_REGION": "us-east-1"}


class ClusterError(Exception):
    """The cluster cannot be started or used; the message says why."""


class Ports(NamedTuple):
    """Ports on 127.0.0.1."""

    dashboard: int = 8265
    s3: int = 9000
    mlflow: int = 5000


class Cluster:
    """Starts and ends the services; must be used inside a separate network namespace (`local.enter_namespaces`).

    Args:
        folder: folder for logs, tokens and databases; its path must be short, because it contains Unix sockets.
        ports: ports of dashboard, S3 and MLflow for clients.
        settings: environment variables of all Ray nodes, in addition to those that every cluster needs.
    """

    def __init__(self, folder: Path, ports: Ports, settings: dict[str, str] | None = None) -> None:
        self.folder, self.ports = folder, ports
        self.database = ""
        self._settings = settings or {}
        self._token = folder / "token"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self._token.touch(mode=0o600)
        self._token.write_text(secrets.token_hex(32))
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._processes)):
            self.kill(name)

    def start(self, workers: int, cpus: int) -> None:
        """Start S3, MLflow, the head and ``workers`` nodes with ``cpus`` CPUs each; returns when all are ready."""
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        self._start_s3()
        self._start_mlflow()
        self._start_ray("head", _HEAD, 0, "--head", f"--port={_GCS}", "--include-dashboard=true",
                        "--dashboard-host=127.0.0.1", f"--dashboard-port={self.ports.dashboard}")  # fmt: skip
        self._wait("head", lambda: self.alive_nodes() >= 1)
        for number in range(1, workers + 1):
            self.start_node(f"worker-{number}", cpus)
        self._wait("worker-1", lambda: self.alive_nodes() == workers + 1)
        self._wait("mlflow", lambda: self._answers(f"http://127.0.0.1:{self.ports.mlflow}/health"))

    def start_node(self, name: str, cpus: int) -> None:
        """Start another Ray node at the `address` of its name; `alive_nodes` shows when it has joined."""
        self._start_ray(name, self.address(name), cpus, f"--address={_HEAD}:{_GCS}")

    def address(self, name: str) -> str:
        """Return the address of node ``worker-N``."""
        return f"10.77.0.{int(name.removeprefix('worker-')) + 1}"

    def kill(self, name: str) -> None:
        """Kill all processes of a service immediately, as if its machine lost power."""
        process = self._processes.pop(name)
        try:
            root = psutil.Process(process.pid)
            processes = [*root.children(recursive=True), root]
        except psutil.NoSuchProcess:
            processes = []
        for child in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended with its parent
                child.kill()
        process.wait()

    def dead(self) -> list[str]:
        """Return the services that ended unexpectedly."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def alive_nodes(self) -> int:
        """Return the number of Ray nodes that the head considers alive; 0 while it does not respond."""
        try:
            nodes = json.loads(self.get("/api/v0/nodes?limit=100"))["data"]["result"]["result"]
        except (OSError, ValueError):
            return 0
        return sum(node["state"] == "ALIVE" for node in nodes)

    def get(self, path: str, token: bool = True) -> bytes:
        """Return the body of a GET request to the head's dashboard.

        Raises:
            OSError: no connection; `urllib.error.HTTPError` if the request is refused.
        """
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports.dashboard}{path}")
        if token:
            request.add_header("Authorization", f"Bearer {self._token.read_text()}")
        with urllib.request.urlopen(request, timeout=10) as response:
            body: bytes = response.read()
        return body

    def client_environment(self) -> dict[str, str]:
        """Return the environment variables of a client; the nodes have all of them except the first."""
        return {
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.ports.dashboard}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.ports.mlflow}",
            **self._s3_environment(),
        }

    def _s3_environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports.s3}", **_KEYS}

    def _start_s3(self) -> None:
        code = "from moto.server import main; main()"
        self._run("s3", [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(self.ports.s3)], {})
        self._wait("s3", lambda: self._answers(f"http://127.0.0.1:{self.ports.s3}/moto-api/"))
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports.s3}/{BUCKET}", method="PUT")
        request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/s3/aws4_request")
        urllib.request.urlopen(request, timeout=10).close()  # moto requires a signature but does not check it

    def _start_mlflow(self) -> None:
        """Start MLflow, on PostgreSQL if possible. The server proxies artifacts, so clients need no S3 set-up."""
        store, self.database = self._start_postgres()
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.ports.mlflow),
            "--workers", "1", "--artifacts-destination", f"s3://{BUCKET}/mlflow",
        ]  # fmt: skip
        environment = {"MLFLOW_BACKEND_STORE_URI": store, **_MLFLOW, **self._s3_environment()}
        self._run("mlflow", command, environment)

    def _start_postgres(self) -> tuple[str, str]:
        """Start MLflow's database; returns its address, and a description of which database it is and why."""
        sqlite = f"sqlite:///{self.folder / 'mlflow.db'}"
        programs = _postgres_programs()
        if programs is None:
            return sqlite, "SQLite, because PostgreSQL is not installed (apt-get install postgresql)"
        if find_spec("psycopg2") is None:
            return sqlite, "SQLite, because PostgreSQL's driver is not installed (pip install 'avvp_dist[server]')"
        prefix = _as_postgres()
        if prefix is None:
            return sqlite, "SQLite, because PostgreSQL does not run as root and there is no user postgres"
        password, home = secrets.token_hex(16), self.folder / "postgres"
        home.mkdir(mode=0o700)
        (home / "password").write_text(password)
        if os.getuid() == 0:
            os.chmod(self.folder, 0o711)  # its user must be able to traverse it
            user = pwd.getpwnam("postgres")
            for path in (home, home / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        data = str(home / "data")
        initdb = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--pwfile", home / "password"]
        subprocess.run([*prefix, *map(str, initdb)], check=True, capture_output=True, cwd=home)
        server = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(_POSTGRES), "-k", str(home)]
        self._run("postgres", [*prefix, *map(str, server)], {}, cwd=home)
        self._wait("postgres", lambda: _listens(_POSTGRES))
        # an explicit driver: SQLAlchemy 2.1 uses another one for plain postgresql://
        return f"postgresql+psycopg2://postgres:{password}@127.0.0.1:{_POSTGRES}/postgres", "PostgreSQL"

    def _start_ray(self, name: str, address: str, cpus: int, *options: str) -> None:
        """Start a node with its own Ray folder and home, and with no code except what jobs upload."""
        subprocess.run(["ip", "address", "replace", f"{address}/32", "dev", "lo"], check=True)
        tools, shared, own = Path(sys.executable).parent, self.folder / "ray", self.folder / "nodes" / name
        for path in (shared, own):
            path.mkdir(parents=True, exist_ok=True)
        command = [
            "unshare", "--mount", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(own), str(shared),
            str(tools / "ray"), "start", "--block", f"--node-ip-address={address}", f"--num-cpus={cpus}", "--num-gpus=0",
            "--object-store-memory=100000000", "--disable-usage-stats", *options,
        ]  # fmt: skip
        if "--head" in options:
            command.append(f"--temp-dir={shared}")
        environment = self.client_environment() | _RAY | {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(own)}
        del environment["RAY_API_SERVER_ADDRESS"]
        self._run(name, command, environment | self._settings, removed=(*_REMOVED, "PYTHONPATH"))

    def _run(
        self, name: str, command: list[str], environment: dict[str, str], cwd: Path | None = None,
        removed: tuple[str, ...] = _REMOVED,
    ) -> None:  # fmt: skip
        """Start a service, without environment variables of this process that could redirect it to other services."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(removed)}
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env=kept | environment, cwd=cwd or self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + _START_SECONDS
        while not ready():
            dead = self.dead()
            if dead or time.monotonic() > end:
                name = dead[0] if dead else name
                tail = (self.folder / "logs" / f"{name}.log").read_text(errors="replace").splitlines()[-15:]
                raise ClusterError("\n".join([f"{name} did not start; the end of its log:", *tail]))
            time.sleep(0.2)

    @staticmethod
    def _answers(url: str) -> bool:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            return False
        return True


_MLFLOW = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
_RAY = {
    "RAY_JOB_STOP_WAIT_TIME_S": "120",  # time for a stopped job to write its checkpoint; Ray's default is three seconds
    "RAY_raylet_start_wait_time_s": "120",  # all nodes start at the same time on this machine
    "AWS_EC2_METADATA_DISABLED": "true",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
}


def _postgres_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, as installed by Debian or on the PATH; None if not installed."""
    for found in (*sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True), shutil.which("initdb")):
        if found:
            return Path(found).resolve().parent
    return None


def _as_postgres() -> list[str] | None:
    """Return the prefix of PostgreSQL's commands, which must not run as root; None if they cannot be run."""
    if os.getuid():
        return []
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        return None
    return ["runuser", "-u", "postgres", "--"]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
