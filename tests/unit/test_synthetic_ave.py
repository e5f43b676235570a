import json
from collections import Counter

import h5py
import numpy as np
import pytest
from llp_files import contents
from typer.testing import CliRunner, Result

from avvp_dist.cli.data import data
from avvp_dist.datasets import synthetic_ave
from avvp_dist.datasets.ave import read_annotations
from avvp_dist.datasets.catalog import AVE
from avvp_dist.datasets.synthetic_ave import SyntheticAve, audio, visual, write
from avvp_dist.datasets.synthetic_ave_labels import NOTHING, counts, evidence, statistics, videos
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.shards.verify import verify
from avvp_dist.types import Event, VideoRecord

SMALL = {"splits": (20, 3, 4), "background": 3}


def avvp_data(*arguments: object) -> Result:
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


def video(number: int, label: int | None = 3, onset: float = 2, offset: float = 6) -> VideoRecord:
    weak = () if label is None else (label,)
    events = () if label is None else (Event(label, onset, offset),)
    return VideoRecord(f"synthetic-{number:04d}", "", "train", weak, {"event": events})


@pytest.fixture(scope="module")
def drawn():
    """All videos of a synthetic AVE of the full size, without features."""
    return videos(None, counts(None, (3339, 402, 402), None), 0)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "official"
    write(str(out), **SMALL, seed=1)
    return out


def test_videos_have_the_published_statistics(drawn):
    assert Counter(record.split for record in drawn.records) == {"train": 3339 + 178, "val": 402, "test": 402}
    events = [event for record in drawn.records for event in record.events["event"]]
    lengths = np.array([event.offset - event.onset for event in events])
    assert lengths.mean() == pytest.approx(8.29, abs=0.1)
    assert (lengths == 10).mean() == pytest.approx(0.664, abs=0.02)
    assert lengths.min() >= 2
    assert lengths.sum() / 10 / 4143 == pytest.approx(0.83, abs=0.01)
    order = [record.weak[0] for record in drawn.records if record.split == "train" and record.weak]
    assert order == sorted(order)
    assert len(set(order)) == 28


def test_statistics_are_those_of_the_annotation_files(ave_annotations):
    classes, intervals = statistics()
    found = read_annotations(ave_annotations).records
    events = Counter(event for record in found for event in record.events["event"])
    of_class = Counter(event.label for event in events.elements())
    shares = np.diff(classes.cumulative, prepend=0)
    assert dict(zip(classes.values, shares, strict=True)) == pytest.approx(
        {label: count / events.total() for label, count in of_class.items()}
    )
    for label, distribution in enumerate(intervals):
        shares = np.diff(distribution.cumulative, prepend=0)
        expected = {(e.onset, e.offset): count / of_class[label] for e, count in events.items() if e.label == label}
        assert dict(zip(distribution.values, shares, strict=True)) == pytest.approx(expected)


def test_modalities_agree_in_the_seconds_of_the_event_only(drawn):
    one_sided = Counter()
    for record in (record for record in drawn.records if record.weak):
        heard, seen = evidence(0, record)
        active = np.zeros(10, bool)
        for event in record.events["event"]:
            active[int(event.onset) : int(event.offset)] = True
            assert (heard[active] == event.label).all()
            assert (seen[active] == event.label).all()
        assert ((heard[~active] == NOTHING) | (seen[~active] == NOTHING)).all()
        (own,) = record.weak
        for name, found in (("audio", heard), ("visual", seen)):
            labels = found[~active & (found != NOTHING)]
            one_sided[name, "own"] += int((labels == own).sum())
            one_sided[name, "other"] += int((labels != own).sum())
        one_sided["nothing"] += int((~active & (heard == NOTHING) & (seen == NOTHING)).sum())
    shares = {kind: count / one_sided.total() for kind, count in one_sided.items()}
    assert shares["visual", "own"] > shares["audio", "own"] > 0.1
    assert min(shares.values()) > 0.04
    assert 0.4 < shares["nothing"] < 0.6


