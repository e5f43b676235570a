"""A task of another package, found by its entry point: it trains, evaluates, sweeps and compares like the built-in ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.shards.feature_source import FeatureReport
from avvp_dist.shards.pack import pack
from avvp_dist.shards.spec import Dataset, Stream
from avvp_dist.types import Event, VideoRecord

PLUGINS = Path(__file__).parents[1] / "plugins"
TOY = Dataset(
    "toys",
    ("low", "high"),
    tuple(Stream(name, 3, name, 4) for name in ("audio", "visual", "motion")),
    4,
    "toy",
    ("audio", "visual"),
)
NETWORK = [
    "model.width=8",
    "model.feedforward=8",
    "tracking=none",
    "train.device=cpu",
    "train.batch_size=8",
    "optim.lr=0.01",
]


class ToyFeatures:
    """Features whose first two values are the events of the second."""

    def fingerprint(self, records):
        return "toy"

    def examine(self, record):
        return FeatureReport()

    def read(self, record):
        rows = np.zeros((TOY.segments, TOY.width), np.float16)
        for start in range(0, TOY.width, 3):
            for event in record.events["audio"]:
                rows[event.onset : event.offset, start + event.label] = 3
        return rows


def videos():
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        for number in range(count):
            event = (Event(number % 2, number % 3, number % 3 + 2),)
            yield VideoRecord(
                f"{split}{number}", f"{split}{number}", split, (number % 2,), {"audio": event, "visual": event}
            )


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "packed"
    pack(TOY, list(videos()), ToyFeatures(), str(out), provenance={"synthetic": True}, workers=1)
    return out


@pytest.fixture(scope="module")
def avvp(tmp_path_factory):
    """The command, in an environment in which a package with the task is installed."""
    site = tmp_path_factory.mktemp("site")
    info = site / "toy_task-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[avvp_dist.tasks]\ntoy = toy_task:ToyConfig\n")
    path = os.pathsep.join([str(site), str(PLUGINS), os.environ.get("PYTHONPATH", "")])

    job = {"runtime_env": {"env_vars": {"PYTHONPATH": path}}}  # of the workers of a Ray that others have started
    own = {"PYTHONPATH": path, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}

    def run(*arguments, cwd, **variables):
        command = [sys.executable, "-m", "avvp_dist", *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, env=os.environ | own | variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_training_evaluation_and_comparison(avvp, packed, tmp_path):
    for seed in (1, 2):
        done = avvp(
            "train", "han", f"data={packed}", "task=toy", "evaluate.select=errors", f"output=run{seed}", f"seed={seed}",
            "train.epochs=6", *NETWORK, cwd=tmp_path,
        )  # fmt: skip
        assert "val errors" in done
    result = json.loads((tmp_path / "run1" / "result.json").read_text())
    assert result["task"]["name"] == "toy"
    scores = result["scores"]["test"]
    assert set(scores) == {"whole", "whole/first"}
    assert set(scores["whole"]["metrics"]) == {"errors", "accuracy"}
    history = json.loads((tmp_path / "run1" / "history.json").read_text())
    assert result["best"]["value"] == min(row["val/errors"] for row in history)  # less is better
    assert "result.json reproduced" in avvp("evaluate", "run1", cwd=tmp_path)
    shown = avvp("compare", "run1", "run2", "--subsets", "--per-class", "--csv", "scores.csv", cwd=tmp_path)
    assert "wrong seconds" in shown or "Err" in shown
    rows = (tmp_path / "scores.csv").read_text()
    assert "whole/first,errors" in rows
    assert "whole,accuracy,low" in rows


def test_a_sweep_minimizes_the_metric(avvp, cluster, packed, tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "title: toy\nrecipe: han\nseeds: [1]\nconcurrency: 1\nspace:\n  optim.lr: {grid: [0.000001, 0.01]}\n"
    )
    avvp(
        "sweep", "toy.yaml", f"data={packed}", "task=toy", "evaluate.select=errors", "train.epochs=4",
        *(key for key in NETWORK if not key.startswith("optim")), "--output", "sweep",
        cwd=tmp_path, **cluster.environment,
    )  # fmt: skip
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert (record["metric"], record["mode"]) == ("val errors", "min")
    shown = avvp("compare", "--sweep", "sweep", "--select", cwd=tmp_path)
    scores = {row["setting"]["optim.lr"]: row["score"] for row in record["trials"]}
    assert scores[0.01] < scores[0.000001]
    assert "selected on val by errors (whole): han optim.lr=0.01" in shown or "lr=0.01, the best of 2" in shown
