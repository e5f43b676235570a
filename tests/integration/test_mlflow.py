"""Tracking with a real MLflow: in a SQLite file, and with a server that is temporarily down."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from ports import free_port
from typer.testing import CliRunner

from avvp_dist.cli import main as cli
from avvp_dist.errors import DataError
from avvp_dist.experiments.recipe import absolute
from avvp_dist.tracking.base import NullTracker, TrackingConfig
from avvp_dist.tracking.errors import explain
from avvp_dist.tracking.journal import read_run
from avvp_dist.tracking.sender import sync
from avvp_dist.tracking.system import SystemSampler
from avvp_dist.tracking.tracker import open_tracker

mlflow = pytest.importorskip("mlflow")


FIRST_RUN = """
import sys
from pathlib import Path
from avvp_dist.cli.main import main as cli
from avvp_dist.tracking.base import TrackingConfig
from avvp_dist.tracking.tracker import open_tracker
tracker = open_tracker(TrackingConfig(uri=sys.argv[1], experiment="first", flush_timeout=200), Path(sys.argv[2]))
tracker.metrics({"loss": 1.0}, step=0)
tracker.finish("FINISHED")
"""


@pytest.fixture(scope="module")
def first_runs(tmp_path_factory):
    """A SQLite store that two processes made and used at the same moment."""
    folder = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-c", FIRST_RUN, f"sqlite:///{folder}/mlflow.db"]
    processes = [subprocess.Popen([*command, str(folder / f"run{number}")]) for number in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    return folder / "mlflow.db"


@pytest.fixture
def uri(first_runs, tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(first_runs.read_bytes())
    return f"sqlite:///{path}"


def history(client, run_id, key):
    return [
        (point.step, point.value) for point in sorted(client.get_metric_history(run_id, key), key=lambda point: point.step)
    ]


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "gave up waiting"
        time.sleep(0.05)


def test_two_runs_may_make_the_store_at_the_same_moment(uri):
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("first").experiment_id])
    assert [(run.info.status, run.data.metrics) for run in runs] == [("FINISHED", {"loss": 1.0})] * 2


def test_everything_logged_is_in_mlflow(uri, tmp_path):
    tracker = open_tracker(
        TrackingConfig(uri=uri, experiment="llp", run_name="jomold-1", parent_run="p" * 32), tmp_path / "run"
    )
    tracker.params({"optim": {"lr": 1e-3, "name": "adam"}, "long": "x" * 7000, "seeds": [1, 2]})
    tracker.tags({"mlflow.source.git.commit": "abc123", "data.fingerprint": "f00d"})
    for epoch in range(3):
        tracker.metrics({"loss/total": 1.0 / (epoch + 1), "val/Frying_(food)": 50 + epoch}, step=epoch)
    tracker.metrics({"loss/total": math.nan}, step=3)
    report = tmp_path / "report.txt"
    report.write_text("first")
    tracker.artifact(report, "reports")
    report.write_text("changed later")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"\0" * 64)
    tracker.artifact(checkpoint)
    tracker.text("config/run.yaml", "optim:\n  lr: 0.001\n")
    tracker.finish("FINISHED")

    client = mlflow.MlflowClient(uri)
    run = client.get_run(tracker.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "llp"
    assert (run.info.run_name, run.info.status) == ("jomold-1", "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == "p" * 32
    assert run.data.tags["mlflow.source.git.commit"] == "abc123"
    assert run.data.params == {"optim.lr": "0.001", "optim.name": "adam", "long": "x" * 6000, "seeds": "[1, 2]"}
    assert history(client, run.info.run_id, "loss/total")[:3] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert math.isnan(history(client, run.info.run_id, "loss/total")[3][1])
    assert history(client, run.info.run_id, "val/Frying__food_") == [(0, 50), (1, 51), (2, 52)]
    files = Path(run.info.artifact_uri.removeprefix("file://"))
    assert files.is_relative_to(tmp_path / "mlartifacts")
    assert (files / "reports" / "report.txt").read_text() == "first"
    assert (files / "checkpoint" / "model.safetensors").stat().st_size == 64
    assert (files / "config" / "run.yaml").read_text() == "optim:\n  lr: 0.001\n"
    assert not list((tmp_path / "run" / "artifacts").iterdir()), "copies that were sent are still there"


def test_a_resumed_run_is_the_same_mlflow_run(uri, tmp_path):
    config = TrackingConfig(uri=uri)
    first = open_tracker(config, tmp_path / "run")
    first.metrics({"loss": 1.0}, step=0)
    first.finish("FAILED")
    second = open_tracker(config, tmp_path / "run")
    assert second.run_id == first.run_id
    client = mlflow.MlflowClient(uri)
    wait_for(lambda: client.get_run(first.run_id).info.status == "RUNNING")
    second.metrics({"loss": 0.5}, step=1)
    second.finish("FINISHED")
    assert history(client, first.run_id, "loss") == [(0, 1.0), (1, 0.5)]
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert len(client.search_runs([client.get_run(first.run_id).info.experiment_id])) == 1


def test_a_run_whose_id_was_lost_on_the_way_is_found_again(uri, tmp_path):
    open_tracker(TrackingConfig(uri=uri), tmp_path / "run").finish("FINISHED")
    run_file = tmp_path / "run" / "run.json"
    known = json.loads(run_file.read_text())
    run_file.write_text(json.dumps({key: value for key, value in known.items() if key != "run_id"}))
    again = open_tracker(TrackingConfig(uri=uri), tmp_path / "run")
    again.finish("FINISHED")
    assert again.run_id == known["run_id"]


def test_values_that_mlflow_refuses_do_not_block_others(uri, tmp_path, caplog):
    tracker = open_tracker(TrackingConfig(uri=uri), tmp_path / "run")
    tracker.params({"epochs": 10, "lr": 0.1})
    tracker.finish("FINISHED")
    again = open_tracker(TrackingConfig(uri=uri), tmp_path / "run")
    again.params({"lr": 0.1, "epochs": 20, "batch": 64})  # MLflow's params cannot change
    again.metrics({"good": 1.0, "bad/": 2.0, "also_good": 3.0}, step=0)
    again.finish("FINISHED")
    run = mlflow.MlflowClient(uri).get_run(tracker.run_id)
    assert run.data.params == {"epochs": "10", "lr": "0.1", "batch": "64"}
    assert run.data.metrics == {"good": 1.0, "also_good": 3.0}
    assert "rejects params epochs" in caplog.text
    assert "rejects metrics bad/" in caplog.text


def test_a_deleted_run_keeps_its_unsent_values(uri, tmp_path):
    tracker = open_tracker(TrackingConfig(uri=uri), tmp_path / "run")
    tracker.finish("FINISHED")
    client = mlflow.MlflowClient(uri)
    client.delete_run(tracker.run_id)
    again = open_tracker(TrackingConfig(uri=uri, flush_timeout=0.1), tmp_path / "run")
    again.metrics({"loss": 1.0}, step=0)
    again.finish("FINISHED")
    report = sync(tmp_path / "run")
    assert report.left == 3  # start, metrics, finish
    assert "was deleted" in report.error
    client.restore_run(tracker.run_id)
    assert sync(tmp_path / "run").left == 0
    assert history(client, tracker.run_id, "loss") == [(0, 1.0)]


def test_a_broken_artifact_store_does_not_block_metrics(uri, tmp_path):
    (tmp_path / "mlartifacts").write_text("a file where the artifact folder has to be")
    tracker = open_tracker(TrackingConfig(uri=uri, flush_timeout=10), tmp_path / "run")
    tracker.text("config.yaml", "a: 1")
    tracker.metrics({"loss": 1.0}, step=0)
    tracker.finish("FINISHED")
    client = mlflow.MlflowClient(uri)
    assert history(client, tracker.run_id, "loss") == [(0, 1.0)]
    (tmp_path / "mlartifacts").unlink()
    assert sync(tmp_path / "run").left == 0
    assert [item.path for item in client.list_artifacts(tracker.run_id)] == ["config.yaml"]


TRAINING = """
import sys, time
from pathlib import Path
from avvp_dist.cli.main import main as cli
from avvp_dist.tracking.base import TrackingConfig
from avvp_dist.tracking.tracker import open_tracker
tracker = open_tracker(TrackingConfig(uri=sys.argv[1]), Path(sys.argv[2]))
step = 0
while True:
    tracker.metrics({"loss": float(step)}, step)
    print(step, flush=True)
    step += 1
    time.sleep(0.002)
