"""Runs on a Ray of their own and on a shared one: listeners, token, temporary folder, resources, signals, faults."""

import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from commands import outcome, start, wait_until, with_settings
from damage import flip
from forks import ranks
from test_launchers import SMALL

ray = pytest.importorskip("ray")
EPOCHS = ["train.epochs=24", "train.check_every=2"]  # more than a run has time for before it is disturbed


def listening(driver: subprocess.Popen, session: str) -> set[tuple[str, str]]:
    """Names and addresses of the processes of a driver and its Ray that accept connections."""
    found = set()
    for process in psutil.process_iter():
        try:
            ours = process.pid == driver.pid or session in " ".join([*process.cmdline(), *process.environ().values()])
            for place in process.net_connections("tcp") if ours else ():
                if place.status == psutil.CONN_LISTEN:
                    found.add((process.name(), place.laddr.ip.removeprefix("::ffff:")))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def train_workers(driver: subprocess.Popen) -> list[psutil.Process]:
    """Ray Train's workers below a driver; Ray names them so."""
    found = []
    for child in psutil.Process(driver.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found += [child] if "TrainWorker" in " ".join(child.cmdline()) else []
    return found


def writing_processes(driver: subprocess.Popen) -> list[psutil.Process]:
    """Processes below a driver without Ray's agents, which touch no run and live on for a minute without their Ray."""
    children = psutil.Process(driver.pid).children(recursive=True)
    return [child for child in children if not re.search("(DashboardAgent|RuntimeEnvAgent)", " ".join(child.cmdline()))]


def own_lines(log: str) -> list[str]:
    """Lines of a driver's log that are not of Ray's own actors."""
    return [line for line in log.splitlines() if not re.search(r"\(\w+ pid=\d+\)", line)]


class OwnRay:
    """A run of two workers, started again and again, on a Ray of its own unless the environment names another."""

    def __init__(self, packed: str, folder: Path) -> None:
        self.output, self.home, self.marker = folder / "run", folder / "home", f"marker-{os.getpid()}"
        long = folder / ("x" * 70)  # too long for Ray's sockets
        self.home.mkdir()
        long.mkdir()
        self._arguments = ["train", "jomold", f"data={packed}", f"output={self.output}", *SMALL, *EPOCHS]
        self._arguments += ["launch=ray", "launch.workers=2"]
        self._environment = {"HOME": str(self.home), "TMPDIR": str(long), "AVVP_TEST_MARKER": self.marker}
        self._environment |= {"WORLD_SIZE": "3", "RANK": "2", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}

    def checkpoints(self) -> set[str]:
        return {path.parent.name for path in self.output.glob("ray/train/checkpoint_*/checkpoint.pt")}

    def start(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen:
        return start(self._arguments, environment or self._environment)

    def start_and_train(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen:
        """Return when the run has written another checkpoint."""
        before, driver = self.checkpoints(), self.start(environment)
        wait_until(lambda: self.checkpoints() - before, driver, 600)
        return driver

    def assert_ray_ends(self, driver: subprocess.Popen) -> None:
        wait_until(lambda: not listening(driver, self.marker), seconds=60)


def test_faults_and_signals_on_a_ray_of_its_own(cluster, packed, tmp_path):
    """A run resumes with the scores of an undisturbed one, whatever ended it.

    A worker is killed and then Ctrl-C pressed; Ctrl-C is pressed twice, on another Ray; the driver is killed while Ray
    writes its record of checkpoints, and the newest checkpoint is damaged; another Ray takes over. The first start also
    checks that only this user has access. SIGTERM, with which Ray stops a job, is in test_jobs.py.
    """
    run = OwnRay(packed, tmp_path)
    driver = run.start_and_train()
    listeners = listening(driver, run.marker)
    assert stat.S_IMODE((run.home / ".ray" / "auth_token").stat().st_mode) == 0o600
    assert any("TrainWo" in name for name, _ in listeners), listeners
    assert {address for _, address in listeners} <= {"127.0.0.1", "::1"}, listeners
    workers = train_workers(driver)
    assert len(workers) == 2
    before = run.checkpoints()
    workers[1].kill()
    wait_until(lambda: run.checkpoints() - before, driver, 600)
    os.killpg(driver.pid, signal.SIGINT)
    _, log = driver.communicate(timeout=300)
    assert driver.returncode == 75, log
    assert "error: stopped on request at stage" in log
    assert not [line for line in own_lines(log) if "Traceback" in line or "KeyboardInterrupt" in line], log
    run.assert_ray_ends(driver)

    driver = run.start_and_train(cluster.environment)
    os.killpg(driver.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(driver.pid, signal.SIGINT)
    _, log = driver.communicate(timeout=20)
    assert driver.returncode == 130, log
    assert "ended immediately" in log
    assert not [line for line in own_lines(log) if "Traceback" in line or "KeyboardInterrupt" in line], log

    driver = run.start_and_train()
    processes = writing_processes(driver)
    driver.kill()
    driver.communicate()
    whole = tmp_path / "whole"  # the undisturbed run, trained while Ray notices the loss of its driver
    ranks(2, ["train", "jomold", f"data={packed}", f"output={whole}", *SMALL, *EPOCHS])
    _, alive = psutil.wait_procs(processes, timeout=120)  # workers without a driver run on for a moment
    assert not alive
    assert not (run.output / "result.json").exists()

    folder = run.output / "ray" / "train"
    (folder / "checkpoint_manager_snapshot.json").write_bytes(b"")  # a kill in the middle of writing it
    newest = max(name for name in run.checkpoints() if (folder / name / "checkpoint.pt").stat().st_size)
    flip(folder / newest / "checkpoint.pt")

    _, log = (driver := run.start(cluster.environment)).communicate()
    assert driver.returncode == 0, log
    assert "checkpoint_manager_snapshot.json: damaged" in log
    assert f"{newest}/checkpoint.pt: damaged" in log
    assert outcome(run.output) == outcome(whole)


def failed(capsys, *arguments) -> str:
    from avvp_dist.cli import main as cli

    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return " ".join(message.split())


@pytest.mark.parametrize(
    ("settings", "need"),
    [
        (["launch.workers=3"], "3 workers with 1 CPU each requested"),
        (["launch.workers=4", "launch.min_workers=3"], "3 workers with 1 CPU each requested"),
        (["launch.cpus_per_worker=2.5"], "1 worker with 2.5 CPUs requested"),
        (["launch.gpus_per_worker=1", "train.device=auto"], "1 worker with 1 CPU and 1 GPU requested"),
    ],
)
def test_resources_that_a_cluster_can_never_provide_are_refused(joined, packed, tmp_path, capsys, settings, need):
    began = time.monotonic()
    arguments = [f"data={packed}", f"output={tmp_path / 'run'}", *with_settings(SMALL, "launch=ray", *settings)]
    message = failed(capsys, "train", "han", *arguments)
    assert time.monotonic() - began < 30
    assert f"{need}, which this cluster can never have: it has 1 node with 2 CPUs" in message
    assert "launch.workers" in message


def test_resources_in_use_are_waited_for_with_a_limit(joined, packed, tmp_path, capsys, monkeypatch, caplog):
    holder = ray.remote(num_cpus=2)(type("Holder", (), {"there": lambda self: True})).remote()
    assert ray.get(holder.there.remote())
    settings = [f"data={packed}", f"output={tmp_path / 'run'}", *SMALL, "launch=ray", "launch.workers=2", "launch.wait=2"]
    with caplog.at_level("INFO"):
        message = failed(capsys, "train", "han", *settings)
        assert "not available within 2 s (other processes use them)" in message
        assert "launch.wait=SECONDS" in message
        assert "waiting for other processes to end, 1 of 2 s: 2 workers with 1 CPU each requested" in " ".join(
            caplog.messages
        )
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)  # whose monitor says that nothing starts nodes
    message = failed(capsys, "train", "han", *settings[:-2], "launch.workers=5", "launch.wait=600")
    assert "which this cluster can never have" in message
    ray.kill(holder)


def test_needs_are_counted_by_node():
    from avvp_dist.launch.resources import ResourceRequest

    def need(count, each, beside=None):
        return ResourceRequest("worker", count, each, beside or {}, "")

    assert need(2, {"CPU": 1}).fits([{"CPU": 1.0}, {"CPU": 1.0}])
    assert not need(1, {"CPU": 2}).fits([{"CPU": 1.0}, {"CPU": 1.0}])  # a worker is on one node
    assert not need(3, {"CPU": 1, "GPU": 1}).fits([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}])
    assert need(4, {"CPU": 1, "GPU": 0.5}).fits([{"CPU": 8.0, "GPU": 2.0}])
    assert need(10, {"CPU": 0.1}).fits([{"CPU": 1.0}])
    assert need(2, {"CPU": 0.95}, {"CPU": 0.1}).fits([{"CPU": 2.0}])
    assert not need(2, {"CPU": 0.95}, {"CPU": 0.1}).fits([{"CPU": 1.0}, {"CPU": 1.0}])
    assert not need(1, {"CPU": 1}).fits([])
