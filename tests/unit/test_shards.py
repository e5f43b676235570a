"""Packing: what the shards, the index and the labels hold, and what happens to interrupted, repeated and mixed-up packs."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from llp_files import TINY, DeadlyFeatures, contents, video_id, write_annotations, write_features

from avvp_dist import storage
from avvp_dist.datasets.llp import OfficialFeatures, read_annotations
from avvp_dist.errors import AvvpError, ConfigError, DataError
from avvp_dist.shards.index import Index, IndexedStream, LeftOut, read_labels
from avvp_dist.shards.pack import check_features, pack
from avvp_dist.types import Event, VideoRecord

TESTS = Path(__file__).parents[1]
IDS = [video_id(number) for number in range(12)]
NAMES = ["index.json", "labels.parquet", "test-000000.tar", *(f"train-00000{n}.tar" for n in range(3)), "val-000000.tar"]


@pytest.fixture
def official(tmp_path) -> Path:
    """Seven training, two validation and three test videos."""
    write_annotations(tmp_path / "llp")
    write_features(tmp_path / "llp", IDS)
    return tmp_path / "llp"


def pack_tiny(official: Path, out: object, **options) -> Index:
    """The call under test, three videos a shard, in this process unless told otherwise."""
    arguments = {"provenance": {"from": "test"}, "workers": 1, "shard_videos": 3, **options}
    records = arguments.pop("records", None) or read_annotations(official).records
    return pack(TINY, records, arguments.pop("source", OfficialFeatures(official, TINY)), str(out), **arguments)


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_plain_webdataset_reads_the_shards(official, tmp_path):
    pack_tiny(official, tmp_path / "out")
    source, records = OfficialFeatures(official, TINY), read_annotations(official).records
    for split in ("train", "val", "test"):
        urls = [str(path) for path in sorted((tmp_path / "out").glob(f"{split}-*.tar"))]
        samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
        mine = [record for record in records if record.split == split]
        assert [sample["__key__"] for sample in samples] == [record.id for record in mine]
        for sample, record in zip(samples, mine, strict=True):
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
    assert train.audio is None
    assert train.visual is None
    np.testing.assert_array_equal(train.shard, [0, 0, 0, 1, 1, 1, 2])
    np.testing.assert_array_equal(train.position, [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(np.argwhere(test.weak), [[0, 0], [0, 10], [1, 0], [1, 11], [2, 0], [2, 12]])
    assert (test.audio.shape, test.audio.dtype) == ((3, 10, 25), bool)
    np.testing.assert_array_equal(test.audio[2].sum(axis=0)[[0, 12]], [2, 4])  # Speech 0-2, the other class 2-6
    assert test.audio[2, 2:6, 12].all()
    assert test.visual.sum() == 1 + 10 + 9
    for split in labels.values():
        for number, name in enumerate(split.ids):
            content = (out / index.shards[split.shard[number]].name).read_bytes()
            values = np.frombuffer(content, np.float16, int(split.nbytes[number]) // 2, int(split.offset[number]))
            expected = OfficialFeatures(official, TINY).read(VideoRecord(name, name, "", ()))
            np.testing.assert_array_equal(values.reshape(10, 10), expected)


def test_overlapping_events_are_united(official, tmp_path):
    events = (Event(4, 0, 3), Event(4, 2, 6), Event(4, 2, 6), Event(5, 9, 10))
    records = [
        replace(record, audio_events=events) for record in read_annotations(official).records if record.split == "val"
    ]
    index = pack_tiny(official, tmp_path / "out", records=records)
    audio = read_labels(str(tmp_path / "out"), index)["val"].audio
    expected = np.zeros((10, 25), bool)
    expected[0:6, 4] = expected[9, 5] = True
    np.testing.assert_array_equal(audio, [expected, expected])


def test_fingerprint_depends_on_the_data_alone(official, tmp_path):
    index = pack_tiny(official, tmp_path / "here")
    shutil.copytree(official, tmp_path / "copy")  # same content, other times of change
    copy = pack_tiny(tmp_path / "copy", tmp_path / "there", provenance={"synthetic": True})
    assert copy.fingerprint == index.fingerprint
    assert (copy.synthetic, index.synthetic) == (True, False)
    renamed = replace(index, classes=("Talk", *index.classes[1:]))
    np.save(official / "feats" / "vggish" / f"{IDS[3]}.npy", np.ones((10, 3), np.float32))
    changed = pack_tiny(official, tmp_path / "changed")
    assert len({index.fingerprint, renamed.fingerprint, changed.fingerprint}) == 3


def test_inputs_are_recognised_across_versions_and_tell_reductions_apart(official, tmp_path):
    """Packs made before streams named their reduction are still complete; another reduction is not taken for theirs."""
    index = pack_tiny(official, tmp_path / "out")
    records = read_annotations(official).records
    facts = asdict(TINY) | {
        "streams": [{name: getattr(stream, name) for name in ("name", "dim", "folder", "rows")} for stream in TINY.streams]
    }
    content = [facts, 3, [asdict(record) for record in records], OfficialFeatures(official, TINY).fingerprint(records)]
    assert index.source == hashlib.sha256(json.dumps(content).encode()).hexdigest()
    other = replace(TINY, streams=(replace(TINY.streams[0], reduction="clap-map"), *TINY.streams[1:]))
    with pytest.raises(DataError, match="of other inputs"):
        pack(
            other, records, OfficialFeatures(official, TINY), str(tmp_path / "out"), provenance={}, workers=1, shard_videos=3
        )


def test_repeated_pack_writes_nothing(official, tmp_path):
    index = pack_tiny(official, tmp_path / "out")
    before = times(tmp_path / "out")
    time.sleep(0.01)
    assert pack_tiny(official, tmp_path / "out") == index
    assert times(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["labels.parquet", "train-000001.tar"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_repeated_pack_mends_only_what_is_damaged(official, tmp_path, name, damage):
    out = tmp_path / "out"
    pack_tiny(official, out)
    whole, before = contents(out), times(out)
    content = whole[name]
    (out / name).unlink()
    if damage == "cut":
        (out / name).write_bytes(content[:-1])
    elif damage == "flipped":
        (out / name).write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    pack_tiny(official, out)
    assert contents(out) == whole
    assert {key for key, value in times(out).items() if value != before[key]} == {name}


CRASHES = """
import os, signal, sys, traceback
from pathlib import Path
from avvp_dist import storage
from avvp_dist.storage import files
from avvp_dist.storage.processes import machine
from avvp_dist.datasets.llp import OfficialFeatures, read_annotations
from avvp_dist.shards.pack import pack
from llp_files import TINY
official, out = Path(sys.argv[1]), Path(sys.argv[2])

