"""Sweeps on a real Ray: shared stages, failures, killed drivers, schedulers and searchers."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from commands import with_settings
from prometheus import last, scraped
from typer.testing import CliRunner

from avvp_dist.cli import main as cli
from avvp_dist.datasets.external import noisy_segment_labels
from avvp_dist.errors import ConfigError
from avvp_dist.experiments.recipe import load

TINY = ["model.width=16", "train.epochs=2", "train.batch_size=16", "evaluate.batch_size=64"]


@pytest.fixture(scope="module")
def on_ray(joined):
    """Start a sweep on the shared Ray in this process."""
    from avvp_dist.launch.start import launch_sweep

    return launch_sweep


def spec(**content):
    from avvp_dist.experiments.sweep import SweepConfig

    base = {"title": "t", "recipe": "jomold", "space": {"method.temperature": {"grid": [0.2]}}, "seeds": [1]}
    return SweepConfig.model_validate(base | content)


def result(output, row):
    return json.loads((output / "runs" / row["name"] / "result.json").read_text())


def test_trials_share_stages_and_a_failure_stops_no_other_trial(on_ray, cluster, packed, tmp_path, monkeypatch):
    """`avvp sweep` with relative paths wherever there may be one: Ray's workers run in other folders."""
    space = {
        "method.rounding": {"grid": ["floor", "carry"]},
        "method.audio_weight": {"grid": [2.0, 1e39]},  # the last overflows in float32: its loss is not finite
    }
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(packed)
    (tmp_path / "labels.npz").write_bytes(noisy_segment_labels(packed, flip=0.1, seed=0).to_bytes())
    (tmp_path / "mine.yaml").write_text(load("jomold", ["data.refined=labels.npz", *TINY]).to_yaml())
    content = {"title": "t", "recipe": "mine.yaml", "space": space, "seeds": [1], "overrides": ["data.cache=cache"]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with scraped(lambda: [cluster.metrics]) as found:
        done = CliRunner().invoke(cli.app, ["sweep", "s.yaml", "data=data", "--output", "sweep"])
    assert done.exit_code == 1, done.output
    content = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert f"data={tmp_path}/data" in content["overrides"]
    assert f"tracking.uri=sqlite:///{tmp_path}/mlflow.db" in content["spec"]["overrides"]
    states = [(row["setting"]["method.audio_weight"], row["status"]) for row in content["trials"]]
    assert sorted(states) == [(2.0, "finished"), (2.0, "finished"), (1e39, "failed"), (1e39, "failed")]
    assert all("finite" in row["reason"] for row in content["trials"] if row["status"] == "failed")
    stages = sorted(path.name.split("-")[0] for path in (tmp_path / "sweep" / "stages").iterdir() if path.is_dir())
    assert stages == ["denoise", "denoise", "estimate", "ratios"]
    logs = "".join(path.read_text() for path in (tmp_path / "sweep" / "runs").glob("*/train.log"))
    assert logs.count("stage estimate: 2 epochs") == 1  # four trials, two at once, one estimator
    _check_tracking(tmp_path / "mlflow.db")
    for row in content["trials"]:
        if row["status"] == "finished":
            run = str(tmp_path / "sweep" / "runs" / row["name"])
            assert last(found, "ray_avvp_step_seconds", run=run, stage="denoise", rank="0") > 0
            assert last(found, "ray_avvp_videos_per_second", run=run, stage="denoise") > 0
    shown = CliRunner().invoke(cli.app, ["compare", "--sweep", "sweep"])
    assert shown.exit_code == 0, shown.exception
    assert "2 of the sweep's 4 trials have no result" in " ".join(shown.output.split())


def _check_tracking(database):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 4
    assert {run.data.params["method.rounding"] for run in children} == {"floor", "carry"}
    assert sorted(run.info.status for run in children) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert parent.data.metrics["trials/finished"] == 2
    for run in children:
        if run.info.status == "FINISHED":
            assert 0 < run.data.metrics["denoise/time/ranking_seconds"] < run.data.metrics["denoise/time/step_seconds"]
            assert run.data.metrics["denoise/time/data_wait_seconds"] > 0
            assert run.data.metrics["denoise/time/exchange_seconds"] == 0  # one process
            assert run.data.metrics["denoise/time/all_reduce_seconds"] == 0


def start(cluster, name, output, settings, variables=(), **content):
    """A sweep in a process of its own, which can be killed."""
    path = output.with_name(f"{name}.yaml")
    path.write_text(yaml.safe_dump({"title": "t", "recipe": "jomold", "seeds": [1]} | content))
    command = [sys.executable, "-m", "avvp_dist", "sweep", str(path), *settings, "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | cluster.environment | dict(variables)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process, output, count):
    """Waits until so many trials have told a score."""
    while len(list(output.glob("runs/*/scores.json"))) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def resume(output):
    """`avvp sweep --resume`, on the Ray of this process."""
    result = CliRunner().invoke(cli.app, ["sweep", "--resume", str(output)])
    assert result.exit_code == 0, result.output
    return json.loads((output / "sweep.json").read_text())["trials"]


def test_a_sweep_resumed_after_a_killed_driver_has_the_same_scores(on_ray, cluster, packed, tmp_path):
    """kill -9 while trials run; --resume ends with the very scores of a sweep that nobody disturbed."""
    space = {"method.temperature": {"grid": [0.1, 0.2]}}
    settings = [f"data={packed}", *with_settings(TINY, "train.epochs=20", "tracking=none")]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    driver = start(cluster, "s", killed, settings, space=space)
    wait_for(driver, killed, 1)
    driver.kill()
    driver.wait()
    assert len(list(killed.glob("runs/*/result.json"))) < 2
    expected = on_ray("s", spec(space=space, concurrency=1), settings, str(whole))["trials"]
    rows = resume(killed)
    assert {row["name"]: row["score"] for row in rows} == {row["name"]: row["score"] for row in expected}
    assert result(killed, rows[0])["scores"] == result(whole, rows[0])["scores"]


def test_asha_stops_trials_early_and_optuna_resumes_from_finished_trials(on_ray, packed, tmp_path):
    space = {"optim.lr": {"loguniform": [1e-6, 1e-2]}}
    chosen = {
        "space": space,
        "recipe": "han",
        "search": {"name": "optuna", "samples": 2},
        "seeds": [1, 2],
        "concurrency": 1,
    }
    settings = [f"data={packed}", *TINY, "tracking=none"]
    content = on_ray("s", spec(**chosen), settings, str(tmp_path / "optuna"))
    assert [row["status"] for row in content["trials"]] == ["finished"] * 4
    assert len({row["setting"]["optim.lr"] for row in content["trials"]}) == 2
    chosen["search"]["samples"] = 3
    more = on_ray("s", spec(**chosen), settings, str(tmp_path / "optuna"))
    assert more["trials"][:4] == content["trials"]  # not trained again
    assert len(more["trials"]) == 6
    asha = {
        "space": {"optim.lr": {"grid": [1e-2, 1e-3, 1e-5, 1e-6]}},
        "recipe": "han",
        "scheduler": {"name": "asha", "grace_epochs": 1, "reduction": 2},
        "concurrency": 1,
    }
    settings = [f"data={packed}", *with_settings(TINY, "train.epochs=8", "tracking=none")]
    content = on_ray("s", spec(**asha), settings, str(tmp_path / "asha"))
    states = [row["status"] for row in content["trials"]]
    assert set(states) == {"finished", "stopped"}
    stopped = [row for row in content["trials"] if row["status"] == "stopped"]
    assert all(row["epochs"] < 8 for row in stopped)


def test_trials_whose_process_cannot_start_are_reported_as_failed(on_ray, cluster, packed, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        'import sys\nif "default_worker.py" in " ".join(sys.orig_argv):\n    sys.modules["avvp_dist"] = None\n'
    )  # as on a node where the package is not installed
    job = {"runtime_env": {"env_vars": {"PYTHONPATH": str(tmp_path)}}}
    settings = [f"data={packed}", *TINY, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    space = {"optim.lr": {"grid": [1e-3]}}
    variables = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
    driver = start(cluster, "none", tmp_path / "sweep", settings, variables, recipe="han", space=space)
    log = driver.communicate()[0]
    assert driver.returncode == 1, log
    (row,) = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["trials"]
    assert row["status"] == "failed"
    assert row["reason"].startswith("ModuleNotFoundError: No module named 'avvp_dist"), log
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FAILED"  # none of its trials gave a score


def test_a_sweep_whose_trials_fit_on_no_node_is_refused(on_ray, packed, tmp_path):
    settings = [f"data={packed}", *TINY, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    with pytest.raises(ConfigError, match="1 trial with 64 CPUs requested, which this cluster can never have"):
        on_ray("s", spec(cpus_per_trial=64), settings, str(tmp_path / "sweep"))
    assert not list(tmp_path.iterdir())


def test_a_population_exchanges_weights_and_resumes_after_ctrl_c(on_ray, cluster, packed, tmp_path):
    pbt = {
        "space": {"optim.lr": {"loguniform": [1e-6, 1e-2]}},
        "recipe": "han",
        "search": {"name": "random", "samples": 2},  # the worse of two takes over at once
        "scheduler": {"name": "pbt", "perturb_every": 10},
    }
    settings = [f"data={packed}", *with_settings(TINY, "train.epochs=24", "tracking=none")]  # more than it has time for
    sweep = tmp_path / "sweep"
    driver = start(cluster, "pbt", sweep, settings, **pbt)
    wait_for(driver, sweep, 1)
    driver.send_signal(signal.SIGINT)
    log = driver.communicate()[0]
    assert driver.returncode == 75, log
    assert f"resume with: avvp sweep --resume {sweep}" in log
    rows = resume(sweep)
    assert [row["status"] for row in rows] == ["finished"] * 2
    histories = [json.loads((sweep / "runs" / row["name"] / "history.json").read_text()) for row in rows]
    assert all([row["epoch"] for row in history] == list(range(1, 25)) for history in histories)
    files = list(sweep.glob("runs/*/history.json"))  # also of trials that ended early
    epochs = {path: {row["lr"] for row in json.loads(path.read_text())} for path in files}
    own = {path: yaml.safe_load(path.with_name("config.yaml").read_text())["optim"]["lr"] for path in files}
    assert any(epochs[path] != {own[path]} for path in files)  # a trial has epochs of another one, and its own learning rate


def test_trials_with_several_workers_nest_a_trainer(on_ray, packed, tmp_path):
    from avvp_dist.launch.ray_tune import prepare

    one = spec(recipe="han", space={"optim.lr": {"grid": [1e-3]}})
    settings = [f"data={packed}", *TINY, "tracking=none"]
    content = on_ray("s", one, [*settings, "launch=ray", "launch.workers=2"], str(tmp_path))
    assert [row["status"] for row in content["trials"]] == ["finished"]
    _, (alone,) = prepare(one, settings)
    assert content["trials"][0]["name"] == alone.name  # how a run is run is not what it is
    assert len(json.loads((tmp_path / "runs" / alone.name / "scores.json").read_text())) == 2
    again = on_ray("s", one, settings, str(tmp_path))  # may go on in another way
    assert again["trials"] == content["trials"]
    with pytest.raises(ConfigError, match=r"holds another sweep(?s:.*)optim.gamma: 0.1 there, 0.5 in this command"):
        on_ray("s", one, [*settings, "optim.gamma=0.5"], str(tmp_path))
