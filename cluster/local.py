#!/usr/bin/env python3
"""A cluster on this machine: a Ray head and workers, an S3 server and MLflow, in a network of their own.

    cluster/local.py up                  # starts it; a minute on a small machine
    eval "$(cluster/local.py env)"       # how a client reaches it
    avvp data synth s3://avvp/data --layout shards --splits 512,64,64
    ray job submit --working-dir . -- python jobs/train.py jomold data=s3://avvp/data output=s3://avvp/runs/a
    cluster/local.py down                # ends it; what was in its S3 is gone

Several Ray nodes on one machine need several addresses. They get them in a network namespace, where nobody else's servers
are; of this machine's own network only three loopback ports lead inside. A process namespace goes with it: when its first
process ends, however that happens, the kernel ends everything that was started in it, and nothing else.

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
_START = 300.0  # seconds within which a cluster is up on any machine


def enter_namespaces(command: list[str]) -> list[str]:
    """``command`` in a network and a process namespace of its own; what it leaves running ends with it.

    Raises:
        ClusterError: a tool is missing, or this user may not make namespaces.
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


def be_init(command: list[str]) -> int:
    """Runs ``command`` as the first process of a process namespace has to: whatever loses its parent ends as its child.

    Without it, the driver of a stopped Ray job stays as a zombie, and Ray waits for it until it gives up.
    """
    child = subprocess.Popen(command, close_fds=False).pid
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: os.kill(child, got))
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.waitstatus_to_exitcode(status)


_TOOLS = {"unshare": "util-linux", "ip": "iproute2"}


def up(workers: int, cpus: int, ports: Ports) -> None:
    """Starts a cluster in the background and waits until it can be used."""
    if _running():
        raise ClusterError("a local cluster is up already; end it with `cluster/local.py down`")
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir(mode=0o700)
    doors = [_listen(port) for port in (ports.dashboard, ports.s3, ports.mlflow)]
    taken = Ports(*(door.getsockname()[1] for door in doors))
    inner = [sys.executable, __file__, "serve", "--workers", str(workers), "--cpus", str(cpus)]
    for name, door in zip(("dashboard", "s3", "mlflow"), doors, strict=True):
        inner += [f"--{name}-port", str(door.getsockname()[1]), f"--{name}-door", str(door.fileno())]
    with (STATE / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            enter_namespaces(inner), pass_fds=[door.fileno() for door in doors], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
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
    print(f'how to reach it: eval "$({sys.argv[0]} env)"   end it: {sys.argv[0]} down')


def down() -> bool:
    """Ends the cluster that `up` started; returns whether there was one."""
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


def serve(workers: int, cpus: int, ports: Ports, doors: Ports) -> None:
    """The first process of the namespaces: starts everything, lets clients in, and ends everything when told to."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with Cluster(STATE, ports) as cluster:
        cluster.start(workers, cpus)
        for door, port in zip(doors, ports, strict=True):
            threading.Thread(target=_let_in, args=(socket.socket(fileno=door), port), daemon=True).start()
        (STATE / "ready").touch()
        while not stopped.wait(1.0):
            if dead := cluster.dead():
                print(f"ended on its own: {', '.join(dead)}; see {STATE / 'logs'}", flush=True)
                stopped.wait()


def environment() -> dict[str, str]:
    """What a client's environment needs."""
    if not _running():
        raise ClusterError("no local cluster is up; start one with `cluster/local.py up`")
    ports = Ports(*json.loads((STATE / "state.json").read_text())["ports"])
    return Cluster(STATE, ports).client_environment()


def _running() -> psutil.Process | None:
    """The process that holds the namespaces, if it is the one that was noted.

    Raises:
        ClusterError: the folder, which lies in a place that all users share, was made by another one.
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
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind(("127.0.0.1", port))
    except OSError as error:
        raise ClusterError(f"port {port} of 127.0.0.1: {error.strerror}; choose another, 0 takes any (--help)") from None
    door.listen(64)
    return door


def _let_in(door: socket.socket, port: int) -> None:
    """Passes on what comes to ``door``, a socket of the machine's network, to ``port`` of this one."""
    while True:
        outside, _ = door.accept()
        try:
            inside = socket.create_connection(("127.0.0.1", port), timeout=10)
        except OSError:
            outside.close()
            continue
        inside.settimeout(None)
        for one, other in ((outside, inside), (inside, outside)):
            threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
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
    """The command line."""
    if sys.argv[1:2] == ["init"]:
        sys.exit(be_init(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["up", "env", "down", "serve"], help="serve is what up runs in the namespaces")
    parser.add_argument("--workers", type=int, default=2, help="Ray nodes beside the head")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs that each of them offers")
    for name, port in (("dashboard", 8265), ("s3", 9000), ("mlflow", 5000)):
        parser.add_argument(f"--{name}-port", type=int, default=port, help="on 127.0.0.1; 0 takes any")
        parser.add_argument(f"--{name}-door", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    ports = Ports(given.dashboard_port, given.s3_port, given.mlflow_port)
    try:
        if given.command == "up":
            up(given.workers, given.cpus, ports)
        elif given.command == "serve":
            serve(given.workers, given.cpus, ports, Ports(given.dashboard_door, given.s3_door, given.mlflow_door))
        elif given.command == "env":
            print("\n".join(f"export {name}={value}" for name, value in environment().items()))
        elif not down():
            print("no local cluster was up")
    except ClusterError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
