"""Shards that differ from the index: reported by name with a remedy, or left out on every rank alike."""

import hashlib
import json
import os
import shutil
import struct
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from collectives import FakeCollective

from avvp_dist.dist.collective import gather_lines
from avvp_dist.errors import DataError
from avvp_dist.loading.split import DataConfig, open_split
from avvp_dist.shards.cache import ShardCache
from avvp_dist.shards.index import INDEX_FILE, LABELS_FILE, Index, labels_info, read_labels
from avvp_dist.shards.quarantine import exclude, inspect
from avvp_dist.shards.reading import ShardStore

SHARD = "train-000001.tar"  # videos 16 to 31
ROW = 20


class Damaged:
    """A copy of a packed data set that tests damage."""

    def __init__(self, packed: str, folder: Path) -> None:
        shutil.copytree(packed, folder)
        self.url = str(folder)
        self.shard = folder / SHARD
        self.labels = read_labels(self.url, Index.load(self.url))["train"]
        self.id = self.labels.ids[ROW]
        self.offset = int(self.labels.offset[ROW])

    def write(self, offset: int, content: bytes) -> None:
        with self.shard.open("r+b") as file:
            file.seek(offset)
            file.write(content)

    def rename(self, offset: int, name: str) -> None:
        """Rename the member whose array starts at ``offset``, with a valid tar header."""
        start = offset - 640
        header = bytearray(self.shard.read_bytes()[start : start + 512])
        header[:100] = name.encode().ljust(100, b"\0")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        self.write(start, bytes(header))

    def record_shard(self) -> None:
        """Record the damaged shard in the index, like a faulty pack instead of a faulty disk."""
        index = Index.load(self.url)
        content = self.shard.read_bytes()
        shards = tuple(
            replace(shard, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)) if shard.name == SHARD else shard
            for shard in index.shards
        )
        Path(self.url, INDEX_FILE).write_text(replace(index, shards=shards).to_json())

    def rows(self) -> list[dict]:
        return pq.ParquetFile(Path(self.url, LABELS_FILE)).read().to_pylist()

    def write_rows(self, rows: list[dict]) -> None:
        """Write another labels.parquet and record it in the index, like a faulty pack instead of a faulty disk."""
        path, index = Path(self.url, LABELS_FILE), Index.load(self.url)
        pq.write_table(pa.Table.from_pylist(rows, schema=index.labels_schema), path)
        Path(self.url, INDEX_FILE).write_text(replace(index, labels=labels_info(path.read_bytes())).to_json())

    def open(self, mode: str, split: str = "train"):
        index = Index.load(self.url)
        config = DataConfig(url=self.url, mode=mode, streams=4, window=8, workers=0)
        return open_split(config, index, read_labels(self.url, index)[split], torch.device("cpu"), torch.float32)

    def read(self, mode: str) -> None:
        with closing(self.open(mode)) as split, closing(split.epoch(split.plan(20, 0, 0), 0, 0, 1)) as batches:
            for _ in batches:
                pass


@pytest.fixture
def damaged(packed, tmp_path) -> Damaged:
    return Damaged(packed, tmp_path / "damaged")


def truncate(damaged):
    damaged.shard.write_bytes(damaged.shard.read_bytes()[:100_000])


def flip(damaged):
    damaged.write(damaged.offset, b"\x07")


def remove(damaged):
    damaged.shard.unlink()


def put_nan(damaged):
    damaged.write(damaged.offset + 2 * (3 * 2688 + 130), struct.pack("<e", float("nan")))
    damaged.record_shard()


def drop_member(damaged):
    damaged.rename(damaged.offset, "notthisone1.features.npy")
    damaged.record_shard()


def double_member(damaged):
    damaged.rename(int(damaged.labels.offset[ROW + 1]), f"{damaged.id}.features.npy")
    damaged.record_shard()


def other_shape(damaged):
    content = damaged.shard.read_bytes()
    header = content[damaged.offset - 128 : damaged.offset]
    damaged.write(damaged.offset - 128, header.replace(b"(10, 2688)", b"(20, 1344)"))
    damaged.record_shard()


def other_type(damaged):
    content = damaged.shard.read_bytes()
    damaged.write(damaged.offset - 128, content[damaged.offset - 128 : damaged.offset].replace(b"<f2", b"<i2"))
    damaged.record_shard()


def swap_places(damaged):
    rows = damaged.rows()
    one, other = rows[ROW], rows[ROW + 2]
    one["offset"], other["offset"] = other["offset"], one["offset"]
    damaged.write_rows(rows)


def scramble_header(damaged):
    damaged.write(damaged.offset - 640, b"\xff" * 512)
    damaged.record_shard()


WHOLE_SHARD = [
    (truncate, "100000 bytes, but the index records", "before"),
    (remove, "missing", "before"),
    (flip, "content differs from what the index recorded; delete it and pack again", "loader"),
]
ONE_VIDEO = [
    (put_nan, "contains 1 value that is not finite, the first at segment 3, column 130; fix its feature files"),
    (drop_member, "has no member {id}.features.npy, and 16 other videos; damaged, or labels.parquet"),
    (other_shape, r"member {id}.features.npy is float16 \[20, 1344\], expected float16 \[10, 2688\]; pack"),
    (other_type, r"member {id}.features.npy is int16 \[10, 2688\], expected float16 \[10, 2688\]; pack"),
    (scramble_header, "has no member {id}.features.npy, and 4 other videos; damaged, or labels.parquet belongs to another"),
]


