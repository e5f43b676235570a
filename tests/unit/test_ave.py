"""Features of AVE: packing, reading rows of HDF5 files, streaming regions, files that cannot be used."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ave_files import BARK, BELL, MANDOLIN, ROWS, feature_arrays, write_annotations, write_h5, write_official
from typer.testing import CliRunner, Result

from avvp_dist.cli.data import data
from avvp_dist.datasets.ave import read_annotations
from avvp_dist.datasets.ave_features import AveFeatures
from avvp_dist.datasets.catalog import AVE
from avvp_dist.datasets.hdf5 import RowReader
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.loading.split import DataConfig, open_split
from avvp_dist.shards import pack as packing
from avvp_dist.shards.feature_source import FeatureReport
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.shards.verify import verify
from avvp_dist.types import Event, VideoRecord


def avvp_data(*arguments: object) -> Result:
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


def pack(official: Path, out: Path, *options: object) -> Result:
    return avvp_data(
        "pack", "ave", "--annotations", official, "--features", official, "--out", out, "--workers", 1, *options
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """The official files, which no test may change."""
    return write_official(tmp_path_factory.mktemp("ave") / "official")


@pytest.fixture(scope="module")
def packed(shared, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("packed") / "ave"
    result = pack(shared, out, "--shard-videos", 2)
    assert result.exit_code == 0, result.output
    return str(out)


def test_packed_features_keep_the_regions(packed, shared):
    index = Index.load(packed)
    assert (index.dataset, index.task, index.tracks, index.classes) == ("ave", "localization", ("event",), AVE.classes)
    assert index.shapes == {"audio": (128,), "visual": (7, 7, 512)}
    arrays, labels = feature_arrays(), read_labels(packed, index)
    assert verify(packed, processes=1).problems == ()
    rows = {"train": [1, 0, 2, 3, 5], "val": [4], "test": [6]}
    for split, numbers in rows.items():
        reader = open_split(DataConfig(url=packed), index, labels[split], torch.device("cpu"), torch.float32)
        (batch,) = reader.iter_all(16, 0, 1)
        for name in ("audio", "visual"):
            expected = [arrays[f"{name}_feature.h5"][numbers]]
            expected += [arrays[f"{name}_feature_noisy.h5"]] if split == "train" else []
            np.testing.assert_array_equal(batch.streams[name].numpy(), np.concatenate(expected))
        reader.close()


def test_truth_and_weak_labels_of_packed_data(packed):
    labels = read_labels(packed, Index.load(packed))
    truth = labels["train"].truth
    assert set(truth) == {"event"}
    expected = np.zeros((7, 10, 28), bool)
    expected[0, 2:5, BELL] = expected[1, :, BELL] = expected[3, 8:, BARK] = expected[4, :, MANDOLIN] = True
    np.testing.assert_array_equal(truth["event"], expected)
    assert labels["train"].weak.argmax(axis=1).tolist()[:5] == [BELL, BELL, BELL, BARK, MANDOLIN]
    assert labels["train"].weak.sum(axis=1).tolist() == [1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_regions_are_streamed(packed, workers):
    index = Index.load(packed)
    labels = read_labels(packed, index)["train"]
    config = DataConfig(url=packed, mode="streaming", streams=2, window=2, workers=workers, prefetch=2)
    resident = open_split(config.model_copy(update={"mode": "resident"}), index, labels, torch.device("cpu"), torch.float32)
    streamed = open_split(config, index, labels, torch.device("cpu"), torch.float32)
    (everything,) = resident.iter_all(16, 0, 1)
    seen = []
    for batch in streamed.epoch(streamed.plan(4, 0, 0), 0, 0, 1, partners=1):
        for name, values in batch.streams.items():
            assert values.shape == (len(batch.index), 10, *index.shapes[name])
            torch.testing.assert_close(values, everything.streams[name][batch.index], rtol=0, atol=0)
        (partner,) = batch.partners
        torch.testing.assert_close(partner.visual, everything.visual[partner.index], rtol=0, atol=0)
        assert not (partner.weak * batch.weak).any()
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(7))
    streamed.close()


def test_streaming_needs_little_memory(tmp_path):
    """An epoch over 200 MB of regions needs about half of it, and as much for any number of videos."""
    records = [VideoRecord(f"v{number:03d}", "", "train", (number % 28,), {"event": ()}) for number in range(400)]
    packing.pack(AVE, records, Zeros(), str(tmp_path), provenance={}, workers=1)
    code = """
import re, sys, torch
from avvp_dist.loading.split import DataConfig, open_split
from avvp_dist.shards import pack as packing
from avvp_dist.shards.feature_source import FeatureReport
from avvp_dist.shards.index import Index, read_labels
index = Index.load(sys.argv[1])
config = DataConfig(url=sys.argv[1], mode="streaming", streams=2, window=33, workers=0, prefetch=2, share=False)
def peak():  # not getrusage, which includes the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
split = open_split(config, index, read_labels(sys.argv[1], index)["train"], torch.device("cpu"), torch.float32)
for batch in split.epoch(split.plan(4, 0, 0), 0, 0, 1, partners=1):
    batch.visual.sum()
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200_000  # kB; 300,000 if the split is resident


