"""Rehearses failures on a cluster of several Ray nodes on this machine, with S3 and MLflow: a node dies, a job is stopped.

Each step reports what it shows; the first failing step ends the rehearsal with exit code 1. No process outlives it: all run
in separate namespaces (see local.py). ``--short`` runs only one training that loses a node.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from local import enter_namespaces
from services import BUCKET, Cluster, ClusterError, Ports

ROOT = Path(__file__).resolve().parents[1]
BASE = f"s3://{BUCKET}"
_SMALL = [f"data={BASE}/data", "model.width=32", "train.batch_size=64"]
_NODES = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",  # a dead node is detected within seconds
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3",  # and Ray does not wait for it
    "RAY_worker_niceness": "0",  # with Ray's own 15, workers would wait for whatever else this machine runs
}
_AVVP = [sys.executable, "-m", "avvp_dist"]
_JOB_SECONDS = 600.0
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Failed(Exception):
    """A step did not behave as expected."""


def check(holds: bool, otherwise: str) -> None:
    """End the rehearsal with the message ``otherwise`` unless ``holds``."""
    if not holds:
        raise Failed(otherwise)


class Jobs:
    """Submits jobs like a user, with Ray's command line in the repository, and monitors them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._ray = str(Path(sys.executable).parent / "ray")

    def submit(self, script: str, *words: str) -> str:
        """Submit a job and return its id."""
        entry = ["python", f"jobs/{script}.py", *words]
        output = command([self._ray, "job", "submit", "--no-wait", "--working-dir", ".", "--", *entry])
        found = re.search(r"raysubmit_\w+", output)
        if not found:
            raise Failed(f"ray job submit printed no job id: {output}")
        return found.group()

    def stop(self, job: str) -> None:
        """Stop a job; returns when it has stopped."""
        command([self._ray, "job", "stop", job])

    def run(self, script: str, *words: str) -> str:
        """Run a job that must succeed and return its log."""
        return self.end(self.submit(script, *words))

    def end(self, job: str, wanted: str = "SUCCEEDED") -> str:
        """Wait for a job to end with status ``wanted`` and return its log."""
        log = self._wait(job, lambda _, status: status in _ENDED, "end")
        status = self.details(job)["status"]
        check(status == wanted, f"job {job} is {status}, not {wanted}; the end of its log:\n{log[-3000:]}")
        return log

    def wait_for_log(self, job: str, pattern: str) -> str:
        """Return the log once it matches ``pattern``."""
        return self._wait(job, lambda log, _: re.search(pattern, log) is not None, f"log had {pattern!r}")

    def details(self, job: str) -> dict[str, str | int | None]:
        """Return Ray's metadata of a job."""
        known: dict[str, str | int | None] = json.loads(self._cluster.get(f"/api/jobs/{job}"))
        return known

    def _wait(self, job: str, done: Callable[[str, str], bool], what: str) -> str:
        limit = time.monotonic() + _JOB_SECONDS
        while True:
            status, log = str(self.details(job)["status"]), json.loads(self._cluster.get(f"/api/jobs/{job}/logs"))["logs"]
            if done(log, status):
                return str(log)
            if status in _ENDED or time.monotonic() > limit:
                raise Failed(f"job {job} is {status} before its {what}:\n{log[-3000:]}")
            time.sleep(0.5)