def run(folder, crash_at):
    calls = 0
    def crashing(function):
        def call(url, *content):
            nonlocal calls
            calls += 1
            if calls == crash_at:
                aside = Path(url).parent / f".aside-{machine()}-{os.getpid()}-0"  # as storage names it
                aside.parent.mkdir(parents=True, exist_ok=True)
                aside.write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
            function(url, *content)
        return call
    if crash_at:
        files.write_bytes = storage.write_bytes = crashing(files.write_bytes)
        files.remove = storage.remove = crashing(files.remove)
    pack(TINY, read_annotations(official).records, OfficialFeatures(official, TINY), str(folder), provenance={}, workers=1,
         shard_videos=3)

def child(folder, crash_at):  # each in a process of its own
    process = os.fork()
    if not process:
        try:
            run(folder, crash_at)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

crash_at = 0
while True:
    crash_at += 1
    folder = out / str(crash_at)
    if child(folder, crash_at) == 0:
        break
    print(crash_at, (folder / "index.json").exists(), child(folder, 0))
"""


def test_killed_before_any_write_it_goes_on_and_ends_the_same(official, tmp_path):
    """Kills a pack before its first, second, ... write, a half-written file beside it, then packs again."""
    done = run_script(CRASHES, official, tmp_path / "outs")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    # plan.json, five shards with a note each, labels, index, and the removal of the notes
    assert [int(number) for number, _, _ in lines] == list(range(1, 15))
    assert [complete for _, complete, _ in lines] == ["False"] * 13 + ["True"]
    assert {code for _, _, code in lines} == {"0"}
    whole = contents(tmp_path / "outs" / "15")
    assert sorted(whole) == NAMES
    assert all(contents(tmp_path / "outs" / number) == whole for number, _, _ in lines)


SLOW = """
import sys
from pathlib import Path
from avvp_dist.datasets.llp import read_annotations
from avvp_dist.shards.pack import pack
from llp_files import TINY, SlowFeatures
if __name__ == "__main__":
    official, out = Path(sys.argv[1]), sys.argv[2]
    pack(TINY, read_annotations(official).records, SlowFeatures(official, TINY), out, provenance={"from": "test"}, workers=2,
         shard_videos=3)