"""


def test_a_killed_training_loses_nothing(uri, tmp_path):
    command = [sys.executable, "-c", TRAINING, uri, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    sent = tmp_path / "run" / "spool.sent"
    lines = []
    while not sent.is_file():  # once the first batch has arrived, kill it in the middle of its work
        lines.append(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    lines += [line for line in process.stdout if line.endswith("\n")]
    process.wait()
    assert int(sent.read_text()) < (tmp_path / "run" / "spool.jsonl").stat().st_size, "nothing was left to lose"
    report = sync(tmp_path / "run")
    assert report.left == 0
    steps = [step for step, _ in history(mlflow.MlflowClient(uri), report.run_id, "loss")]
    assert steps == list(range(len(steps)))
    assert len(steps) >= len(lines)


def test_a_truncated_journal_line_loses_only_itself(uri, tmp_path):
    tracker = open_tracker(TrackingConfig(uri=uri), tmp_path / "run")
    tracker.finish("FAILED")
    with (tmp_path / "run" / "spool.jsonl").open("ab") as handle:
        handle.write(b'{"kind": "metrics", "val')
    again = open_tracker(TrackingConfig(uri=uri), tmp_path / "run")
    again.metrics({"loss": 2.0}, step=1)
    again.finish("FINISHED")
    assert history(mlflow.MlflowClient(uri), tracker.run_id, "loss") == [(1, 2.0)]


def test_values_sent_twice_are_kept_once(uri, tmp_path):
    tracker = open_tracker(TrackingConfig(uri=uri), tmp_path / "run")
    for step in range(20):
        tracker.metrics({"loss": step / 3}, step)
    tracker.params({"lr": 0.1})
    tracker.finish("FINISHED")
    (tmp_path / "run" / "spool.sent").unlink()  # as if it had died between sending and noting it
    report = sync(tmp_path / "run")
    assert (report.sent, report.left, report.refused) == (23, 0, ())
    assert history(mlflow.MlflowClient(uri), tracker.run_id, "loss") == [(step, step / 3) for step in range(20)]


@contextmanager
def server(folder, store, port):
    """An MLflow server on loopback that hands artifacts through; ended by its process id."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--artifacts-destination", str(folder / "server-artifacts"),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )

    def healthy():
        assert process.poll() is None, (folder / "server.log").read_text()
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).status == 200
        except OSError:
            return False

    try:
        wait_for(healthy)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its own session: the server and the workers it started
        process.wait(60)