@pytest.mark.parametrize(("spoil", "message", "when"), WHOLE_SHARD)
def test_a_bad_shard_is_refused_by_name(damaged, spoil, message, when):
    spoil(damaged)
    for mode in ("resident", "streaming"):
        use = damaged.open if when == "before" else damaged.read
        with pytest.raises(DataError, match=rf"(?s)train.*data.on_bad=skip.*{SHARD}: {message}"):
            use(mode)
    damaged.open("streaming", "val").close()


@pytest.mark.parametrize(("spoil", "message"), ONE_VIDEO)
def test_a_bad_video_is_refused_by_name(damaged, spoil, message):
    spoil(damaged)
    for mode in ("resident", "streaming"):
        with pytest.raises(DataError, match=rf"(?s)data.on_bad=skip.*{SHARD}: .*{message.format(id=damaged.id)}") as caught:
            damaged.read(mode)
        assert len(caught.value.problems) == 1


def test_a_shard_that_is_not_a_tar(damaged):
    damaged.write(0, b"\xff" * 512)
    damaged.record_shard()
    first = damaged.labels.ids[16]
    with pytest.raises(DataError, match=rf"the tar cannot be read beyond its member 0 \(.*\), where {first}.features.npy"):
        damaged.read("resident")


def test_a_tar_that_is_shorter_than_in_its_index(damaged):
    damaged.shard.write_bytes(damaged.shard.read_bytes()[: damaged.offset])
    damaged.record_shard()
    with pytest.raises(DataError, match=f"{SHARD}: byte ranges that do not match"):
        damaged.open("streaming")


def test_labels_and_tars_of_different_packs(damaged):
    swap_places(damaged)
    with pytest.raises(DataError, match="is not at the offset in labels.parquet, which belongs to another pack") as caught:
        damaged.read("resident")
    assert len(caught.value.problems) == 2
    with pytest.raises(DataError, match=rf"{SHARD}: member .* is not at the offset in labels.parquet"):
        damaged.read("streaming")


def test_a_duplicate_member(damaged):
    double_member(damaged)
    missing = damaged.labels.ids[ROW + 1]
    with pytest.raises(DataError, match=f"has no member {missing}.features.npy"):
        damaged.read("resident")


def test_a_duplicate_video_is_refused_before_anything_is_read(damaged):
    rows = damaged.rows()
    rows[ROW + 1]["id"] = rows[ROW]["id"]
    damaged.write_rows(rows)
    with pytest.raises(DataError, match=f"train: video {damaged.id} is listed 2 times"):
        damaged.open("streaming")


def found_by(damaged, world):
    """The bad videos that each of ``world`` ranks knows after exchanging them."""
    index = Index.load(damaged.url)
    labels = read_labels(damaged.url, index)

    def work(collective):
        found = inspect(ShardStore(damaged.url, ShardCache()), index, labels, collective.rank, world)
        gathered = gather_lines(
            collective, [json.dumps([bad.split, bad.id, bad.reason]) for bad in found], torch.device("cpu")
        )
        return sorted(gathered)

    return FakeCollective.run(world, work)


@pytest.mark.parametrize("spoil", [case[0] for case in WHOLE_SHARD + ONE_VIDEO])
def test_every_rank_leaves_out_the_same_videos(damaged, spoil):
    spoil(damaged)
    (one,) = found_by(damaged, 1)
    assert found_by(damaged, 3) == [one] * 3
    whole_shard = spoil in (truncate, remove, flip)
    expected = damaged.labels.ids[16:32] if whole_shard else [damaged.id]
    assert sorted(json.loads(line)[1] for line in one) == sorted(expected)
    assert all(SHARD in json.loads(line)[2] for line in one)


def test_nothing_is_left_out_of_valid_data(damaged):
    assert found_by(damaged, 2) == [[], []]


def test_labels_without_some_videos(damaged):
    put_nan(damaged)
    index = Index.load(damaged.url)
    labels = read_labels(damaged.url, index)
    bad = inspect(ShardStore(damaged.url, ShardCache()), index, labels, 0, 1)
    kept = exclude(labels["train"], bad)
    assert kept.ids == labels["train"].ids[:ROW] + labels["train"].ids[ROW + 1 :]
    for name in ("weak", "shard", "position", "offset", "nbytes"):
        np.testing.assert_array_equal(getattr(kept, name), np.delete(getattr(labels["train"], name), ROW, axis=0))
    for track, active in labels["train"].truth.items():
        np.testing.assert_array_equal(kept.truth[track], np.delete(active, ROW, axis=0))
    assert exclude(labels["val"], bad) is labels["val"]
    with pytest.raises(DataError, match="split train: every video is bad"):
        exclude(labels["train"], [replace(bad[0], id=name) for name in labels["train"].ids])


def test_a_shard_that_is_damaged_later_is_detected(damaged):
    with closing(damaged.open("streaming")) as split:
        for _ in split.epoch(split.plan(20, 0, 0), 0, 0, 1):
            pass
        flip(damaged)
        os.utime(damaged.shard, ns=(1, 1))
        with pytest.raises(DataError, match=f"{SHARD}: content differs"):
            for _ in split.epoch(split.plan(20, 0, 1), 0, 0, 1):
                pass
