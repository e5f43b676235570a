"""Contents of packed data sets: shards, index and labels, on a disk and in object storage."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from llp_files import IDS, TINY, contents, pack_tiny, write_official

from avvp_dist import storage
from avvp_dist.datasets.llp import OfficialFeatures, read_annotations
from avvp_dist.errors import DataError
from avvp_dist.shards.index import Index, IndexedStream, read_labels
from avvp_dist.types import Event, VideoRecord

NAMES = ["index.json", "labels.parquet", "test-000000.tar", *(f"train-00000{n}.tar" for n in range(3)), "val-000000.tar"]


@pytest.fixture
def official(tmp_path) -> Path:
    """Seven training, two validation and three test videos."""
    return write_official(tmp_path / "llp")


def test_plain_webdataset_reads_the_shards(official, tmp_path):
    pack_tiny(official, tmp_path / "out")
    source, records = OfficialFeatures(official, TINY), read_annotations(official).records
    for split in ("train", "val", "test"):
        urls = [str(path) for path in sorted((tmp_path / "out").glob(f"{split}-*.tar"))]
        samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
        expected = [record for record in records if record.split == split]
        assert [sample["__key__"] for sample in samples] == [record.id for record in expected]
        for sample, record in zip(samples, expected, strict=True):
            assert sample["features.npy"].dtype == np.float16
            np.testing.assert_array_equal(sample["features.npy"], source.read(record))
            assert (sample["json"]["id"], sample["json"]["name"]) == (record.id, record.name)
    assert samples[0]["json"] == {
        "id": IDS[9],
        "name": f"{IDS[9]}_10_20",
        "split": "test",
        "weak": ["Speech", "Banjo"],
        "audio_events": [{"label": "Speech", "onset": 0, "offset": 10}, {"label": "Banjo", "onset": 2, "offset": 6}],
        "visual_events": [{"label": "Banjo", "onset": 9, "offset": 10}],
    }


def test_index_and_labels(official, tmp_path):
    out = tmp_path / "out"
    index = pack_tiny(official, out)
    assert sorted(path.name for path in out.iterdir()) == NAMES
    assert Index.load(str(out)) == index == Index.from_json(index.to_json())
    assert index.streams == (IndexedStream("audio", 3, 0), IndexedStream("visual", 5, 3), IndexedStream("motion", 2, 8))
    shards = [(shard.name, shard.split, shard.samples) for shard in index.shards]
    assert shards == [
        ("train-000000.tar", "train", 3),
        ("train-000001.tar", "train", 3),
        ("train-000002.tar", "train", 1),
        ("val-000000.tar", "val", 2),
        ("test-000000.tar", "test", 3),
    ]
    labels = read_labels(str(out), index)
    assert list(labels) == ["train", "val", "test"]
    train, test = labels["train"], labels["test"]
    assert train.ids == tuple(IDS[:7])
    assert train.truth is None
    np.testing.assert_array_equal(train.shard, [0, 0, 0, 1, 1, 1, 2])
    np.testing.assert_array_equal(train.position, [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(np.argwhere(test.weak), [[0, 0], [0, 10], [1, 0], [1, 11], [2, 0], [2, 12]])
    assert (test.truth["audio"].shape, test.truth["audio"].dtype) == ((3, 10, 25), bool)
    np.testing.assert_array_equal(test.truth["audio"][2].sum(axis=0)[[0, 12]], [2, 4])  # Speech 0-2, the other class 2-6
    assert test.truth["audio"][2, 2:6, 12].all()
    assert test.truth["visual"].sum() == 1 + 10 + 9
    for split in labels.values():
        for number, name in enumerate(split.ids):
            content = (out / index.shards[split.shard[number]].name).read_bytes()
            values = np.frombuffer(content, np.float16, int(split.nbytes[number]) // 2, int(split.offset[number]))
            expected = OfficialFeatures(official, TINY).read(VideoRecord(name, name, "", ()))
            np.testing.assert_array_equal(values.reshape(10, 10), expected)


def test_overlapping_events_are_merged(official, tmp_path):
    events = (Event(4, 0, 3), Event(4, 2, 6), Event(4, 2, 6), Event(5, 9, 10))
    records = [
        replace(record, events={"audio": events, "visual": ()})
        for record in read_annotations(official).records
        if record.split == "val"
    ]
    index = pack_tiny(official, tmp_path / "out", records=records)
    audio = read_labels(str(tmp_path / "out"), index)["val"].truth["audio"]
    expected = np.zeros((10, 25), bool)
    expected[0:6, 4] = expected[9, 5] = True
    np.testing.assert_array_equal(audio, [expected, expected])


def test_fingerprint_depends_only_on_the_data(official, tmp_path):
    index = pack_tiny(official, tmp_path / "here")
    shutil.copytree(official, tmp_path / "copy")  # same content, other modification times
    copy = pack_tiny(tmp_path / "copy", tmp_path / "there", provenance={"synthetic": True})
    assert copy.fingerprint == index.fingerprint
    assert (copy.synthetic, index.synthetic) == (True, False)
    renamed = replace(index, classes=("Talk", *index.classes[1:]))
    np.save(official / "feats" / "vggish" / f"{IDS[3]}.npy", np.ones((10, 3), np.float32))
    changed = pack_tiny(official, tmp_path / "changed")
    assert len({index.fingerprint, renamed.fingerprint, changed.fingerprint}) == 3


def test_features_in_an_object_store(official, tmp_path):
    url = "memory://raw/llp"
    storage.remove(url)
    for name, content in contents(official / "feats").items():
        storage.write_bytes(storage.join(url, "feats", name), content)
    for folder in (url, f"{url}/feats"):
        index = pack_tiny(official, tmp_path / folder.rpartition("/")[2], source=OfficialFeatures(folder, TINY))
    assert index.fingerprint == pack_tiny(official, tmp_path / "here").fingerprint
    assert pack_tiny(official, tmp_path / "llp", source=OfficialFeatures(url, TINY)) == index  # already complete
    storage.remove(f"{url}/feats/vggish/{IDS[1]}.npy")
    storage.write_bytes(f"{url}/feats/res152/{IDS[10]}.npy", b"nothing")
    with pytest.raises(DataError, match="from other inputs"):
        pack_tiny(official, tmp_path / "llp", source=OfficialFeatures(url, TINY))
    with pytest.raises(DataError) as error:
        pack_tiny(official, tmp_path / "new", source=OfficialFeatures(url, TINY))
    assert error.value.problems[0] == f"train {IDS[1]}: vggish/{IDS[1]}.npy: missing"
    assert f"test {IDS[10]}: res152/{IDS[10]}.npy: not a readable .npy array" in error.value.problems[1]
    with pytest.raises(DataError, match="vggish/: no such folder"):
        OfficialFeatures("memory://nothing", TINY)


def test_pack_to_an_object_store(official, tmp_path):
    url = "memory://bucket/llp"
    storage.remove(url)
    index = pack_tiny(official, url)
    pack_tiny(official, tmp_path / "out")
    assert {name: storage.read_bytes(storage.join(url, name)) for name in storage.names(url)} == contents(tmp_path / "out")
    assert Index.load(url) == index
    assert read_labels(url, index)["test"].ids == tuple(IDS[9:])
    assert pack_tiny(official, url) == index
