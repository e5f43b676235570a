"""Training over a faulty network: the same result, no corrupt byte used, and a clear error when retries are exhausted."""

import json
from pathlib import Path

import pytest

from avvp_dist import storage
from avvp_dist.errors import DataError, StorageError
from avvp_dist.experiments.recipe import load
from avvp_dist.launch.start import launch_run
from avvp_dist.shards.verify import verify
from avvp_dist.storage.config import StorageConfig
from benchmarks.fault_proxy import FaultProxy

SMALL = [
    "model.width=16",
    "model.feedforward=16",
    "train.epochs=2",
    "train.batch_size=16",
    "tracking=none",
    "train.device=cpu",
]
STREAMED = ["data.mode=streaming", "data.streams=4", "data.window=16", "data.workers=1"]


@pytest.fixture
def bucket(packed, s3):
    """The packed data in a bucket."""
    for path in Path(packed).iterdir():
        storage.write_bytes(storage.join(s3, path.name), path.read_bytes())
    return s3


@pytest.fixture
def network(s3_server, monkeypatch):
    # botocore would find wrong bytes by the store's own checksum, which not every store sends
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    with FaultProxy(s3_server) as proxy:
        yield proxy


def train(data, tmp_path, name, *settings):
    where = [f"data={data}", f"output={tmp_path / name}", f"data.cache={tmp_path / name}-cache"]
    launch_run(load("han", [*where, *SMALL, *settings]))
    return json.loads((tmp_path / name / "result.json").read_text())["scores"]


@pytest.mark.parametrize("mode", [[], STREAMED], ids=["resident", "streaming"])
def test_network_faults_do_not_change_the_scores(bucket, network, tmp_path, mode):
    good = train(bucket, tmp_path, "good", *mode)
    network.inject("slowdown", "train-", times=3)
    network.inject("reset", "train-000000", times=1)
    network.inject("short", "train-000001", times=1)
    network.inject("stall", "train-000002", times=1, seconds=20)
    network.inject("wrong", "train-000003", times=2)
    network.inject("wrong", "test-000000", times=1)
    bad = [f"storage.endpoint={network.url}", "storage.read_timeout=1"]
    assert train(bucket, tmp_path, "bad", *bad, *mode) == good
    assert sorted(kind for kind, _ in network.hits) == sorted([*["slowdown"] * 3, "reset", "short", "stall", *["wrong"] * 3])


def test_a_shard_that_stays_corrupt_is_named(bucket, network, tmp_path):
    network.inject("wrong", "train-000002", times=-1)
    with pytest.raises(DataError, match=r"train-000002\.tar: content differs from what the index recorded, 4 times"):
        train(bucket, tmp_path, "bad", f"storage.endpoint={network.url}")
    assert not (tmp_path / "bad" / "result.json").exists()
    assert len(network.hits) == 4
    network.clear()
    train(bucket, tmp_path, "bad", f"storage.endpoint={network.url}")  # the same command goes on


def test_a_store_that_stays_busy_fails_with_shard_attempts_and_cause(bucket, network, tmp_path):
    network.inject("slowdown", "train-000001", times=-1)
    settings = [f"storage.endpoint={network.url}", "storage.retries=1"]
    with pytest.raises(StorageError, match=r"(?s)train-000001\.tar.*2 attempts.*SlowDown"):
        train(bucket, tmp_path, "bad", *settings)


def test_verify_reads_the_store_and_not_the_cache(bucket, network, tmp_path, monkeypatch):
    monkeypatch.setenv("AVVP_CACHE", str(tmp_path / "cache"))
    train(bucket, tmp_path, "run")
    storage.configure(StorageConfig(endpoint=network.url))
    assert not verify(bucket, processes=1).problems
    network.inject("wrong", "train-000002", times=1)
    problems = verify(bucket, processes=1).problems
    assert problems
    assert all("train-000002" in problem for problem in problems)