def test_a_server_that_is_down_delays_nothing_and_loses_nothing(uri, tmp_path, caplog):
    port = free_port()
    config = TrackingConfig(uri=f"http://127.0.0.1:{port}", flush_timeout=5)
    tracker = open_tracker(config, tmp_path / "run")
    wait_for(lambda: "training continues" in caplog.text)
    start = time.perf_counter()
    for step in range(1000):
        tracker.metrics({"loss": step / 7}, step)
    assert time.perf_counter() - start < 20  # 20 ms a call: none waited for a connection
    tracker.params({"lr": 0.1})
    tracker.text("config.yaml", "lr: 0.1\n")
    start = time.perf_counter()
    tracker.finish("FINISHED")
    assert time.perf_counter() - start < config.flush_timeout + 60
    assert tracker.run_id is None
    assert f"avvp sync {tmp_path / 'run'}" in caplog.text
    report = sync(tmp_path / "run")
    assert (report.sent, report.left, report.run_id) == (0, 1004, None)
    assert "Connection" in report.error

    with server(tmp_path, uri, port):
        report = sync(tmp_path / "run")
        assert (report.sent, report.left, report.error, report.refused) == (1004, 0, None, ())
        assert sync(tmp_path / "run").sent == 0
        client = mlflow.MlflowClient(config.uri)
        run = client.get_run(report.run_id)
        assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})
        assert history(client, report.run_id, "loss") == [(step, step / 7) for step in range(1000)]
        assert [item.path for item in client.list_artifacts(report.run_id)] == ["config.yaml"]
        # And the server stays away in the middle of a run that goes on:
        again = open_tracker(config, tmp_path / "run")
        again.metrics({"late": 1.0}, step=0)
        wait_for(lambda: client.get_run(report.run_id).data.metrics.get("late") == 1.0)
    again.metrics({"late": 2.0}, step=1)
    again.finish("FAILED")
    assert sync(tmp_path / "run", uri=uri).left == 0  # the same database without its server
    assert history(mlflow.MlflowClient(uri), report.run_id, "late") == [(0, 1.0), (1, 2.0)]
    assert mlflow.MlflowClient(uri).get_run(report.run_id).info.status == "FAILED"