def test_background_videos_have_no_evidence(drawn):
    background = [evidence(0, record) for record in drawn.records if not record.weak]
    assert len(background) == 178
    assert all((found == NOTHING).all() for both in background for found in both)


def test_features_depend_on_seed_and_video_alone():
    record = video(1)
    for feature in (audio, visual):
        values = feature(1, record)
        np.testing.assert_array_equal(values, feature(1, record))
        assert values.dtype == np.float16
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert (feature(2, record) != values).any()
        assert (feature(1, video(2)) != values).any()
    assert visual(1, record).shape == (10, 7, 7, 512)
    np.testing.assert_array_equal(SyntheticAve(1).read(record)[:, 128:].reshape(10, 7, 7, 512), visual(1, record))


def test_the_class_is_visible_in_a_patch_during_the_event():
    directions = synthetic_ave._directions(0)["visual"]
    found, sizes = [], []
    for number in range(40):
        record = video(number)
        visible = evidence(0, record).visual == 3
        scores = visual(0, record).astype(np.float32) @ directions.T  # [T,7,7,28]
        best = scores.max(axis=(1, 2)).argmax(axis=1) == 3
        found.append((best[visible].mean(), best[~visible].mean() if (~visible).any() else 0))
        strong = scores[visible, ..., 3] > scores[visible, ..., 3].max(axis=(1, 2), keepdims=True) / 2
        sizes.append(strong.mean())
    during, outside = np.mean(found, axis=0)
    assert during > 0.6
    assert outside < 0.2
    assert 2 / 49 < np.mean(sizes) < 12 / 49  # patches of 4 to 9 regions


def test_the_class_is_evident_in_audio_while_it_is_audible():
    directions = synthetic_ave._directions(0)["audio"]
    found = []
    for number in range(60):
        record = video(number)
        audible = evidence(0, record).audio == 3
        best = (audio(0, record).astype(np.float32) @ directions.T).argmax(axis=1) == 3
        found.append((best[audible].mean(), best[~audible].mean() if (~audible).any() else 0))
    during, outside = np.mean(found, axis=0)
    assert during > 0.5
    assert outside < 0.2


def test_official_files_are_read_back(official):
    found = read_annotations(official, official)
    assert found.records == videos(None, counts(None, SMALL["splits"], 3), 1).records
    assert {flaw.kind for flaw in found.flaws} == {"class-sorted", "float64"}
    with h5py.File(official / "visual_feature.h5") as file:
        assert (file["avadataset"].shape, file["avadataset"].dtype) == ((27, 10, 7, 7, 512), np.float32)
        record = found.records[5]
        np.testing.assert_array_equal(file["avadataset"][found.rows[record.id]], visual(1, record))
    with h5py.File(official / "labels.h5") as file:
        assert file["avadataset"].shape == (27, 10, 29)
    marker = json.loads((official / "synthetic.json").read_text())
    assert marker["videos"] == {"train": 20, "val": 3, "test": 4, "background": 3}


def test_packed_official_files_equal_synthetic_shards(official, tmp_path):
    created = avvp_data(
        "synth", tmp_path / "shards", "--dataset", "ave", "--splits", "20,3,4", "--background", 3, "--seed", 1, "--layout",
        "shards", "--shard-videos", 8, "--workers", 1,
    )  # fmt: skip
    assert created.exit_code == 0, created.output
    assert "train 20, val 3, test 4, background 3" in created.output
    packed = avvp_data(
        "pack", "ave", "--annotations", official, "--features", official, "--out", tmp_path / "packed", "--shard-videos", 8,
        "--workers", 2,
    )  # fmt: skip
    assert packed.exit_code == 0, packed.output
    assert "SYNTHETIC data" in packed.output
    indexes = [Index.load(str(tmp_path / name)) for name in ("shards", "packed")]
    assert indexes[0].fingerprint == indexes[1].fingerprint
    assert all(index.synthetic for index in indexes)
    assert verify(str(tmp_path / "packed"), processes=1).problems == ()
    truth = read_labels(str(tmp_path / "packed"), indexes[1])["test"].truth["event"]
    assert truth.shape == (4, 10, 28)
    assert (truth.sum(axis=2) <= 1).all()
    again = avvp_data("pack", "ave", "--annotations", official, "--features", official, "--out", tmp_path / "packed",
                      "--shard-videos", 8, "--workers", 1)  # fmt: skip
    assert again.exit_code == 0
    assert Index.load(str(tmp_path / "packed")) == indexes[1]


