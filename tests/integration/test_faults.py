"""Real processes, really killed: whatever happens on the way, a run ends with the scores of an undisturbed one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from forks import ranks

SMALL = ["model.width=32", "model.feedforward=32", "train.batch_size=20", "tracking=none", "train.device=cpu"]
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def arguments(data: str | Path, output: Path, *overrides: str) -> list[str]:
    return ["train", "jomold", f"data={data}", f"output={output}", *SMALL, *overrides]


def start(*settings) -> subprocess.Popen:
    command = [sys.executable, "-m", "avvp_dist", *arguments(*settings)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_until(there, process: subprocess.Popen, seconds: float = 600) -> None:
    """Until ``there`` says so, while ``process`` runs."""
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def train_workers(driver: subprocess.Popen) -> list[psutil.Process]:
    """Ray Train's workers below a driver; Ray names them so."""
    found = []
    for child in psutil.Process(driver.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found += [child] if "TrainWorker" in " ".join(child.cmdline()) else []
    return found


def outcome(output: Path) -> dict:
    result = json.loads((output / "result.json").read_text())
    return {key: result[key] for key in ("scores", "best", "denoising", "artifacts")}


def test_sigterm_leaves_a_checkpoint_and_an_exit_code_of_its_own(packed, tmp_path):
    settings = ["train.epochs=40"]  # enough that it cannot be over before it hears the signal
    ranks(1, arguments(packed, tmp_path / "whole", *settings))
    process = start(packed, tmp_path / "cut", *settings)
    wait_until(lambda: list((tmp_path / "cut").glob("checkpoints/*.pt")), process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 75
    assert re.search("stopped on request at stage (estimate|denoise)", told)
    assert "Traceback" not in told
    ranks(1, arguments(packed, tmp_path / "cut", *settings))
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_ray_survives_a_dead_worker_a_polite_end_and_a_dead_driver(packed, tmp_path):
    """A worker is killed in the middle, then the driver asked to end, then the driver killed while Ray writes its
    record of checkpoints, then the newest checkpoint is damaged, then nobody disturbs."""
    settings = ["train.epochs=16", "train.check_every=2"]
    ranks(2, arguments(packed, tmp_path / "whole", *settings))
    cut = tmp_path / "cut"
    on_ray = [packed, cut, *settings, "launch=ray", "launch.workers=2"]

    def checkpoints() -> set[str]:
        return {path.parent.name for path in cut.glob("ray/train/checkpoint_*/checkpoint.pt")}

    process = start(*on_ray)
    wait_until(checkpoints, process)
    workers = train_workers(process)
    assert len(workers) == 2
    seen = checkpoints()
    workers[1].kill()
    wait_until(lambda: checkpoints() - seen, process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 75, told
    assert "stopped on request at stage" in told

    seen = checkpoints()
    process = start(*on_ray)
    wait_until(lambda: checkpoints() - seen, process)
    ray = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(ray, timeout=120)  # workers without a driver go on for a moment, and leave checkpoints
    assert not alive
    assert not (cut / "result.json").exists()

    (cut / "ray" / "train" / "checkpoint_manager_snapshot.json").write_bytes(b"")  # a kill in the middle of writing it
    newest = max(name for name in checkpoints() if (cut / "ray" / "train" / name / "checkpoint.pt").stat().st_size)
    file = cut / "ray" / "train" / newest / "checkpoint.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    process = start(*on_ray)
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert "checkpoint_manager_snapshot.json: damaged" in told
    assert f"{newest}/checkpoint.pt: damaged" in told
    assert outcome(cut) == outcome(tmp_path / "whole")