@pytest.mark.parametrize("options", [{}, {"chunks": True, "compression": "gzip"}, {"chunks": (3, 1, 1)}])
def test_rows_of_any_storage_are_read(tmp_path, options):
    values = np.random.default_rng(0).random((11, 5, 4))
    write_h5(tmp_path / "rows.h5", values, **options)
    reader = pickle.loads(pickle.dumps(RowReader(tmp_path / "rows.h5", "avadataset")))
    for number in (10, 0, 4, 3, 10):
        np.testing.assert_array_equal(reader.row(number), values[number])


def test_only_the_requested_rows_are_read(tmp_path, monkeypatch):
    write_h5(tmp_path / "whole.h5", np.zeros((100, 10)))
    write_h5(tmp_path / "chunks.h5", np.zeros((100, 10)), chunks=(8, 10))
    read = []
    getitem = h5py.Dataset.__getitem__

    def recording(self, rows, *rest):
        read.append(rows)
        return getitem(self, rows, *rest)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", recording)
    for name, expected in (("whole", [slice(3, 4), slice(99, 100)]), ("chunks", [slice(0, 8), slice(96, 100)])):
        reader = RowReader(tmp_path / f"{name}.h5", "avadataset")
        for number in (3, 3, 99):
            reader.row(number)
        assert read == expected
        read.clear()


def spoil(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    if kind == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "text":
        path.write_text("not HDF5")
    elif kind == "missing":
        path.unlink()
    elif kind == "shape":
        write_h5(path, np.zeros((len(ROWS), 10, 49, 512), np.float32))
    elif kind == "rows":
        write_h5(path, np.zeros((len(ROWS) - 1, 10, 128), np.float32))
    elif kind == "key":
        write_h5(path, np.zeros(3), key="features")
    elif kind == "integers":
        write_h5(path, np.zeros((len(ROWS), 10, 128), np.int32))
    elif kind == "external":
        with h5py.File(path, "w") as file:
            file["avadataset"] = h5py.ExternalLink("/etc/passwd", "/")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("visual_feature.h5", "truncated", "not a readable HDF5 file, damaged or not completely downloaded; replace it"),
        ("visual_feature_noisy.h5", "text", "not a readable HDF5 file"),
        ("audio_feature.h5", "missing", "missing from"),
        ("visual_feature.h5", "shape", f"shape [{len(ROWS)}, 10, 49, 512], expected [{len(ROWS)}, 10, 7, 7, 512]"),
        ("audio_feature.h5", "rows", f"shape [{len(ROWS) - 1}, 10, 128], expected [{len(ROWS)}, 10, 128]"),
        ("audio_feature_noisy.h5", "key", "no array 'avadataset'; it contains features"),
        ("audio_feature.h5", "integers", "has dtype int32, expected a float of up to 64 bits"),
        ("audio_feature.h5", "external", "'avadataset' is not an array that is stored in this file"),
    ],
)
def test_unusable_feature_files(tmp_path, name, kind, message):
    official = write_official(tmp_path / "ave")
    spoil(official, name, kind)
    result = pack(official, tmp_path / "out")
    assert isinstance(result.exception, DataError)
    (problem,) = result.exception.problems
    assert problem.startswith(f"{name}: {message}")
    assert not (tmp_path / "out").exists()


def test_all_unusable_files_are_reported_together(tmp_path):
    official = write_official(tmp_path / "ave")
    spoil(official, "audio_feature.h5", "missing")
    spoil(official, "visual_feature_noisy.h5", "truncated")
    with pytest.raises(DataError) as error:
        AveFeatures(official, read_annotations(official))
    assert [problem.split(":")[0] for problem in error.value.problems] == ["audio_feature.h5", "visual_feature_noisy.h5"]


def test_bad_values_are_reported_or_left_out(tmp_path):
    official = write_official(tmp_path / "ave")
    with h5py.File(official / "visual_feature.h5", "r+") as file:
        file["avadataset"][3, 2, 1, 0, 5] = np.nan
        file["avadataset"][5] = 0
    with h5py.File(official / "audio_feature_noisy.h5", "r+") as file:
        file["avadataset"][1, 0, 0] = 1e6
    checked = avvp_data("check", "ave", "--annotations", official, "--features", official, "--workers", 1)
    assert checked.exit_code == 2
    assert "row 3: 1 value is not finite, the first at [2, 1, 0, 5]" in " ".join(checked.output.split())
    assert "all-zero" in checked.output
    assert "float64" in checked.output
    result = pack(official, tmp_path / "out")
    assert "audio_feature_noisy.h5: row 1: values up to 1e+06 do not fit float16" in str(result.exception)
    assert pack(official, tmp_path / "out", "--skip-bad").exit_code == 0
    index = Index.load(str(tmp_path / "out"))
    assert [video.id for video in index.left_out] == ["DDDDDDDDDDD", "background_0001"]
    labels = read_labels(str(tmp_path / "out"), index)["train"]
    assert labels.ids == ("BBBBBBBBBBB_1", "AAAAAAAAAAA", "CCCCCCCCCCC", "EEEEEEEEEEE", "background_0000")


