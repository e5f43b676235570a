"""How tests run the package: a run or a command in this process, a command in a process of its own; and waiting for it.

Commands in forks of a prepared process, which start in a moment, are in `forks.py`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from avvp_dist.cli import main as cli
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import run_experiment

TIMES = ("seconds", "per_second")
"""How the keys of a history row end that depend on the clock."""


def train_here(recipe: str, data: object, output: object, *overrides: str, runtime: LocalRuntime | None = None) -> dict:
    """Train on the CPU in this process; return the content of result.json."""
    config = load(recipe, [f"data={data}", f"output={output}", *overrides])
    return run_experiment(config, runtime or LocalRuntime(config.output, "cpu"))


def stage_folder(output: object, stage: str = "train") -> Path:
    """Return the folder of the only stage of this name that a run has finished."""
    (folder,) = Path(str(output), "stages").glob(f"{stage}-*")
    return folder


def history(output: object, stage: str = "train") -> list[dict[str, Any]]:
    """Rows of a finished stage, one per epoch, without what depends on the clock."""
    rows = json.loads((stage_folder(output, stage) / "stage.json").read_text())["history"]
    return [{key: row[key] for key in row if not key.endswith(TIMES)} for row in rows]


def outcome(output: object) -> dict[str, Any]:
    """Return the parts of result.json that have to be equal for equal runs."""
    result = json.loads(Path(str(output), "result.json").read_text())
    return {key: result[key] for key in ("scores", "best", "denoising", "artifacts")}


def invoke(*arguments: object) -> str:
    """Run a command in this process and return its output; raise what it raises."""
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if done.exception:
        raise done.exception
    return done.output


def start(arguments: Sequence[object], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `avvp` in a process group of its own, as a shell on a terminal does."""
    # a shell script's background jobs ignore Ctrl-C, and so would their children
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "avvp_dist", *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {}),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, handler)


def wait_until(condition: Callable[[], object], process: subprocess.Popen | None = None, seconds: float = 300.0) -> None:
    """Wait until a condition holds; fail if ``process`` ends before, or after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError("".join(part or "" for part in process.communicate()))
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def with_settings(base, *settings):
    """Return ``base`` with these settings instead of its own for the same keys: a command line may name a key once."""
    keys = {setting.partition("=")[0] for setting in settings}
    return [*(setting for setting in base if setting.partition("=")[0] not in keys), *settings]
