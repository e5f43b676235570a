"""Whole runs from and to object storage: the same results as on a disk, with every launcher and when resumed."""

import json
import time
from pathlib import Path

import pytest
from commands import invoke, train_here, with_settings
from dying import DyingRuntime, Killed
from forks import avvp, ranks
from ports import free_port
from s3_servers import Flaky
from test_training import SMALL
from typer.testing import CliRunner

from avvp_dist import storage
from avvp_dist.cli.main import app as commands
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.index import Index
from avvp_dist.storage.config import StorageConfig


def good(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def run(recipe, data, output, *overrides, runtime=None):
    return train_here(recipe, data, output, *SMALL, *overrides, runtime=runtime)


@pytest.fixture
def bucket(packed, s3):
    """A bucket with the packed data in it, under ``data``."""
    for name in storage.names(packed):
        storage.write_bytes(storage.join(s3, "data", name), storage.read_bytes(storage.join(packed, name)))
    return s3


@pytest.fixture
def by_setting(s3_server, monkeypatch):
    """The environment names no endpoint; the setting does, and has to reach every process."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    storage.configure(StorageConfig(endpoint=s3_server))
    return f"endpoint={s3_server}"


def test_packing_into_a_bucket_makes_the_same_data(packed, s3, by_setting, caplog):
    url = f"{s3}/data"
    command = ["data", "synth", url, "--splits", "62,14,14", "--layout", "shards", "--shard-videos", "16"]
    good(avvp(*command, "--storage", by_setting, "--workers", "2"))
    assert Index.load(url).fingerprint == Index.load(packed).fingerprint
    assert storage.names(url) == storage.names(packed)
    with caplog.at_level("INFO"):
        invoke(*command, "--storage", by_setting, "--workers", "1")
    assert "0 shards written, 6 were already complete" in caplog.text
    assert json.loads(invoke("data", "inspect", url, "--json", "--storage", by_setting))["splits"]["train"]["videos"] == 62


def test_two_ranks_train_and_everything_else_reads(bucket, by_setting, figures):
    output, setting = f"{bucket}/run", f"storage.{by_setting}"
    ranks(2, ["train", "jomold", f"data={bucket}/data", f"output={output}", *SMALL, setting])
    assert storage.names(output) == [
        "config.yaml", "figures", "history.json", "model.safetensors", "per_video.npz", "result.json", "stages",
    ]  # fmt: skip
    assert len(storage.names(f"{output}/figures")) >= 4
    assert "result.json reproduced" in invoke("evaluate", output, setting, "--json", f"{output}/again.json")
    assert json.loads(storage.read_text(f"{output}/again.json"))["data"]["url"] == f"{bucket}/data"
    assert "jomold" in invoke("compare", output, "--storage", by_setting)
    assert f"output: {output}" in invoke("config", f"{output}/config.yaml", setting)
    for name, text in ((name, storage.read_bytes(f"{output}/{name}").decode()) for name in ("config.yaml", "result.json")):
        assert "testing-secret" not in text, name


@pytest.mark.parametrize("commits", [2, 9])
def test_resumed_in_a_bucket_equals_uninterrupted_on_a_disk(packed, bucket, tmp_path, commits):
    settings = ["train.checkpoint_every=2", "method.rounding=carry", "method.warmup=linear"]
    whole = run("jomold", packed, tmp_path, *settings)
    output = f"{bucket}/run"
    settings.append(f"store={bucket}/store")
    with pytest.raises(Killed):
        run("jomold", f"{bucket}/data", output, *settings, runtime=DyingRuntime(output, after=commits))
    assert [name for name in storage.names(f"{output}/checkpoints") if name.endswith(".pt")]
    cut = run("jomold", f"{bucket}/data", output, *settings)
    assert cut["scores"] == whole["scores"]
    assert storage.names(f"{output}/checkpoints") == []
    assert storage.names(f"{bucket}/store") == sorted(path.name for path in Path(tmp_path, "stages").iterdir())
    for folder in storage.names(f"{bucket}/store"):
        if not folder.startswith("ratios"):
            there = storage.read_bytes(f"{bucket}/store/{folder}/model.safetensors")
            assert there == Path(tmp_path, "stages", folder, "model.safetensors").read_bytes()


@pytest.mark.slow
def test_ray_trains_from_and_to_a_bucket(cluster, bucket, by_setting):
    output = f"{bucket}/run"
    command = [
        "train",
        "han",
        f"data={bucket}/data",
        f"output={output}",
        *with_settings(SMALL, "train.epochs=1", "launch=ray"),
    ]
    good(avvp(*command, f"storage.{by_setting}", RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2", **cluster.environment))
    result = json.loads(storage.read_text(f"{output}/result.json"))
    assert set(result["scores"]) == {"val", "test"}
    checkpoints = [name for name in storage.names(f"{output}/ray/train") if name.startswith("checkpoint_2")]
    assert storage.size(f"{output}/ray/train/{checkpoints[0]}/checkpoint.pt") > 10_000
    assert "endpoint: http://127" in storage.read_text(f"{output}/config.yaml")


def test_labels_ratios_and_tables(bucket, tmp_path):
    labels = f"{bucket}/labels/refined.npz"
    invoke("data", "noisy-labels", "--data", f"{bucket}/data", "--out", labels)
    assert len(RefinedLabels.load(labels).ids) == 62
    run("han", f"{bucket}/data", f"{bucket}/run", f"data.refined={labels}", "train.epochs=1")
    table = tmp_path / "tiny.yaml"
    table.write_text(
        "{title: T, source: S, rows: [{label: one, recipe: han, view: joint, published: {segment: {type: 50}}}]}"
    )
    storage.write_bytes(f"{bucket}/tiny.yaml", table.read_bytes())
    settings = [part for setting in SMALL[1:] for part in ("--set", setting)]
    command = ["table", f"{bucket}/tiny.yaml", "--data", f"{bucket}/data", "--output", f"{bucket}/table", "--seeds", "1"]
    invoke(*command, "--epochs", "1", *settings, "--markdown", f"{bucket}/table.md")
    assert json.loads(storage.read_text(f"{bucket}/table/table.json"))["rows"][0]["ours"]
    assert "| one | published | joint |" in storage.read_text(f"{bucket}/table.md")


@pytest.mark.slow
def test_tracking_resumes_on_another_machine(bucket, tmp_path):
    """The first machine finds no server; another sends what it left, and a third goes on with the same MLflow run."""
    mlflow = pytest.importorskip("mlflow")
    output, uri = f"{bucket}/run", f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = [
        "train",
        "han",
        f"data={bucket}/data",
        f"output={output}",
        *with_settings(SMALL, "train.epochs=1", "tracking=mlflow"),
    ]
    away = [f"tracking.uri=http://127.0.0.1:{free_port()}", "tracking.flush_timeout=60"]
    first = good(avvp(*command, *away, HOME=str(tmp_path / "first")))
    assert f"also stored in {output}/tracking" in first.stderr
    assert storage.names(f"{output}/tracking") == ["run.json", "unsent.tar"]
    sent = good(avvp("sync", output, "--uri", uri, HOME=str(tmp_path / "second")))
    assert ", 0 left" in sent.stdout
    assert storage.names(f"{output}/tracking") == ["run.json"]
    good(avvp(*command, f"tracking.uri={uri}", "tracking.flush_timeout=120", HOME=str(tmp_path / "third")))
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("avvp").experiment_id])
    assert found.info.status == "FINISHED"
    assert "train/loss/total" in found.data.metrics
    assert not [name for name in found.data.params if name.startswith("storage")]
    nothing = avvp("sync", f"{bucket}/nothing", HOME=str(tmp_path / "second"))
    assert nothing.returncode == 2
    assert "no tracked run here" in nothing.stderr


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ("s3://no-such-bucket/data", [], "there is no bucket 'no-such-bucket'"),
        ("{bucket}/nothing", [], "/nothing: no such folder"),
        ("{bucket}/data", ["storage.endpoint=http://127.0.0.1:{port}"], "cannot connect to http://127.0.0.1:{port}"),
        ("{bucket}/data", ["storage.endpoint={refusing}"], "does not accept these credentials (SignatureDoesNotMatch)"),
        ("{bucket}/data", ["output=s3://no-such-bucket/run"], "there is no bucket 'no-such-bucket'"),
        ("{bucket}/data", ["output=s3://no-such-bucket/run", "launch=ray"], "there is no bucket 'no-such-bucket'"),
        ("s3://me:hunter2@bucket/data", ["storage.key=hunter2"], "data.url: credentials must not be part of a URL"),
        ("s4://bucket/data", [], "index.json: not a usable URL: Protocol not known: s4"),
    ],
)
def test_mistakes_are_one_message_within_a_time_limit(bucket, data, settings, message):
    with Flaky(b"", ["403"] * 100) as refusing:
        known = {"bucket": bucket, "port": free_port(), "refusing": refusing.endpoint}
        arguments = [
            text.format(**known) for text in with_settings([f"data={data}", f"output={bucket}/run", *SMALL], *settings)
        ]
        started = time.monotonic()
        done = CliRunner().invoke(commands, ["train", "han", *arguments])
        assert time.monotonic() - started < 100
    assert message.format(**known) in str(done.exception)
    assert done.exception.exit_code == 2
    assert "hunter2" not in str(done.exception)
