"""Inside a Ray job: its id, and results that would be deleted with its folder."""

import json
from pathlib import Path

import pytest

from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.errors import ConfigError
from avvp_dist.experiments import result as results
from avvp_dist.experiments.recipe import load
from avvp_dist.launch import ray_job
from avvp_dist.launch.start import launch_run
from avvp_dist.tracking.base import TrackingConfig


@pytest.fixture
def in_job(tmp_path, monkeypatch):
    """As Ray starts the entrypoint of a job: in the folder that its upload was unpacked to."""
    folder = tmp_path / "working_dir"
    folder.mkdir()
    monkeypatch.chdir(folder)
    content = {"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}, "metadata": {"job_submission_id": "raysubmit_1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(content))
    return folder


def test_only_a_job_has_a_submission_id(monkeypatch, in_job):
    assert ray_job.submission_id() == "raysubmit_1"
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert ray_job.submission_id() is None


def test_all_results_in_the_jobs_folder_are_refused_together(in_job):
    places = {"output": "outputs/a", "store": str(in_job / "stages"), "tracking.uri": "sqlite:///mlflow.db", "x": None}
    with pytest.raises(ConfigError) as refused:
        ray_job.refuse_own_folder(places)
    assert [line.split("=")[0] for line in refused.value.problems] == ["output", "store", "tracking.uri"]
    assert "s3://bucket/folder" in refused.value.problems[0]
    assert "MLFLOW_TRACKING_URI" in refused.value.problems[2]


def test_results_outside_the_jobs_folder_are_accepted(in_job, tmp_path):
    outside = {"output": "s3://bucket/run", "store": str(tmp_path / "stages"), "tracking.uri": "http://mlflow:5000"}
    with pytest.raises(ConfigError) as refused:  # one folder of the job among them: only that one is named
        ray_job.refuse_own_folder({**outside, "other": "outputs/a"})
    assert [line.split("=")[0] for line in refused.value.problems] == ["other"]
    assert ray_job.refuse_own_folder(outside) is None
    assert ray_job.refuse_own_folder({"tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"}) is None


def test_outside_a_job_all_folders_are_accepted(monkeypatch, in_job):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert ray_job.refuse_own_folder({"output": "outputs/a"}) is None


def test_training_in_a_job_refuses_its_folder_before_reading_data(in_job):
    config = load("han", ["data=s3://bucket/nowhere"]).absolute()
    with pytest.raises(ConfigError, match="deleted with the job"):
        launch_run(config)
    assert list(in_job.iterdir()) == []


def test_the_tracking_uri_is_mlflows_variable_unless_a_run_sets_it(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert TrackingConfig().uri == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert TrackingConfig().uri == load("jomold").tracking.uri == "http://mlflow:5000"
    assert load("jomold", ["tracking.uri=http://other:5000"]).tracking.uri == "http://other:5000"


def test_the_commit_of_an_upload_comes_from_its_submitter(monkeypatch, tmp_path):
    def commit() -> str:
        return results.provenance(index, load("han"), LocalRuntime("run", "cpu"))["git_commit"]

    index = type("Index", (), {"fingerprint": "f", "synthetic": True})
    monkeypatch.delenv("AVVP_COMMIT", raising=False)
    (tmp_path / "avvp_dist").mkdir()
    monkeypatch.setattr(results, "__file__", str(tmp_path / "avvp_dist" / "results.py"))  # not in a checkout
    assert commit() == "unknown"
    monkeypatch.setenv("AVVP_COMMIT", "abc123")
    assert commit() == "abc123"
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no git
    assert commit() == "abc123"
    monkeypatch.setattr(results, "__file__", str(Path(__file__)))
    monkeypatch.undo()
    if (Path(__file__).parents[2] / ".git").exists():
        assert len(commit().removesuffix("-dirty")) == 40
