"""Runs whose shards are damaged during training fail with the shard's name, do not hang, and resume once it is restored."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import wait_until
from safetensors.numpy import load_file

from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.errors import DataError
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import run_experiment

SHARD = "train-000001.tar"
SMALL = ["train.batch_size=16", "model.width=16", "model.feedforward=16", "tracking=none", "train.device=cpu"]


class Damaging(LocalRuntime):
    """Overwrites a shard in place after the first checkpoint."""

    def __init__(self, output: str, shard: Path) -> None:
        super().__init__(output, "cpu")
        self._shard = shard

    def report(self, metrics, checkpoint) -> None:
        super().report(metrics, checkpoint)
        with self._shard.open("r+b") as file:
            file.seek(200_000)
            file.write(b"\x11" * 1000)


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_run_resumes_once_its_shard_is_restored(packed, tmp_path, mode):
    data = Path(shutil.copytree(packed, tmp_path / "data"))
    whole = (data / SHARD).read_bytes()

    def run(output: str, runtime=None):
        settings = [f"data={data}", f"data.mode={mode}", "data.streams=4", "data.window=16", "data.workers=0"]
        config = load("han", [*settings, f"output={tmp_path / output}", "train.epochs=3", *SMALL])
        return run_experiment(config, runtime or LocalRuntime(config.output, "cpu"))

    expected = run("whole")
    with pytest.raises(DataError, match=f"(?s)train cannot be read.*{SHARD}: "):
        run("damaged", Damaging(str(tmp_path / "damaged"), data / SHARD))
    assert len(list((tmp_path / "damaged" / "checkpoints").iterdir())) == 1
    (data / SHARD).write_bytes(whole)
    assert run("damaged")["scores"] == expected["scores"]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "damaged")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_shard_truncated_during_training_ends_both_ranks(packed, tmp_path):
    data, output = Path(shutil.copytree(packed, tmp_path / "data")), tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "avvp_dist",
        "train",
    ]
    command += ["han", f"data={data}", f"output={output}", "train.epochs=100000", *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        wait_until(lambda: list(output.glob("checkpoints/*.pt")) or running.poll() is not None)
        os.truncate(data / SHARD, 1000)
        _, stderr = running.communicate(timeout=240)
    finally:
        running.send_signal(signal.SIGKILL)
    assert running.returncode not in (0, None)
    assert f"{SHARD}: overwritten or truncated while it is being read (1000 bytes, but the index records" in stderr
    assert "error: " in stderr
    assert "SIGBUS" not in stderr
    assert not (output / "result.json").exists()
    assert json.loads((data / "index.json").read_text())["shards"][1]["name"] == SHARD
