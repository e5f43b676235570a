"""MLflow's server, started with the options of compose.yaml: it accepts the listed host names and no others."""

import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from ports import free_port

pytest.importorskip("mlflow")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    service = yaml.safe_load((ROOT / "cluster" / "compose.yaml").read_text())["services"]["mlflow"]
    program, *words = shlex.split(service["command"])
    assert program == "mlflow"
    port = free_port()
    words[words.index("--host") + 1], words[words.index("--port") + 1] = "127.0.0.1", str(port)
    words[words.index("--workers") + 1] = "1"
    environment = {
        key: value for key, value in service["environment"].items() if key.startswith("MLFLOW_SERVER") or "URL" in key
    } | {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "mlflow", *words]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while ask(port, "/health", "mlflow:5000") != 200:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ask(port: int, path: str, host: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_mlflow_accepts_the_host_names_of_nodes_and_browsers(server):
    path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    assert [ask(server, path, host) for host in ("mlflow:5000", "127.0.0.1:5000", "localhost:5000")] == [200, 200, 200]


def test_mlflow_refuses_other_host_names(server):
    path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    assert ask(server, path, "rebound.example:5000") == 403