"""


def test_killed_with_its_workers_it_goes_on_where_it_stopped(official, tmp_path):
    out = tmp_path / "out"
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    packing = subprocess.Popen([sys.executable, script, official, out], env=environment())
    wait_for(lambda: (out / "_parts" / "train-000000.tar.json").exists() or packing.poll() is not None)
    workers = psutil.Process(packing.pid).children(recursive=True)
    packing.send_signal(signal.SIGKILL)
    assert packing.wait() == -signal.SIGKILL
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive  # a worker that lived on would write into the next pack
    with pytest.raises(DataError, match="packing was interrupted; run the same pack command again"):
        Index.load(str(out))
    first = (out / "train-000000.tar").stat().st_mtime_ns
    pack_tiny(official, out)
    pack_tiny(official, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "train-000000.tar").stat().st_mtime_ns == first


def test_death_of_a_worker_is_told_plainly(official, tmp_path):
    with pytest.raises(AvvpError, match="a worker process died, perhaps from lack of memory") as error:
        pack_tiny(official, tmp_path / "out", source=DeadlyFeatures(official, TINY), workers=2)
    assert not isinstance(error.value, DataError)


def test_all_bad_features_are_told_before_anything_is_written(official, tmp_path):
    spoil(official)
    with pytest.raises(DataError) as error:
        pack_tiny(official, tmp_path / "out")
    assert error.value.problems == [
        f"train {IDS[1]}: vggish/{IDS[1]}.npy: missing; res152/{IDS[1]}.npy: shape [79, 5], expected [80, 5]",
        f"test {IDS[10]}: vggish/{IDS[10]}.npy: missing",
    ]
    assert "2 of 12 videos" in str(error.value)
    assert "--skip-bad" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_machine_without_the_features_is_told_and_no_video_left_out(official, tmp_path):
    source = OfficialFeatures(official, TINY)  # made where the folders are
    for name in ("res152", "vggish"):
        (official / "feats" / name).rename(official / name)
    with pytest.raises(ConfigError) as error:
        pack_tiny(official, tmp_path / "out", source=source, skip_bad=True)
    (problem,) = error.value.problems
    assert problem.endswith(f"has no folder {official}/feats/vggish; all machines that pack need access to the features")
    assert not (tmp_path / "out").exists()


def test_mistakes_of_all_jobs_under_way_are_told_together(official, tmp_path):
    with pytest.raises(DataError) as error:
        pack_tiny(official, tmp_path / "out", source=VanishingFeatures(official, TINY), workers=2)
    assert error.value.problems == [f"{name} vanished" for name in (IDS[0], IDS[3], IDS[6], IDS[7], IDS[9])]  # five shards


class VanishingFeatures(OfficialFeatures):
    """Features that are gone once they were checked."""

    def read(self, record: VideoRecord) -> np.ndarray:
        raise DataError(f"{record.id} vanished")


def test_skipped_videos_are_recorded(official, tmp_path):
    spoil(official)
    out = tmp_path / "out"
    index = pack_tiny(official, out, skip_bad=True)
    assert [(bad.id, bad.split) for bad in index.left_out] == [(IDS[1], "train"), (IDS[10], "test")]
    assert index.left_out[1].reason == f"vggish/{IDS[10]}.npy: missing"
    bad, odd = check_features(read_annotations(official).records, OfficialFeatures(official, TINY), workers=1)
    assert (index.left_out, odd) == (bad, ())
    labels = read_labels(str(out), Index.load(str(out)))
    assert labels["train"].ids == (IDS[0], *IDS[2:7])
    assert labels["test"].ids == (IDS[9], IDS[11])
    before = times(out)
    assert pack_tiny(official, out, skip_bad=True) == index
    assert times(out) == before
    with pytest.raises(DataError, match=rf"test {IDS[10]}: vggish/{IDS[10]}\.npy: missing"):
        pack_tiny(official, out)


def test_nothing_left_to_pack(official, tmp_path):
    for name in IDS:
        (official / "feats" / "vggish" / f"{name}.npy").unlink()
    with pytest.raises(DataError, match="nothing is left to pack"):
        pack_tiny(official, tmp_path / "out", skip_bad=True)
    assert not (tmp_path / "out").exists()


def spoil(official: Path) -> None:
    (official / "feats" / "vggish" / f"{IDS[1]}.npy").unlink()
    (official / "feats" / "vggish" / f"{IDS[10]}.npy").unlink()
    np.save(official / "feats" / "res152" / f"{IDS[1]}.npy", np.zeros((79, 5), np.float32))


@pytest.mark.parametrize("change", ["features", "labels", "shard_videos"])
def test_other_data_are_never_mixed_in(official, tmp_path, change):
    out = tmp_path / "out"
    pack_tiny(official, out)
    before = contents(out)
    options = {}
    if change == "features":
        np.save(official / "feats" / "vggish" / f"{IDS[0]}.npy", np.ones((10, 3), np.float32))
    elif change == "labels":
        write_annotations(official, (8, 1, 3))
    else:
        options = {"shard_videos": 4}
    with pytest.raises(
        DataError, match=r"contains a data set packed from other inputs .* Pack into another folder, or delete"
    ):
        pack_tiny(official, out, **options)
    (out / "index.json").rename(tmp_path / "index.json")
    with pytest.raises(DataError, match=r"contains labels\.parquet .* of unknown origin"):
        pack_tiny(official, out, **options)
    (tmp_path / "index.json").rename(out / "index.json")
    assert contents(out) == before


def test_an_interrupted_pack_of_other_inputs_is_left_alone(official, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(AvvpError):
        pack_tiny(official, out, source=BrokenFeatures(official, TINY))
    before = contents(out)
    assert "_parts/plan.json" in before
    with pytest.raises(DataError, match="contains an interrupted pack of other inputs"):
        pack_tiny(official, out, shard_videos=2)
    assert contents(out) == before


class BrokenFeatures(OfficialFeatures):
    """Features whose last file breaks after it was checked."""

    def read(self, record: VideoRecord) -> np.ndarray:
        if record.id == IDS[11]:
            raise DataError("disk is gone")
        return super().read(record)


def test_records_that_no_shard_can_hold(tmp_path, official):
    good = read_annotations(official).records[0]
    records = [
        good,
        good,
        replace(good, id="../up", split="a/b"),
        replace(good, id="x", weak=(25,)),
        replace(good, id="y", audio_events=(Event(0, 5, 11),)),
    ]
    with pytest.raises(DataError) as error:
        pack_tiny(official, tmp_path / "out", records=records)
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        IDS[0],
        "video id '../up'",
        "../up",
        "x",
        "y",
        "y",
    ]
    with pytest.raises(ConfigError, match="at least 1"):
        pack_tiny(official, tmp_path / "out", shard_videos=0)


def test_features_in_an_object_store(official, tmp_path):
    url = "memory://raw/llp"
    storage.remove(url)
    for name, content in contents(official / "feats").items():
        storage.write_bytes(storage.join(url, "feats", name), content)
    for folder in (url, f"{url}/feats"):
        index = pack_tiny(official, tmp_path / folder.rpartition("/")[2], source=OfficialFeatures(folder, TINY))
    assert index.fingerprint == pack_tiny(official, tmp_path / "here").fingerprint
    assert pack_tiny(official, tmp_path / "llp", source=OfficialFeatures(url, TINY)) == index  # complete already
    storage.remove(f"{url}/feats/vggish/{IDS[1]}.npy")
    storage.write_bytes(f"{url}/feats/res152/{IDS[10]}.npy", b"nothing")
    with pytest.raises(DataError, match="of other inputs"):
        pack_tiny(official, tmp_path / "llp", source=OfficialFeatures(url, TINY))
    with pytest.raises(DataError) as error:
        pack_tiny(official, tmp_path / "new", source=OfficialFeatures(url, TINY))
    assert error.value.problems[0] == f"train {IDS[1]}: vggish/{IDS[1]}.npy: missing"
    assert f"test {IDS[10]}: res152/{IDS[10]}.npy: not a readable .npy array" in error.value.problems[1]
    with pytest.raises(DataError, match="vggish/: no such folder"):
        OfficialFeatures("memory://nothing", TINY)


def test_object_store(official, tmp_path):
    url = "memory://bucket/llp"
    storage.remove(url)
    index = pack_tiny(official, url)
    pack_tiny(official, tmp_path / "out")
    assert {name: storage.read_bytes(storage.join(url, name)) for name in storage.names(url)} == contents(tmp_path / "out")
    assert Index.load(url) == index
    assert read_labels(url, index)["test"].ids == tuple(IDS[9:])
    assert pack_tiny(official, url) == index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no index.json here, not a packed data set"),
        ("{", "not valid JSON"),
        ("[]", "not the index of a packed data set"),
        ('{"schema_version": 2}', "schema version 2, but this avvp_dist reads at most 1; install a newer one"),
        ('{"schema_version": 1, "dataset": "llp"}', "shards: Field required"),
    ],
)
def test_indexes_that_cannot_be_used(tmp_path, text, message):
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=message):
        Index.load(str(tmp_path))


def test_an_index_does_not_point_out_of_its_folder(official, tmp_path):
    content = json.loads(pack_tiny(official, tmp_path / "out").to_json())
    del content["checksum"]
    content["shards"][0]["name"] = "../../train-000000.tar"
    with pytest.raises(DataError, match=r"shards\.0\.name"):
        Index.from_json(json.dumps(content))


def test_labels_that_do_not_fit_the_index(official, tmp_path):
    out = tmp_path / "out"
    index = replace(pack_tiny(official, out), labels=None)  # as packed before the hash was recorded
    path = out / "labels.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(DataError, match=r"train-000000\.tar: 2 videos, but 3 in the index"):
        read_labels(str(out), index)
    backwards = pa.array(range(11, -1, -1), pa.int32())
    pq.write_table(table.set_column(4, table.schema.field(4), backwards), path)
    with pytest.raises(DataError, match=r"train-000000\.tar: its videos are not in order"):
        read_labels(str(out), index)
    pq.write_table(table.drop_columns("name"), path)
    with pytest.raises(DataError, match="does not have the columns of schema version 1"):
        read_labels(str(out), index)
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_labels(str(out), index)
    path.unlink()
    with pytest.raises(DataError, match=r"labels\.parquet: missing; run the pack command again"):
        read_labels(str(out), index)
    pq.write_table(table, path)
    with pytest.raises(DataError, match="byte ranges that do not match"):
        read_labels(str(out), replace(index, segments=9))
    with pytest.raises(DataError, match=r"weak labels outside 0\.\.3"):
        read_labels(str(out), replace(index, classes=index.classes[:4]))


def test_left_out_videos_survive_the_index(official, tmp_path):
    index = replace(pack_tiny(official, tmp_path / "out"), left_out=(LeftOut("a", "val", "why"),))
    assert Index.from_json(index.to_json()) == index


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}


def run_script(text: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
