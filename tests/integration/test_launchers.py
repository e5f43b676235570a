"""Ranks with the environment of torchrun and srun; listeners; Ctrl-C and SIGTERM; users without a home directory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import psutil
import pytest
from commands import start, wait_until
from ports import free_port

SMALL = ["model.width=32", "model.feedforward=32", "train.batch_size=20", "tracking=none", "train.device=cpu"]
TESTS = Path(__file__).parents[1]


def listening(processes) -> set[str]:
    """Addresses on which the processes accept connections."""
    found = set()
    for process in processes:
        try:
            known = psutil.Process(process.pid)
            for one in (known, *known.children(recursive=True)):
                found |= {place.laddr.ip for place in one.net_connections("tcp") if place.status == psutil.CONN_LISTEN}
        except psutil.NoSuchProcess:
            continue
    return found


def scores(output: Path) -> dict:
    return json.loads((output / "result.json").read_text())["scores"]


def by_torchrun(rank: int, port: int) -> dict[str, str]:
    return {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def by_srun(rank: int, port: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "node[3-4]",
    }


def test_ranks_of_srun_equal_those_of_torchrun_and_listen_on_loopback(packed, tmp_path):
    for name, environment in (("torchrun", by_torchrun), ("srun", by_srun)):
        port = free_port()
        arguments = ["train", "jomold", f"data={packed}", f"output={tmp_path / name}", *SMALL, "train.epochs=2"]
        folders = [tmp_path / f"{name}-{rank}" for rank in range(2)]
        ranks = []
        for rank, folder in enumerate(folders):
            folder.mkdir()
            ranks.append(forks.start(arguments, os.environ | environment(rank, port), folder))
        addresses: set[str] = set()
        while any(rank.is_alive() for rank in ranks):
            addresses |= listening(ranks)
            time.sleep(0.02)
        assert [rank.exitcode for rank in ranks] == [0, 0], [(folder / "err").read_text() for folder in folders]
        assert addresses
        assert addresses <= {"127.0.0.1", "::1"}
    assert scores(tmp_path / "srun") == scores(tmp_path / "torchrun")


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "x"}])
def test_an_incomplete_launch_is_refused(packed, tmp_path, environment):
    process = start(["train", "han", f"data={packed}", f"output={tmp_path / 'run'}", *SMALL], environment)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "torchrun" in stderr
    assert "unset WORLD_SIZE" in stderr
    assert len(stderr.splitlines()) <= 3
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_leave_a_checkpoint_and_report_the_same(packed, tmp_path, number):
    run = tmp_path / "run"
    process = start(["train", "han", f"data={packed}", f"output={run}", *SMALL, "train.epochs=500"])
    wait_until(lambda: list(run.glob("checkpoints/*.pt")), process)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "stop requested: a checkpoint is written" in stderr
    assert "error: stopped on request at stage train" in stderr
    assert "the same command resumes from there" in stderr
    assert "Traceback" not in stderr


def test_a_second_ctrl_c_ends_a_rank_that_waits_for_others(packed, tmp_path):
    run, port = tmp_path / "run", free_port()
    arguments = ["train", "han", f"data={packed}", f"output={run}", *SMALL, "train.epochs=500"]
    first, second = (start(arguments, by_torchrun(rank, port)) for rank in range(2))
    try:
        wait_until(lambda: list(run.glob("checkpoints/*.pt")), first)
        os.kill(second.pid, signal.SIGSTOP)  # rank 0 waits for it in native code
        time.sleep(0.5)
        os.killpg(first.pid, signal.SIGINT)
        time.sleep(0.5)
        assert first.poll() is None
        os.killpg(first.pid, signal.SIGINT)
        _, stderr = first.communicate(timeout=20)
    finally:
        second.kill()
        second.communicate()
    assert first.returncode == 130
    assert "ended immediately" in stderr
    assert "Traceback" not in stderr


def test_ctrl_c_during_packing_tells_how_to_resume(tmp_path):
    from llp_files import video_id, write_annotations, write_features

    write_annotations(tmp_path / "llp")
    write_features(tmp_path / "llp", [video_id(number) for number in range(12)])
    held = tmp_path / "held"
    # a feature file that takes its time
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        f"if {str(held)!r} in os.environ.get('HOLD', ''):\n"
        "    from avvp_dist.datasets import feature_files\n"
        "    def load(*_):\n"
        f"        open({str(held)!r}, 'w').close()\n"
        "        time.sleep(600)\n"
        "    feature_files.load = load\n"
    )
    places = ["--annotations", tmp_path / "llp", "--features", tmp_path / "llp", "--out", tmp_path / "out"]
    path = os.pathsep.join([str(tmp_path), str(TESTS.parent)])
    process = start(["data", "pack", "llp", *places, "--workers", "1"], {"HOLD": str(held), "PYTHONPATH": path})
    wait_until(held.exists, process)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert "finished shards are kept, the same command resumes" in stderr
    assert "Traceback" not in stderr


def unknown_user() -> list[str]:
    """Starts a command as a user without passwd entry and without HOME; skips where namespaces are not allowed."""
    prefix = ["unshare", "--user", "--map-user=12345"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    return prefix


def test_without_a_home_directory_local_training_works_and_the_cache_is_refused(packed, tmp_path):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    arguments = ["train", "han", f"data={packed}", f"output={tmp_path / 'run'}", *SMALL[:-2], "train.epochs=1"]
    arguments += ["train.device=cpu", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
    command = [*unknown_user(), sys.executable, "-m", "avvp_dist"]
    done = subprocess.run([*command, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "MLflow run" in done.stderr  # which asks for a home when it is imported
    done = subprocess.run([*command, "cache", "info"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: no folder for a cache: HOME is not set and uid 12345 has no passwd entry; set AVVP_CACHE"
    )
    assert len(done.stderr.splitlines()) == 1