def test_no_password_is_written_to_files_or_logs(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "hunter2"
    config = TrackingConfig(uri=f"http://me:{secret}@127.0.0.1:{free_port()}", flush_timeout=5)
    open_tracker(config, tmp_path / "run").finish("FINISHED")
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert secret.encode() not in written
    assert "tracking server not reached" in caplog.text
    assert secret not in "".join(line for line in caplog.text.splitlines() if "avvp_dist" in line)
    command = [sys.executable, "-m", "avvp_dist", "sync", str(tmp_path / "run")]
    elsewhere = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING_")}
    done = subprocess.run(command, env=elsewhere, capture_output=True, text=True, check=False)
    assert (done.returncode, "needs its password; set MLFLOW_TRACKING_USERNAME" in done.stderr) == (2, True)
    assert secret not in sync(tmp_path / "run", uri=config.uri).error
    assert (
        explain(ValueError(f"postgresql://u:{secret}@db/x?password={secret}"))
        == "ValueError: postgresql://***@db/x?password=***"
    )


def test_system_metrics_carry_the_names_mlflow_shows(uri, tmp_path):
    tracker = open_tracker(TrackingConfig(uri=uri), tmp_path / "run")
    sampler = SystemSampler(tracker, tmp_path, interval=0.05)
    sampler.start()
    wait_for(lambda: b"system/" in (tmp_path / "run" / "spool.jsonl").read_bytes())
    sampler.stop()
    tracker.finish("FINISHED")
    found = mlflow.MlflowClient(uri).get_run(tracker.run_id).data.metrics
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100
    assert 0 < found["system/system_memory_usage_percentage"] < 100
    assert found["system/process_memory_megabytes"] > 10
    assert {"system/system_memory_usage_megabytes", "system/disk_usage_percentage"} <= set(found)


def test_tracking_errors_never_stop_training(tmp_path):
    assert isinstance(open_tracker(TrackingConfig(name="none"), tmp_path), NullTracker)
    (tmp_path / "file").write_text("")
    unwritable = open_tracker(TrackingConfig(), tmp_path / "file" / "run")
    unwritable.metrics({"loss": 1.0}, step=0)
    tracker = open_tracker(TrackingConfig(uri="nonsense://", flush_timeout=0.1), tmp_path / "run")
    tracker.artifact(tmp_path / "missing.pt")
    tracker.metrics({"loss": "not a number"}, step=0)
    tracker.finish("FAILED")
    assert read_run(tmp_path / "run").get("run_id") is None


def test_a_relative_store_is_where_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = absolute(TrackingConfig(uri="sqlite:///here.db", flush_timeout=0.01))  # as a command does when it starts
    open_tracker(config, tmp_path / "run").finish("KILLED")
    assert read_run(tmp_path / "run")["uri"] == f"sqlite:///{tmp_path}/here.db"


def test_opening_a_tracker_imports_no_mlflow():
    code = "import sys, avvp_dist.tracking.journal, avvp_dist.tracking.tracker; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sync_refuses_a_folder_without_a_tracked_run(tmp_path):
    with pytest.raises(DataError, match=r"no tracked run here"):
        sync(tmp_path)


def test_a_sweep_is_sent_with_all_its_trials(uri, tmp_path):
    away = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}", flush_timeout=1)
    sweep = open_tracker(away, tmp_path / "tracking")
    for name in ("one", "two"):
        named = away.model_copy(update={"run_name": name, "parent_run": sweep.reference})
        open_tracker(named, tmp_path / "runs" / name / "tracking").finish("FINISHED")
    sweep.finish("FINISHED")
    (tmp_path / "runs" / "untracked").mkdir()
    done = CliRunner().invoke(cli.app, ["sync", str(tmp_path), "--uri", uri])
    assert done.exit_code == 0, done.output
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("avvp").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in children) == ["one", "two"]
    assert {run.info.status for run in runs} == {"FINISHED"}