class Rehearsal:
    """The steps, on a running cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._jobs = cluster, Jobs(cluster)
        self._started = self._last = time.monotonic()

    def report(self, result: str) -> None:
        """Reports a step."""
        now = time.monotonic()
        print(f"[{now - self._started:4.0f} s] {now - self._last:4.0f} s  {result}", flush=True)
        self._last = now

    def requests_need_the_token(self) -> None:
        """A request without the token is refused."""
        try:
            self._cluster.get("/api/jobs/", token=False)
        except urllib.error.HTTPError as error:
            check(error.code in (401, 403), f"a request without the token was answered with {error.code}")
        else:
            raise Failed("the cluster's jobs can be listed without the token")
        self.report("token authentication: a request without the token is refused")

    def data_on_s3(self, train: int) -> None:
        """Generate synthetic shards on S3 from a client."""
        splits, shards = ["--splits", f"{train},64,64"], ["--layout", "shards", "--shard-videos", "64", "--workers", "1"]
        command([*_AVVP, "data", "synth", f"{BASE}/data", *splits, *shards])
        self.report(f"S3: {train} training videos packed into shards")

    def elastic(self, epochs: int) -> None:
        """A run with one or two workers loses a node, continues with one, and uses a node that is added.

        Ray checks for new nodes every 20 seconds, and an epoch takes 2: ``epochs`` must last long enough.
        """
        words = [*_SMALL, "model.dropout=0", f"train.epochs={epochs}", "evaluate.select=last"]
        elastic, whole = f"{BASE}/runs/elastic", f"{BASE}/runs/elastic-whole"
        workers = ["launch.workers=2", "launch.min_workers=1", "launch.resize_every=1"]
        with ThreadPoolExecutor(1) as beside:
            job = self._jobs.submit("train", "han", *words, *workers, f"output={elastic}", "tracking.run_name=elastic")
            uninterrupted = beside.submit(command, [*_AVVP, "train", "han", *words, f"output={whole}", "tracking=none"])
            log = self._jobs.wait_for_log(job, r"epoch 2, loss")
            self.report("job submitted with the repository alone; two workers have trained two epochs")
            victim = self._kill_node_of_rank_0(log)
            self._jobs.wait_for_log(job, r"Attempting to start training worker group of size 1")
            self.report(f"{victim}, the node of rank 0, killed with all its processes: one worker is started instead of two")
            self._cluster.start_node("worker-3", cpus=1)  # as an autoscaler would
            log = self._jobs.end(job)
            uninterrupted.result()
        sizes = re.findall(r"Started training worker group of size (\d)", log)
        check(sizes == ["2", "1", "2"], f"the run had {sizes} workers, one after the other, not 2, 1, 2:\n{log[-3000:]}")
        check("scores of the test split in %" in log, "the job's log has no table of scores")
        self._all_epochs(elastic, "train", epochs)
        for file, least in (("result.json", 20), ("history.json", epochs)):
            resumed, expected = (_scores(json.loads(read(f"{output}/{file}"))) for output in (elastic, whole))
            difference = max(abs(one - other) for one, other in zip(resumed, expected, strict=True))
            check(
                len(resumed) >= least and difference <= 1e-5,
                f"{len(resumed)} figures in {file} differ by up to {difference}",
            )
        self.report(
            "two workers again after a node was added, each time from the last checkpoint on S3; no epoch lost or repeated; "
            "losses and scores equal those of one uninterrupted process"
        )
        self._run_in_mlflow("elastic", job, log)

    def node_dies(self, epochs: int) -> None:
        """Two workers train; the node of one dies and is replaced; the run resumes from its last checkpoint."""
        output, whole = f"{BASE}/runs/node-dies", f"{BASE}/runs/node-lives"
        words = ["train", "han", *_SMALL, f"train.epochs={epochs}"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "avvp_dist"]
        with ThreadPoolExecutor(1) as beside:
            job = self._jobs.submit(*words, f"output={output}", "launch.workers=2")
            uninterrupted = beside.submit(command, [*torchrun, *words, f"output={whole}", "tracking=none"])
            victim = self._kill_node_of_rank_0(self._jobs.wait_for_log(job, r"epoch 2, loss"))
            self._cluster.start_node("worker-4", cpus=1)  # as an autoscaler would
            log = self._jobs.end(job)
            uninterrupted.result()
        check("resumed at epoch" in log, f"the run did not resume from a checkpoint:\n{log[-3000:]}")
        self._all_epochs(output, "train", epochs)
        same = read(f"{output}/model.safetensors") == read(f"{whole}/model.safetensors")
        check(same, "the run's model differs from that of two uninterrupted processes")
        self.report(
            f"{victim}, the node of rank 0, killed with all its processes and replaced: the run resumed from its last "
            "checkpoint on S3; no epoch lost or repeated; the model equals, bit for bit, that of two uninterrupted processes"
        )

    def _kill_node_of_rank_0(self, log: str) -> str:
        """Kill the node of rank 0, which writes checkpoints and tracks the run, and return its name."""
        nodes = {rank: last for last, rank in re.findall(r"ip=10\.77\.0\.(\d+), pid=\d+\) world_rank=(\d)", log)}
        victim = f"worker-{int(nodes['0']) - 1}"
        self._cluster.kill(victim)
        return victim

    def _run_in_mlflow(self, name: str, job: str, log: str) -> None:
        without = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        found = json.loads(command([sys.executable, "-c", _QUERY_MLFLOW, name], without))
        check(found["status"] == "FINISHED", f"the run is {found['status']} in MLflow")
        check(found["job"] == job, f"MLflow's run names the job {found['job']}, not {job}")
        check(f"MLflow run {found['run']}" in log, "the job's log does not name the MLflow run")
        check(found["recipe"] == "han", "its result.json, an artifact on S3, was not served by the server")
        self.report(
            f"MLflow on {self._cluster.database}: run FINISHED, tagged with its job; artifacts on S3 are served by MLflow"
        )

    def user_error(self) -> None:
        """A user error fails the job with one message and the command's exit code."""
        job = self._jobs.submit("train", "han", *_SMALL, f"output={BASE}/x", "train.epoch=1")
        log = self._jobs.end(job, "FAILED")
        check("did you mean 'epochs'" in log and "Traceback" not in log, f"the log does not say what is wrong:\n{log}")
        code = self._jobs.details(job)["driver_exit_code"]
        check(code == 2, f"exit code {code}")
        self.report("a misspelled key: job FAILED, exit code 2, one message")

    def stop_and_resume(self, epochs: int) -> None:
        """A job that was stopped in its last stage and submitted again ends with the model of an uninterrupted one."""
        words = ["jomold", *_SMALL, f"train.epochs={epochs}", "launch.workers=2"]
        stopped, whole = f"{BASE}/runs/stopped", f"{BASE}/runs/whole"
        job = self._jobs.submit("train", *words, f"output={stopped}")
        self._jobs.wait_for_log(job, r"denoise epoch 2, loss")
        self._jobs.stop(job)
        status = self._jobs.details(job)["status"]
        check(status == "STOPPED", f"the stopped job is {status}")
        log = self._jobs.end(job, "STOPPED")
        check("stopped on request at stage denoise" in log, f"it wrote no checkpoint:\n{log[-3000:]}")
        self.report("job stopped in the middle of its last stage: it wrote and reported a checkpoint")
        log = self._jobs.run("train", *words, f"output={stopped}")
        check("stage estimate: finished before" in log, "a finished stage was trained again")
        check(re.search(r"stage denoise: .*resumed at epoch", log) is not None, "the stopped stage started from scratch")
        self._all_epochs(stopped, "denoise", epochs)
        self._jobs.run("train", *words, f"output={whole}")
        same = read(f"{stopped}/model.safetensors") == read(f"{whole}/model.safetensors")
        check(same, "the resumed run's model differs from that of the uninterrupted run")
        self.report("submitted again, it resumed; its model equals, bit for bit, that of an uninterrupted run")

    def sweep(self) -> None:
        """A sweep whose trials run on several nodes and share their first stages."""
        output = f"{BASE}/sweep"
        log = self._jobs.run("tune", "lr-tau", *_SMALL, "train.epochs=1", "--seeds", "1", "--cpus", "1", "--output", output)
        trials = json.loads(read(f"{output}/sweep.json"))["trials"]
        check(len(trials) == 5 and all("score" in trial for trial in trials), f"trials: {trials}\n{log[-3000:]}")
        self.report("sweep of five settings submitted as one job: all trials finished")

    def _all_epochs(self, output: str, stage: str, epochs: int) -> None:
        rows = [row["epoch"] for row in json.loads(read(f"{output}/history.json")) if row["stage"] == stage]
        check(rows == list(range(1, epochs + 1)), f"epochs of stage {stage} in history.json: {rows}")


