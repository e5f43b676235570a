"""`avvp sweep` before anything starts: the whole sweep file is checked, and a refused sweep leaves no files."""

import json
import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from avvp_dist.cli import main as cli
from avvp_dist.datasets.external import noisy_segment_labels

pytest.importorskip("ray")
TINY = ["model.width=16", "train.epochs=1", "train.batch_size=16", "evaluate.batch_size=64"]
RATES = {"optim.lr": {"grid": [1e-3]}}
POPULATION = {
    "scheduler": {"name": "pbt"},
    "search": {"name": "random", "samples": 1},
    "space": {"optim.gamma": {"choice": [1, 9]}},
}


@pytest.fixture
def here(packed, tmp_path, monkeypatch):
    """The folder in which commands start, with the data set `data` in it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(packed)
    return tmp_path


def sweep(*arguments, **content):
    """A sweep of the file s.yaml with this content."""
    base = {"title": "t", "recipe": "han", "space": RATES, "seeds": [1], "overrides": TINY}
    Path("s.yaml").write_text(yaml.safe_dump(base | content))
    return CliRunner().invoke(cli.app, ["sweep", "s.yaml", "data=data", "--output", "out", *arguments])


def optuna(**space):
    return {"search": {"name": "optuna", "samples": 2}, "space": space}


@pytest.mark.parametrize("how", [["--dry-run"], []], ids=["dry-run", "run"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"metric": "segment.tpye"},
            "metric: task parsing has no metric 'segment.tpye'; did you mean 'segment.type'? Valid names: segment.audio",
        ),
        ({"metric": "loss"}, "metric: task parsing has no metric 'loss'. Valid names"),
        ({"mode": "best"}, "mode: "),
        ({"space": {"optim.lr": {"uniform": [0.001, 0.01], "step": 1e-12}}}, "step=1e-12 gives more than 10,000 values"),
        ({"seeds": [-1]}, "seeds: "),
        ({"recipe": "hna"}, "unknown recipe 'hna'; did you mean 'han'?"),
        ({"recipe": "nowhere.yaml"}, "nowhere.yaml: no such recipe file"),
        ({"overrides": [*TINY, "optim.lrr=1"]}, "optim.lrr: unknown key; did you mean 'lr'?"),
        ({"overrides": [*TINY, "seed=3"]}, "overrides: seed: use seeds"),
        ({"space": {"optim.lrr": {"grid": [1]}}}, "setting lrr=1: optim.lrr: unknown key; did you mean 'lr'?"),
        ({"space": {"optim.lr": {"grid": [1e-3, -1.0]}}}, "setting lr=-1: optim.lr: Input should be greater than 0"),
        ({"space": {"model.name": {"grid": ["han", "hna"]}}}, "setting name=hna: model.name: unknown model 'hna'"),
        ({"space": {"data.refined": {"grid": ["none.npz"]}}}, "none.npz: no such file"),
        ({"recipe": "jomold", "space": {"method.ratios": {"grid": ["r.json"]}}}, "r.json: no such file"),
        ({"recipe": "lr", "space": {"method.window": {"grid": [4, 7]}}}, "setting window=7: method.window: 7 of"),
        (optuna(**{"method.loss": {"choice": ["both", "some"]}}), "setting loss=some: method.loss"),
        (optuna(**{"optim.gamma": {"uniform": [0.1, 2.0]}}), "setting gamma=2: optim.gamma: Input should be less"),
        ({"recipe": "valor", "search": {"name": "optuna"}}, "data.refined: missing; method valor trains on"),
        (POPULATION, "setting gamma=9: optim.gamma: Input should be less"),
    ],
)
def test_mistakes_in_a_sweep_file_are_reported_before_anything_starts(here, how, content, message):
    done = sweep(*how, **content)
    assert message in str(done.exception)
    assert done.exception.exit_code == 2
    assert sorted(path.name for path in here.iterdir()) == ["data", "s.yaml"]


def test_a_dry_run_resolves_relative_paths_and_leaves_nothing(here, packed, monkeypatch):
    """Relative paths in every key: recipe file, overrides of the sweep and of the command, swept values."""
    Path("labels.npz").write_bytes(noisy_segment_labels(packed, flip=0.1, seed=0).to_bytes())
    mine = {"recipe": "mine", "model": {"name": "han"}, "method": {"name": "han"}, "data": {"cache": "cache"}}
    Path("mine.yaml").write_text(yaml.safe_dump(mine))
    space = {"data.refined": {"grid": [None, "labels.npz"]}}
    monkeypatch.setenv("COLUMNS", "500")
    first = sweep("--dry-run", recipe="mine.yaml", space=space)
    assert first.exit_code == 0, first.output
    assert f"refined={here}/labels.npz" in first.output
    assert not Path("out").exists()
    (here / "away").mkdir()
    monkeypatch.chdir(here / "away")
    os.symlink(here / "s.yaml", "s.yaml")
    lost = CliRunner().invoke(cli.app, ["sweep", "s.yaml", "data=data", "--dry-run"])
    assert f"{here}/away/mine.yaml: no such recipe file" in str(lost.exception)


def test_a_sweep_in_a_job_refuses_relative_places(here, monkeypatch):
    """They would lie in the folder of the job's upload, which ends with it."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    done = sweep()
    for place in (f"output={here}/out", f"tracking.uri=sqlite:///{here}/mlflow.db"):
        assert f"{place}: is in the job's own folder" in str(done.exception)
    assert sorted(path.name for path in here.iterdir()) == ["data", "s.yaml"]


def test_a_run_trained_with_relative_paths_is_scored_without_its_label_files(here, packed, monkeypatch):
    """Noise ratios and refined labels, which only training reads."""
    from avvp_dist.shards.index import Index

    classes = Index.load(packed).classes
    Path("ratios.json").write_text(json.dumps({modality: dict.fromkeys(classes, 0.2) for modality in ("audio", "visual")}))
    Path("labels.npz").write_bytes(noisy_segment_labels(packed, flip=0.1, seed=0).to_bytes())
    given = [
        "method.ratios=ratios.json",
        "data.refined=labels.npz",
        "output=run",
        "store=store",
        "data.cache=cache",
        "tracking=none",
    ]
    done = CliRunner().invoke(cli.app, ["train", "jomold", "data=data", *given, *TINY])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in here.iterdir()) == ["data", "labels.npz", "ratios.json", "run", "store"]
    provenance = json.loads(Path("run/result.json").read_text())["provenance"]
    how = {"world_size": 1, "device": "cpu", "launcher": "local", "precision": "float32"}
    assert how.items() <= provenance.items()
    for name in ("ratios.json", "labels.npz"):
        Path(name).unlink()
    (here / "away").mkdir()
    monkeypatch.chdir(here / "away")
    again = CliRunner().invoke(cli.app, ["evaluate", "../run"])
    assert again.exit_code == 0, again.exception
    assert "result.json reproduced" in again.output
