"""A run that was stopped by SIGTERM resumes with the scores of an undisturbed one. On Ray: test_ray_launching.py."""

import re
import signal
from pathlib import Path

from commands import outcome, start, wait_until
from forks import ranks

SMALL = ["model.width=32", "model.feedforward=32", "train.batch_size=20", "tracking=none", "train.device=cpu"]


def arguments(data: str | Path, output: Path, *overrides: str) -> list[str]:
    return ["train", "jomold", f"data={data}", f"output={output}", *SMALL, *overrides]


def test_sigterm_leaves_a_checkpoint_and_an_exit_code_of_its_own(packed, tmp_path):
    settings = ["train.epochs=40"]  # enough that it cannot be over before it hears the signal
    ranks(1, arguments(packed, tmp_path / "whole", *settings))
    process = start(arguments(packed, tmp_path / "cut", *settings))
    wait_until(lambda: list((tmp_path / "cut").glob("checkpoints/*.pt")), process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 75
    assert re.search("stopped on request at stage (estimate|denoise)", stderr)
    assert "Traceback" not in stderr
    ranks(1, arguments(packed, tmp_path / "cut", *settings))
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
