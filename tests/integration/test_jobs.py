"""`ray job submit` from a checkout, to a Ray of one node with token authentication: logs, exit codes, stopping, resuming.

That a job trains on several workers to its end, and what it reports to MLflow, is in the rehearsal (test_rehearsal.py).
"""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from commands import invoke, train_here
from ports import free_port

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
SMALL = ["model.width=32", "train.batch_size=32", "train.device=cpu"]
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Head:
    """A Ray head on loopback, and its jobs."""

    def __init__(self, folder: Path) -> None:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(16))
        self.token, self.folder, self.log = token, folder, folder / "head.log"
        self.address = f"http://127.0.0.1:{free_port()}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "PYTHONPATH"))}
        self.environment = kept | {
            "PATH": f"{TOOLS}:{os.environ['PATH']}",
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all listeners stay on loopback
            "RAY_JOB_STOP_WAIT_TIME_S": "120",
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_worker_niceness": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
        }

    def __enter__(self):
        port = self.address.rsplit(":", 1)[1]
        command = [
            TOOLS / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={free_port()}",
            "--num-cpus=2", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
            f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
            "--object-store-memory=100000000", "--disable-usage-stats", f"--temp-dir={self.folder}/ray",
        ]  # fmt: skip
        environment = {key: value for key, value in self.environment.items() if key != "RAY_API_SERVER_ADDRESS"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)
        end = time.monotonic() + 300
        while True:
            try:
                self.ask("/api/jobs/")
                return self
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.2)

    def __exit__(self, *_):
        root = psutil.Process(self.process.pid)
        for process in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):  # it ended by itself, or with another
                process.kill()
        self.process.wait()

    def ask(self, path: str, token: bool = True, method: str = "GET"):
        request = urllib.request.Request(f"{self.address}{path}", method=method)
        if token:
            request.add_header("Authorization", f"Bearer {self.token.read_text()}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def ray(self, *words: str) -> str:
        command = [str(TOOLS / "ray"), "job", *words]
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    def submit(self, script: str, *words: str) -> str:
        """As `ray job submit --no-wait --working-dir .` does, without starting a Python for it."""
        from ray.job_submission import JobSubmissionClient

        client = JobSubmissionClient(self.address, headers={"Authorization": f"Bearer {self.token.read_text()}"})
        entry = shlex.join(["python", f"jobs/{script}.py", *words])
        return client.submit_job(entrypoint=entry, runtime_env={"working_dir": str(ROOT)})

    def submit_by_command(self, script: str, *words: str) -> str:
        output = self.ray("submit", "--no-wait", "--working-dir", ".", "--", "python", f"jobs/{script}.py", *words)
        return re.search(r"raysubmit_\w+", output).group()

    def log_of(self, job: str) -> str:
        return self.ask(f"/api/jobs/{job}/logs")["logs"]

    def wait(self, job: str, pattern: str | None = None) -> str:
        """The job's log when it has ended, or when ``pattern`` is in it."""
        end = time.monotonic() + 600
        while True:
            ended, log = self.ask(f"/api/jobs/{job}")["status"] in ENDED, self.log_of(job)
            if re.search(pattern, log) if pattern else ended:
                return log
            assert not ended, log
            assert time.monotonic() < end, log
            time.sleep(0.3)

    def stop_after(self, job: str, pattern: str) -> str:
        """The whole log of a job that was stopped, as `ray job stop` does, once ``pattern`` was in it."""
        self.wait(job, pattern)
        assert self.ask(f"/api/jobs/{job}/stop", method="POST") == {"stopped": True}
        log = self.wait(job)
        assert self.ask(f"/api/jobs/{job}")["status"] == "STOPPED"
        return log

    def run(self, script: str, *words: str) -> str:
        job = self.submit(script, *words)
        log = self.wait(job)
        assert self.ask(f"/api/jobs/{job}")["status"] == "SUCCEEDED", log
        return log


@pytest.fixture(scope="module")
def head():
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder,
        Head(Path(folder)) as running,
    ):  # sockets: a short path
        yield running


def test_requests_without_the_token_are_refused(head):
    with pytest.raises(urllib.error.HTTPError) as refused:
        head.ask("/api/jobs/", token=False)
    assert refused.value.code in (401, 403)


def test_a_mistake_is_a_failed_job_with_one_message_and_the_commands_exit_code(head, packed):
    job = head.submit("train", "han", f"data={packed}", "launch.workers=2")  # output would be in the job's own folder
    log = head.wait(job)
    details = head.ask(f"/api/jobs/{job}")
    assert (details["status"], details["driver_exit_code"]) == ("FAILED", 2)
    assert "is in the job's own folder, which is deleted with the job" in log
    assert "Traceback" not in log


def test_packing_and_evaluating_as_jobs(head, packed, tmp_path):
    invoke("data", "synth", tmp_path / "raw", "--videos", "60", "--workers", "1")
    raw, out = str(tmp_path / "raw"), str(tmp_path / "packed")
    words = ["llp", "--annotations", raw, "--features", f"{raw}/feats", "--out"]
    invoke("data", "pack", *words, out, "--workers", "1")
    log = head.run("shard", *words, f"{out}-by-ray", "launch=ray")
    assert "60 videos in 3 shards" in log
    assert "packing: 3 of 3 shards" in log
    assert (tmp_path / "packed-by-ray" / "index.json").read_bytes() == (tmp_path / "packed" / "index.json").read_bytes()
    train_here("han", packed, tmp_path / "run", "train.epochs=1", "tracking=none", *SMALL)
    log = head.wait(head.submit_by_command("evaluate", str(tmp_path / "run")))
    assert "result.json reproduced" in log


def test_a_stopped_job_resumes(head, packed, tmp_path):
    """Two jobs, each stopped amid far more epochs than it has time for: the second goes on with the first's work."""
    words = ["jomold", f"data={packed}", f"output={tmp_path / 'run'}", "train.epochs=5000", *SMALL]
    logs = [head.stop_after(head.submit("train", *words), r"estimate epoch \d+, loss") for _ in range(2)]
    for log in logs:
        assert re.search(r"error: stopped on request at stage estimate, .*: a checkpoint is saved", log), log
        assert not re.search(r'File ".*avvp_dist/', log), log  # no traceback of ours; Ray's own cleaner may leave one
    where = re.search(r"stopped on request at stage estimate, (epoch (\d+), step \d+)", logs[0])
    assert f"stage estimate: 5000 epochs, resumed at {where[1]}" in logs[1], logs
    epochs = [int(epoch) for epoch in re.findall(r"estimate epoch (\d+), loss", logs[1])]
    assert epochs == list(range(int(where[2]) - 1, epochs[-1] + 1))  # the row of the last whole epoch comes again
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_sweep_as_a_job(head, packed, tmp_path):
    output = str(tmp_path / "sweep")
    words = [f"data={packed}", "train.epochs=1", *SMALL, "--seeds", "1", "--trials", "1", "--output", output]
    log = head.run("tune", "lr-tau", *words)
    assert "Threshold of temporal label refinement" in log
    (trial,) = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["trials"]
    assert trial["status"] == "finished"
    refused = head.submit("tune", "lr-tau", f"data={packed}")  # by default in the job's own folder
    assert "is in the job's own folder" in head.wait(refused)
