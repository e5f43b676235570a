"""Errors of packing: bad features, invalid records, dead workers; all problems are reported before anything is written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llp_files import IDS, TINY, DeadlyFeatures, modification_times, pack_tiny, write_official

from avvp_dist.datasets.llp import OfficialFeatures, read_annotations
from avvp_dist.errors import AvvpError, ConfigError, DataError
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.shards.pack import check_features
from avvp_dist.types import Event, VideoRecord


@pytest.fixture
def official(tmp_path) -> Path:
    """Seven training, two validation and three test videos."""
    return write_official(tmp_path / "llp")


def test_the_death_of_a_worker_is_a_clear_error(official, tmp_path):
    with pytest.raises(AvvpError, match="a worker process died, perhaps from lack of memory") as error:
        pack_tiny(official, tmp_path / "out", source=DeadlyFeatures(official, TINY), workers=2)
    assert not isinstance(error.value, DataError)


def test_all_bad_features_are_reported_before_anything_is_written(official, tmp_path):
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


def test_a_machine_without_the_features_is_an_error_and_no_video_is_left_out(official, tmp_path):
    source = OfficialFeatures(official, TINY)  # created while the folders exist
    for name in ("res152", "vggish"):
        (official / "feats" / name).rename(official / name)
    with pytest.raises(ConfigError) as error:
        pack_tiny(official, tmp_path / "out", source=source, skip_bad=True)
    (problem,) = error.value.problems
    assert problem.endswith(f"has no folder {official}/feats/vggish; all machines that pack need access to the features")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_errors_of_all_running_jobs_are_reported_together(official, tmp_path):
    with pytest.raises(DataError) as error:
        pack_tiny(official, tmp_path / "out", source=VanishingFeatures(official, TINY), workers=2)
    assert error.value.problems == [f"{name} vanished" for name in (IDS[0], IDS[3], IDS[6], IDS[7], IDS[9])]  # five shards


class VanishingFeatures(OfficialFeatures):
    """Features that disappear after they were checked."""

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
    before = modification_times(out)
    assert pack_tiny(official, out, skip_bad=True) == index
    assert modification_times(out) == before
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


def test_invalid_records_are_refused(tmp_path, official):
    good = read_annotations(official).records[0]
    records = [
        good,
        good,
        replace(good, id="../up", split="a/b"),
        replace(good, id="x", weak=(25,)),
        replace(good, id="y", events={"audio": (Event(0, 5, 11),), "visual": ()}),
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
