"""Runs on a Ray of their own and on one that others use: listeners, token, temporary folder, resources, signals."""

import os
import re
import signal
import stat
import subprocess
import time

import psutil
import pytest
from test_launchers import SMALL, start, wait_until

ray = pytest.importorskip("ray")


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


@pytest.mark.parametrize("second", [False, True])
def test_a_run_on_its_own_ray_is_closed_to_others_and_stops_on_ctrl_c(packed, tmp_path, second):
    home, long, run = tmp_path / "home", tmp_path / ("x" * 70), tmp_path / "run"
    home.mkdir()
    long.mkdir()
    arguments = ["train", "han", f"data={packed}", f"output={run}", *SMALL, "train.epochs=2000", "train.check_every=2"]
    mark = f"mark-{os.getpid()}-{second}"
    environment = {"HOME": str(home), "TMPDIR": str(long), "AVVP_TEST_MARK": mark, "WORLD_SIZE": "3", "RANK": "2"}
    driver = start([*arguments, "launch=ray", "launch.workers=2"], environment)
    wait_until(lambda: list(run.glob("ray/train/checkpoint_*/checkpoint.pt")), driver, 600)
    seen = listening(driver, mark)
    token = home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert any("TrainWo" in name for name, _ in seen), seen
    assert {address for _, address in seen} <= {"127.0.0.1", "::1"}, seen
    os.killpg(driver.pid, signal.SIGINT)
    if second:
        time.sleep(0.3)
        os.killpg(driver.pid, signal.SIGINT)
    _, told = driver.communicate(timeout=20 if second else 300)
    assert driver.returncode == (130 if second else 75), told
    ours = [line for line in told.splitlines() if not re.search(r"\(\w+ pid=\d+\)", line)]  # not those of Ray's own actors
    assert not [line for line in ours if "Traceback" in line or "KeyboardInterrupt" in line], told
    assert ("ended at once" if second else "error: asked to stop at stage train") in told
    deadline = time.monotonic() + 60
    while listening(driver, mark):  # Ray ends with its driver
        assert time.monotonic() < deadline
        time.sleep(0.5)


def failed(capsys, *arguments) -> str:
    from avvp_dist.cli import main as cli

    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return " ".join(told.split())


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["launch.workers=3"], "3 workers with 1 CPU each asked for"),
        (["launch.workers=4", "launch.min_workers=3"], "3 workers with 1 CPU each asked for"),
        (["launch.cpus_per_worker=2.5"], "1 worker with 2.5 CPUs asked for"),
        (["launch.gpus_per_worker=1", "train.device=auto"], "1 worker with 1 CPU and 1 GPU asked for"),
    ],
)
def test_what_a_cluster_can_never_give_is_refused_at_once(joined, packed, tmp_path, capsys, asked, told):
    began = time.monotonic()
    said = failed(capsys, "train", "han", f"data={packed}", f"output={tmp_path / 'run'}", *SMALL, "launch=ray", *asked)
    assert time.monotonic() - began < 30
    assert f"{told}, which this cluster can never hold: it has 1 node with 2 CPUs" in said
    assert "launch.workers" in said


def test_resources_in_use_are_waited_for_with_a_limit(joined, packed, tmp_path, capsys, monkeypatch, caplog):
    holder = ray.remote(num_cpus=2)(type("Holder", (), {"there": lambda self: True})).remote()
    assert ray.get(holder.there.remote())
    settings = [f"data={packed}", f"output={tmp_path / 'run'}", *SMALL, "launch=ray", "launch.workers=2", "launch.wait=2"]
    with caplog.at_level("INFO"):
        said = failed(capsys, "train", "han", *settings)
        assert "there was no room within 2 s (others use them)" in said
        assert "launch.wait=SECONDS" in said
        assert "waiting for others to end, 1 of 2 s: 2 workers with 1 CPU each asked for" in " ".join(caplog.messages)
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)  # whose monitor says that nothing starts nodes
    said = failed(capsys, "train", "han", *settings[:-2], "launch.workers=5", "launch.wait=600")
    assert "which this cluster can never hold" in said
    ray.kill(holder)


def test_needs_are_counted_by_node():
    from avvp_dist.launch.resources import Need

    def need(count, each, beside=None):
        return Need("worker", count, each, beside or {}, "")

    assert need(2, {"CPU": 1}).fits([{"CPU": 1.0}, {"CPU": 1.0}])
    assert not need(1, {"CPU": 2}).fits([{"CPU": 1.0}, {"CPU": 1.0}])  # a worker is on one node
    assert not need(3, {"CPU": 1, "GPU": 1}).fits([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}])
    assert need(4, {"CPU": 1, "GPU": 0.5}).fits([{"CPU": 8.0, "GPU": 2.0}])
    assert need(10, {"CPU": 0.1}).fits([{"CPU": 1.0}])
    assert need(2, {"CPU": 0.95}, {"CPU": 0.1}).fits([{"CPU": 2.0}])
    assert not need(2, {"CPU": 0.95}, {"CPU": 0.1}).fits([{"CPU": 1.0}, {"CPU": 1.0}])
    assert not need(1, {"CPU": 1}).fits([])
