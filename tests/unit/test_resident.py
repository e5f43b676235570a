"""A split in memory: the same batches from shared shards and from private memory."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from avvp_dist import storage
from avvp_dist.config import validate
from avvp_dist.datasets import synthetic
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.loading import resident
from avvp_dist.loading.split import DataConfig
from avvp_dist.shards.cache import ShardCache
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.shards.reading import ShardStore


def load(url, cache=None, share=True):
    index = Index.load(url)
    return resident.load(ShardStore(url, cache or ShardCache()), index, read_labels(url, index)["train"], share=share)


def remote_copy(packed: str, name: str) -> str:
    url = f"memory://bucket/{name}"
    storage.remove(url)
    for path in Path(packed).iterdir():
        storage.write_bytes(storage.join(url, path.name), path.read_bytes())
    return url


def open_files() -> set[str]:
    return {os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("where", ["shared", "private", "cached"])
def test_batches_contain_the_features_of_their_videos(packed, tmp_path, where):
    index = Index.load(packed)
    labels = read_labels(packed, index)["train"]
    url = remote_copy(packed, "resident") if where == "cached" else packed
    split = load(url, ShardCache(tmp_path / "cache"), share=where != "private")
    numbers = np.array([61, 0, 17, 16, 15, 0])
    batch = split.batch(numbers, 6)
    assert (batch.index.tolist(), batch.total, batch.weak.shape) == (numbers.tolist(), 6, (6, 25))
    for row, number in enumerate(numbers):
        content = Path(packed, index.shards[labels.shard[number]].name).read_bytes()
        values = np.frombuffer(content, np.float16, 10 * index.width, labels.offset[number]).reshape(10, -1)
        for stream in index.streams:
            actual = batch.streams[stream.name][row].numpy()
            assert actual.dtype == np.float32
            np.testing.assert_array_equal(actual, values[:, stream.offset : stream.offset + stream.dim])
    assert split.batch(np.array([], np.int64), 6).visual.shape == (0, 10, 2048)
    torch.testing.assert_close(split.features.to(torch.device("cpu")), split.features.take(np.arange(62)))
    held = {"shared": f"{packed}/train-000000.tar", "cached": f"{tmp_path}/cache/shards/{index.shards[0].sha256}"}
    assert {name: path in open_files() for name, path in held.items()} == {name: name == where for name in held}


def test_a_later_run_does_not_need_the_remote(packed, tmp_path):
    url = remote_copy(packed, "gone")
    cache = ShardCache(tmp_path / "cache")
    before = load(url, cache).batch(np.arange(62), 62)
    assert cache.usage().entries == 4
    for name in storage.names(url):
        if name.endswith(".tar"):
            storage.remove(storage.join(url, name))
    torch.testing.assert_close(load(url, ShardCache(tmp_path / "cache")).batch(np.arange(62), 62).streams, before.streams)


def test_every_bad_shard_is_named(packed, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in Path(packed).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "train-000001.tar").unlink()
    (folder / "train-000003.tar").write_bytes((folder / "train-000003.tar").read_bytes()[:-1])
    with pytest.raises(DataError, match="train cannot be read") as caught:
        load(str(folder))
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["train-000001.tar", "train-000003.tar"]


def test_more_shards_than_open_files_allow_are_read_into_memory(tmp_path, caplog):
    url = str(tmp_path / "many")
    synthetic.write(url, videos=None, seed=0, layout="shards", splits=(260, 1, 1), workers=1, shard_videos=1)
    shared = load(url).batch(np.arange(260), 260)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))  # other tests keep files open in this process
    try:
        private = load(url).batch(np.arange(260), 260)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "260 shards are too many to keep open with 1024 open files" in caplog.text
    torch.testing.assert_close(shared.streams, private.streams)


def test_the_cache_of_a_config(tmp_path, monkeypatch):
    monkeypatch.delenv("AVVP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default, own = DataConfig().store().cache, DataConfig(cache="/scratch", cache_gb=1.5).store().cache
    assert (default.folder, default.limit_bytes) == (tmp_path / "avvp_dist", 50 * 10**9)
    assert (own.folder, own.limit_bytes) == (Path("/scratch"), 1_500_000_000)
    monkeypatch.setenv("AVVP_CACHE", "/node")
    assert DataConfig().store().cache.folder == Path("/node")
    with pytest.raises(ConfigError) as caught:
        validate(DataConfig, {"cache": "s3://bucket/cache", "cache_gb": 0}, "data")
    assert len(caught.value.problems) == 2
    assert "cache: must be a folder on the machine that trains" in str(caught.value)
