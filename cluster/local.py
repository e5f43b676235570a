#!/usr/bin/env python3
"""A cluster on this machine: a Ray head and workers, an S3 server and MLflow, in their own network namespace.

    cluster/local.py up                  # start it; takes a minute on a small machine
    eval "$(cluster/local.py env)"       # set the environment of a client
    avvp data synth s3://avvp/data --layout shards --splits 512,64,64
    ray job submit --working-dir . -- python jobs/train.py jomold data=s3://avvp/data output=s3://avvp/runs/a
    cluster/local.py down                # end it; the content of its S3 server is lost

Several Ray nodes on one machine need several addresses. They get them in a network namespace without other servers, which
can be reached only through three loopback ports of this machine. A process namespace goes with it: when its first process
ends for whatever reason, the kernel ends all processes that were started in it, and no others.

Needs Linux, util-linux (unshare) and iproute2 (ip), and root or unprivileged user namespaces.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from services import BUCKET, Cluster, ClusterError, Ports

STATE = Path(tempfile.gettempdir()) / f"avvp-cluster-{os.getuid()}"
_START = 300.0  # seconds until a cluster must be up


def enter_namespaces(command: list[str]) -> list[str]:
    """Return a command that runs ``command`` in new network and process namespaces; all its processes end with it.

    Raises:
        ClusterError: a tool is missing, or this user is not allowed to create namespaces.
    """
    missing = [f"{tool} (package {package})" for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise ClusterError(f"not installed: {', '.join(missing)}")
    unshare = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.getuid():
        unshare.append("--map-root-user")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        raise ClusterError(f"`{' '.join(unshare)}` is not allowed here; run as root, or allow user namespaces")
    return [*unshare, sys.executable, str(Path(__file__).resolve()), "init", *command]


def run_as_init(command: list[str]) -> int:
    """Run ``command`` and reap orphaned processes, as the first process of a process namespace must.

    Otherwise the driver of a stopped Ray job remains as a zombie, for which Ray waits until it gives up.
    """
    child = subprocess.Popen(command, close_fds=False).pid
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os.kill(child, received))
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.waitstatus_to_exitcode(status)


_TOOLS = {"unshare": "util-linux", "ip": "iproute2"}


def up(workers: int, cpus: int, ports: Ports) -> None:
    """Start a cluster in the background and wait until it is ready."""
    if _running():
        raise ClusterError("a local cluster is already running; end it with `cluster/local.py down`")
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir(mode=0o700)
    listeners = [_listen(port) for port in (ports.dashboard, ports.s3, ports.mlflow)]
    taken = Ports(*(listener.getsockname()[1] for listener in listeners))
    inner = [sys.executable, __file__, "serve", "--workers", str(workers), "--cpus", str(cpus)]
    for name, listener in zip(("dashboard", "s3", "mlflow"), listeners, strict=True):
        inner += [f"--{name}-port", str(listener.getsockname()[1]), f"--{name}-socket", str(listener.fileno())]
    with (STATE / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            enter_namespaces(inner), pass_fds=[listener.fileno() for listener in listeners], stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    state = {"pid": process.pid, "started": psutil.Process(process.pid).create_time(), "ports": list(taken)}
    (STATE / "state.json").write_text(json.dumps(state))
    end = time.monotonic() + _START
    while not (STATE / "ready").exists():
        if process.poll() is not None or time.monotonic() > end:
            down()
            raise ClusterError(f"the cluster did not start: {_tail(STATE / 'serve.log')}")
        time.sleep(0.2)
    print(f"dashboard http://127.0.0.1:{taken.dashboard}   MLflow http://127.0.0.1:{taken.mlflow}   bucket s3://{BUCKET}")
    print(f'client environment: eval "$({sys.argv[0]} env)"   end it: {sys.argv[0]} down')


def down() -> bool:
    """End the cluster that `up` started; returns whether there was one."""
    outer = _running()
    if outer:
        inside = outer.children()
        for process in inside:
            process.terminate()
        _, alive = psutil.wait_procs([outer, *inside], timeout=20)
        for process in alive:
            process.kill()  # the kernel ends the rest of its namespace with it
        psutil.wait_procs(alive, timeout=10)
    (STATE / "state.json").unlink(missing_ok=True)
    return outer is not None


def serve(workers: int, cpus: int, ports: Ports, sockets: Ports) -> None:
    """Start the cluster inside the namespaces, forward connections of clients, and end it at SIGTERM."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with Cluster(STATE, ports) as cluster:
        cluster.start(workers, cpus)
        for descriptor, port in zip(sockets, ports, strict=True):
            threading.Thread(target=_forward, args=(socket.socket(fileno=descriptor), port), daemon=True).start()
        (STATE / "ready").touch()
        while not stopped.wait(1.0):
            if dead := cluster.dead():
                print(f"ended unexpectedly: {', '.join(dead)}; see {STATE / 'logs'}", flush=True)
                stopped.wait()


def environment() -> dict[str, str]:
    """Return the environment variables of a client."""
    if not _running():
        raise ClusterError("no local cluster is running; start one with `cluster/local.py up`")
    ports = Ports(*json.loads((STATE / "state.json").read_text())["ports"])
    return Cluster(STATE, ports).client_environment()


def _running() -> psutil.Process | None:
    """Return the process that holds the namespaces, if it is still the recorded one.

    Raises:
        ClusterError: the state folder, in the shared temporary folder, belongs to another user.
    """
    with contextlib.suppress(FileNotFoundError):
        found = STATE.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise ClusterError(f"{STATE}: not a folder of this user; delete it, or set TMPDIR to a folder of your own")
    try:
        state: dict[str, Any] = json.loads((STATE / "state.json").read_text())
        process = psutil.Process(state["pid"])
        return process if process.create_time() == state["started"] else None
    except (OSError, psutil.NoSuchProcess):
        return None


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        raise ClusterError(
            f"port {port} of 127.0.0.1: {error.strerror}; choose another one, or 0 for any free port (--help)"
        ) from None
    listener.listen(64)
    return listener


def _forward(listener: socket.socket, port: int) -> None:
    """Forward connections to ``listener``, a socket in the machine's network, to ``port`` in this namespace."""
    while True:
        outside, _ = listener.accept()
        try:
            inside = socket.create_connection(("127.0.0.1", port), timeout=10)
        except OSError:
            outside.close()
            continue
        inside.settimeout(None)
        for source, sink in ((outside, inside), (inside, outside)):
            threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        sink.close()


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-15:]) if path.is_file() else "no log"


def main() -> None:
    """Parse the command line and run the command."""
    if sys.argv[1:2] == ["init"]:
        sys.exit(run_as_init(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["up", "env", "down", "serve"], help="serve is run by up inside the namespaces")
    parser.add_argument("--workers", type=int, default=2, help="number of Ray nodes in addition to the head")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs per node")
    for name, port in (("dashboard", 8265), ("s3", 9000), ("mlflow", 5000)):
        parser.add_argument(f"--{name}-port", type=int, default=port, help="port on 127.0.0.1; 0 for any free port")
        parser.add_argument(f"--{name}-socket", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    ports = Ports(given.dashboard_port, given.s3_port, given.mlflow_port)
    try:
        if given.command == "up":
            up(given.workers, given.cpus, ports)
        elif given.command == "serve":
            serve(given.workers, given.cpus, ports, Ports(given.dashboard_socket, given.s3_socket, given.mlflow_socket))
        elif given.command == "env":
            print("\n".join(f"export {name}={value}" for name, value in environment().items()))
        elif not down():
            print("no local cluster was running")
    except ClusterError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