def test_writing_again_yields_the_same_bytes(official, tmp_path):
    write(str(tmp_path / "again"), **SMALL, seed=1)
    assert contents(tmp_path / "again") == contents(official)
    (tmp_path / "again" / "Annotations.txt").write_text("an interrupted write")
    write(str(tmp_path / "again"), **SMALL, seed=1)
    assert contents(tmp_path / "again") == contents(official)


def test_arrays_are_written_a_few_videos_at_a_time(tmp_path, monkeypatch):
    written = []
    setitem = h5py.Dataset.__setitem__

    def recording(self, rows, values):
        written.append((rows.stop - rows.start, values.dtype, values.nbytes))
        setitem(self, rows, values)

    monkeypatch.setattr(h5py.Dataset, "__setitem__", recording)
    write(str(tmp_path / "out"), splits=(40, 1, 1), background=1)
    assert sum(count for count, *_ in written) == 2 * 43
    assert max(nbytes for *_, nbytes in written) == 16 * 10 * 25088 * 2


def test_real_annotations_are_used(ave_annotations, tmp_path):
    summary = write(str(tmp_path), annotations=str(ave_annotations), splits=(10, 2, 500), background=2, seed=4)
    assert summary["videos"] == {"train": 10, "val": 2, "test": 402, "background": 2}
    assert summary["notes"] == ["test: all 402 videos of the annotations (500 were requested)"]
    real = {record.name: record for record in read_annotations(ave_annotations).records}
    found = read_annotations(tmp_path).records
    assert len(found) == 416
    for record in found:
        if record.weak:
            assert real[record.name].weak or record.name in real
    assert sum(record.events == real[record.name].events for record in found if record.weak) >= 410
    assert Counter(record.split for record in found) == {"train": 12, "val": 2, "test": 402}


def test_folders_that_may_hold_real_files_are_refused(tmp_path):
    (tmp_path / "Annotations.txt").write_text("real")
    with pytest.raises(ConfigError, match="its files may be real"):
        write(str(tmp_path), **SMALL)
    with pytest.raises(ConfigError, match="copy them to a local or shared folder"):
        write("memory://bucket/ave", **SMALL)


def test_invalid_arguments_are_reported_together(tmp_path):
    with pytest.raises(ConfigError) as error:
        write(str(tmp_path), splits=(5, 0, 1), background=-1, seed=-1, layout="tar", workers=0)
    assert len(error.value.problems) == 5
    with pytest.raises(ConfigError, match="give only one"):
        write(str(tmp_path), videos=10, splits=(1, 1, 1))
    refused = avvp_data("synth", tmp_path / "out", "--dataset", "ave", "--streams", "clip-clap")
    assert isinstance(refused.exception, ConfigError)
    refused = avvp_data("synth", tmp_path / "out", "--background", 3)
    assert "only AVE has background videos" in str(refused.exception)
    assert counts(100, None, None) == (80, 10, 10, 4)
    assert counts(None, None, None) == (400, 60, 60, 21)


def test_shards_of_another_seed_are_refused(tmp_path):
    arguments = {"layout": "shards", "splits": (2, 1, 1), "background": 1, "workers": 1}
    write(str(tmp_path), **arguments)
    with pytest.raises(DataError, match="from other inputs"):
        write(str(tmp_path), **arguments, seed=1)
    assert Index.load(str(tmp_path)).classes == AVE.classes