def test_damage_within_a_file_names_its_rows(tmp_path):
    official = write_annotations(tmp_path / "ave")
    for name, values in feature_arrays().items():
        write_h5(official / name, values, chunks=(2, *values.shape[1:]), compression="gzip", fletcher32=True)
    raw = bytearray((official / "audio_feature.h5").read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 64] = bytes(64)
    (official / "audio_feature.h5").write_bytes(raw)
    annotations = read_annotations(official)
    source = AveFeatures(official, annotations)
    problems = [line for record in annotations.records for line in source.examine(record).problems]
    assert problems
    assert all(line.startswith("audio_feature.h5: rows ") and "cannot be read, damaged" in line for line in problems)


def test_inspect_check_and_options(packed, shared, tmp_path):
    content = json.loads(avvp_data("inspect", packed, "--json").output)
    assert (content["task"], content["tracks"]) == ("localization", ["event"])
    assert content["streams"][1] == {"name": "visual", "dim": 25088, "offset": 128, "shape": [7, 7, 512]}
    assert content["splits"]["train"]["segments_with_truth"] == 70
    assert content["provenance"]["flaws"]["repeated-id"] == {"Annotations.txt": 1}
    assert "7x7x512" in avvp_data("inspect", packed).output
    good = avvp_data("check", "ave", "--annotations", shared, "--features", shared, "--workers", 1, "--json", tmp_path / "f")
    assert good.exit_code == 0
    assert "features of 9 videos: all good" in good.output
    assert json.loads((tmp_path / "f").read_text())["counts"]["float64"] == {"audio_feature_noisy.h5": 1}
    refused = avvp_data("check", "ave", "--annotations", shared, "--mend", "--streams", "clip-clap")
    assert isinstance(refused.exception, ConfigError)
    assert len(refused.exception.problems) == 2


def test_labels_of_audio_and_visual_are_refused(packed, tmp_path):
    refused = avvp_data("noisy-labels", "--data", packed, "--flip", 0.1, "--out", tmp_path / "labels.npz")
    assert "labels of audio and visual are needed, but the events of ave are of event" in str(refused.exception)


def test_a_repeated_pack_recognizes_its_output(packed, shared):
    before = {path.name: path.stat().st_mtime_ns for path in Path(packed).iterdir()}
    assert pack(shared, Path(packed), "--shard-videos", 2).exit_code == 0
    assert {path.name: path.stat().st_mtime_ns for path in Path(packed).iterdir()} == before


def test_inputs_are_identified_by_rows_and_files(tmp_path):
    official = write_official(tmp_path / "ave")
    annotations = read_annotations(official)
    source = AveFeatures(official, annotations)
    few = annotations.records[:2]
    before = source.fingerprint(few)
    assert before != source.fingerprint(annotations.records[1:3])
    os.utime(official / "visual_feature_noisy.h5", (0, 0))
    assert source.fingerprint(few) == before  # they are not in that file
    os.utime(official / "visual_feature.h5", (0, 0))
    assert source.fingerprint(few) != before


def test_default_shards_hold_few_large_videos(tmp_path):
    records = [VideoRecord(f"v{number}", f"v{number}", "train", (0,), {"event": ()}) for number in range(40)]
    index = packing.pack(AVE, records, Zeros(), str(tmp_path / "out"), provenance={}, workers=1)
    assert [shard.samples for shard in index.shards] == [33, 7]


class Zeros:
    def fingerprint(self, records):
        return ""

    def examine(self, record):
        return FeatureReport()

    def read(self, record):
        return np.zeros((10, AVE.width), np.float16)


def test_events_shorter_than_half_a_segment_activate_none(tmp_path):
    dataset = replace(AVE, streams=AVE.streams[:1], segment_seconds=0.64)
    events = (Event(0, 0.0, 0.32), Event(1, 0.0, 0.31), Event(2, 0.33, 6.4), Event(3, 1.6, 1.92))
    record = VideoRecord("v", "v", "train", (0,), {"event": events})

    class Narrow(Zeros):
        def read(self, record):
            return np.zeros((10, 128), np.float16)

    index = packing.pack(dataset, [record], Narrow(), str(tmp_path / "out"), provenance={}, workers=1)
    truth = read_labels(str(tmp_path / "out"), index)["train"].truth["event"][0]
    assert [np.flatnonzero(truth[:, label]).tolist() for label in range(4)] == [[0], [], list(range(1, 10)), [2]]
    assert verify(str(tmp_path / "out"), processes=1).problems == ()
