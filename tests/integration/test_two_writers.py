"""Two runs at the same time on one output, or on one stage of a shared store: real processes, killed for real."""

import os
import signal
import subprocess
import sys

import pytest
from commands import wait_until
from typer.testing import CliRunner

from avvp_dist import storage
from avvp_dist.cli import main as cli
from avvp_dist.errors import ConfigError
from avvp_dist.storage import locks

SMALL = ["model.width=16", "model.feedforward=16", "tracking=none", "train.device=cpu"]


def start(*arguments, **environment):
    command = [sys.executable, "-m", "avvp_dist", "train", "han", *SMALL, *arguments]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def train(*arguments):
    return CliRunner().invoke(cli.app, ["train", "han", *SMALL, *arguments])


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_second_run_on_an_output_names_the_process_that_uses_it(packed, tmp_path, request, monkeypatch, where):
    monkeypatch.setattr(locks, "_WAIT_FOR_RUNNING", 0.5)
    monkeypatch.setattr(locks._ObjectLock, "poll", 0.3)
    output = str(tmp_path / "run") if where == "disk" else f"{request.getfixturevalue('s3')}/run"
    monkeypatch.setattr(locks, "_STALE_AFTER", 60.0 if where == "disk" else 3.0)
    (tmp_path / "tmp").mkdir()
    arguments = [f"data={packed}", f"output={output}", "train.epochs=10000"]
    first = start(*arguments, TMPDIR=str(tmp_path / "tmp"))
    try:
        wait_until(lambda: storage.names(f"{output}/checkpoints"), first)
        if where == "disk":
            second = train(*arguments)
            assert isinstance(second.exception, ConfigError)
            assert f"run: in use by process {first.pid} of" in str(second.exception)
            assert "train han" in str(second.exception)
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
        first.wait()
        third = train(f"data={packed}", f"output={output}", "optim.lr=0.1")  # gets as far as the config that is there
        assert "holds another run" in str(third.exception)
        assert storage.names(f"{output}/checkpoints")
    finally:
        first.kill()
        first.wait()


def test_a_second_run_waits_for_a_stage_and_reuses_it(packed, tmp_path, caplog):
    shared = [f"data={packed}", f"store={tmp_path / 'store'}", "train.epochs=25"]
    first = start(*shared, f"output={tmp_path / 'one'}")
    try:
        wait_until(lambda: storage.names(f"{tmp_path}/one/checkpoints"), first)
        with caplog.at_level("INFO"):
            second = train(*shared, f"output={tmp_path / 'two'}")
        assert second.exit_code == 0, second.exception
        _, stderr = first.communicate(timeout=300)
        assert first.returncode == 0, stderr
    finally:
        first.kill()
        first.wait()
    assert f"waiting for process {first.pid} of" in caplog.text
    assert not (tmp_path / "two" / "checkpoints").exists()
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "command",
    [
        ["train", "han", *SMALL, "data={data}", "output={place}", "launch=ray"],
        ["table", "main", "--data", "{data}", "--output", "{place}", "--seeds", "1"],
        ["sweep", "jomold-denoising", "data={data}", "--output", "{place}"],
    ],
)
def test_every_command_that_writes_a_folder_names_the_process_that_uses_it(packed, tmp_path, monkeypatch, command):
    """Before Ray starts, and before a file in the folder is touched."""
    monkeypatch.setattr(locks, "_WAIT_FOR_RUNNING", 0.2)
    place = tmp_path / "place"
    with locks.lock_folder(str(place)):
        done = CliRunner().invoke(cli.app, [word.format(data=packed, place=place) for word in command])
        assert isinstance(done.exception, ConfigError)
        assert f"place: in use by process {os.getpid()} of" in str(done.exception)
        assert [path.name for path in place.iterdir()] == [storage.LOCK]