_QUERY_MLFLOW = """
import json, sys, tempfile
from mlflow import MlflowClient
client = MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("avvp").experiment_id], f"attributes.run_name = '{sys.argv[1]}'")
with tempfile.TemporaryDirectory() as folder:
    result = json.load(open(client.download_artifacts(run.info.run_id, "result.json", folder)))
found = {"status": run.info.status, "job": run.data.tags.get("ray_job"), "run": run.info.run_id, "recipe": result["recipe"]}
print(json.dumps(found))
"""


def _scores(content: Any, path: str = "") -> list[float]:
    """Return the losses and scores in a run's JSON files, in order."""
    if isinstance(content, dict):
        return [number for key in sorted(content) for number in _scores(content[key], f"{path}/{key}")]
    if isinstance(content, list):
        return [number for entry in content for number in _scores(entry, path)]
    return [content] if isinstance(content, float) and re.match("/(scores|loss|val)/", path) else []


def command(words: list[str], environment: dict[str, str] | None = None) -> str:
    """Run a command in the repository and return its output; its failure ends the rehearsal."""
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=_JOB_SECONDS
    )
    if done.returncode:
        shown = " ".join(words)[:300]
        raise Failed(f"{shown} ended with {done.returncode}:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout


def read(url: str) -> bytes:
    """Return the content of a URL."""
    from avvp_dist import storage  # reads environment variables, which are set by now

    return storage.read_bytes(url)


def rehearse(short: bool) -> None:
    """Run all steps, or those of the short form, inside the namespaces."""
    folder = Path(tempfile.mkdtemp(prefix="avvp-"))
    try:
        with Cluster(folder, Ports(), _NODES) as cluster:
            for name in [name for name in os.environ if name.startswith(("RAY_", "AWS_", "MLFLOW_"))]:
                del os.environ[name]
            sys.path.insert(0, str(ROOT))
            os.environ.update(cluster.client_environment() | {"OMP_NUM_THREADS": "1"})
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            steps = Rehearsal(cluster)
            cluster.start(workers=2, cpus=1)
            steps.report("three Ray nodes, an S3 server and MLflow are up, in a separate network")
            steps.requests_need_the_token()
            steps.data_on_s3(256 if short else 512)
            steps.elastic(14)
            if short:
                return
            steps.node_dies(10)
            steps.user_error()
            steps.stop_and_resume(8)
            steps.sweep()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Parse the command line and rehearse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="three nodes, one elastic training, one node killed")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        if not given.inside:
            inner = [sys.executable, __file__, "--inside", *(["--short"] if given.short else [])]
            sys.exit(subprocess.run(enter_namespaces(inner), check=False).returncode)
        rehearse(given.short)
    except (Failed, ClusterError) as error:
        sys.exit(f"FAILED: {error}")
    print("rehearsal passed")


if __name__ == "__main__":
    main()
