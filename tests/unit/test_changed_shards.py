"""Local shards that change while they are read: unchanged batches, or an error that names the shard."""

import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch

from avvp_dist.errors import DataError
from avvp_dist.loading.split import DataConfig, open_split
from avvp_dist.shards.checked_file import CheckedFile, read_consistently
from avvp_dist.shards.index import Index, read_labels

SHARD = "train-000001.tar"


@pytest.fixture
def data(packed, tmp_path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "data"))


def opened(data: Path, mode: str, **settings):
    index = Index.load(str(data))
    config = DataConfig(url=str(data), mode=mode, streams=4, window=8, workers=0, prefetch=1, **settings)
    return open_split(config, index, read_labels(str(data), index)["train"], torch.device("cpu"), torch.float32)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x11" * 4096)


def overwrite_and_set_the_time_back(path: Path) -> None:
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def one_bit(path: Path) -> None:
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(bytes([content[100_000] ^ 1]))


def truncate(path: Path) -> None:
    os.truncate(path, 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def delete(path: Path) -> None:
    path.unlink()


def replace_by_another(path: Path) -> None:
    path.with_suffix(".new").write_bytes(b"something else")
    path.with_suffix(".new").replace(path)


def touch(path: Path) -> None:
    os.utime(path)


def rewrite_the_same(path: Path) -> None:
    path.write_bytes(path.read_bytes())


BAD = [overwrite, overwrite_and_set_the_time_back, one_bit, truncate, empty, extend]
HARMLESS = [touch, rewrite_the_same, delete, replace_by_another]


def epoch_features(split, number=0, change=None, path=None):
    """All features of an epoch; ``change`` is applied to a shard after the first batch."""
    found = []
    with closing(split.epoch(split.plan(8, 3, number), 0, 0, 1)) as batches:
        for batch in batches:
            found.append(torch.cat(list(batch.streams.values()), dim=-1))
            if change:
                change(path)
                change = None
    return torch.cat(found)


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("change", BAD)
def test_a_shard_changed_in_place_ends_the_epoch_with_its_name(data, mode, change):
    with (
        closing(opened(data, mode)) as split,
        pytest.raises(DataError, match=f"(?s)train cannot be read.*{SHARD}: ") as error,
    ):
        epoch_features(split, change=change, path=data / SHARD)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("change", HARMLESS)
def test_touching_or_replacing_a_shard_does_not_affect_a_resident_split(data, change):
    with closing(opened(data, "resident")) as split:
        before = epoch_features(split), epoch_features(split, 1)
        assert torch.equal(epoch_features(split, change=change, path=data / SHARD), before[0])
        assert torch.equal(epoch_features(split, 1), before[1])


@pytest.mark.parametrize("change", HARMLESS[:2])
def test_touching_a_shard_does_not_affect_streaming(data, change):
    with closing(opened(data, "streaming")) as split:
        before = epoch_features(split)
        assert torch.equal(epoch_features(split, change=change, path=data / SHARD), before)


@pytest.mark.parametrize("change", HARMLESS[2:])
def test_streaming_finishes_an_open_shard_and_refuses_its_replacement(data, change):
    with closing(opened(data, "streaming")) as split:
        before = epoch_features(split)
        assert torch.equal(epoch_features(split, change=change, path=data / SHARD), before)  # all shards are open by then
        with pytest.raises(DataError, match=f"{SHARD}: "):
            epoch_features(split, 1)


def test_changes_do_not_affect_private_memory(data):
    with closing(opened(data, "resident", share=False)) as split:
        before = epoch_features(split)
        assert torch.equal(epoch_features(split, change=truncate, path=data / SHARD), before)


@pytest.fixture
def file(data):
    index = Index.load(str(data))
    shard = next(shard for shard in index.shards if shard.name == SHARD)
    with CheckedFile(data / SHARD, shard, "restore it") as file:
        assert file.is_intact()
        yield file


def test_data_read_while_a_shard_was_modified_are_read_again(data, file):
    """The shard is truncated during the first read, and restored before the check that follows."""
    content, out, reads = (data / SHARD).read_bytes(), bytearray(4096), 0

    def read() -> None:
        nonlocal reads
        reads += 1
        if reads == 1:
            truncate(data / SHARD)
        file.read_into([memoryview(out)], 50_000)
        (data / SHARD).write_bytes(content) if reads == 1 else None

    read_consistently(read, [file])
    assert reads == 2
    assert out == content[50_000:54_096]


def test_a_shard_that_keeps_changing_is_an_error(data, file):
    def read() -> None:
        os.utime(data / SHARD, ns=(1, read.times))
        read.times += 1

    read.times = 0
    with pytest.raises(DataError, match=f"{SHARD}: another process keeps writing to it"):
        read_consistently(read, [file])


def test_a_read_error_names_the_shard(file):
    def read() -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(DataError, match=rf"{SHARD}: cannot be read: .*Input/output error"):
        read_consistently(read, [file])
