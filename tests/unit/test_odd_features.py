"""Feature files that are not as the official ones: reported, counted by kind, and packed to the same values."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from llp_files import TINY, video_id, write_annotations, write_features

from avvp_dist import storage
from avvp_dist.cli.main import main
from avvp_dist.datasets.catalog import LLP
from avvp_dist.datasets.llp import OfficialFeatures, read_annotations
from avvp_dist.shards import pack as packing
from avvp_dist.shards.feature_source import ODDITIES, Examined, OddFile
from avvp_dist.types import VideoRecord


def avvp(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def record(number: int) -> VideoRecord:
    return VideoRecord(video_id(number), f"{video_id(number)}_10_20", "train", (0,))


def vggish(folder: Path, number: int) -> Path:
    return folder / "feats" / "vggish" / f"{video_id(number)}.npy"


def more(path: Path, content: bytes = b"\x00" * 16) -> None:
    path.write_bytes(path.read_bytes() + content)


CHANGES = {
    "float64": lambda path, values: np.save(path, values.astype(np.float64)),
    "float16": lambda path, values: np.save(path, values.astype(np.float16)),
    "big-endian": lambda path, values: np.save(path, values.astype(">f4")),
    "fortran-order": lambda path, values: np.save(path, np.asfortranarray(values)),
    "trailing-bytes": lambda path, values: more(path),
    "all-zero": lambda path, values: np.save(path, values * 0),
}


@pytest.mark.parametrize("kind", ODDITIES)
@pytest.mark.parametrize("remote", [False, True])
def test_each_kind_is_named_and_read_exactly(tmp_path, kind, remote):
    write_features(tmp_path, [video_id(0)])
    values = np.load(vggish(tmp_path, 0))
    CHANGES[kind](vggish(tmp_path, 0), values)
    folder = str(tmp_path)
    if remote:
        folder = f"memory://odd-{kind}"
        for path in tmp_path.rglob("*.npy"):
            storage.write_bytes(f"{folder}/{path.relative_to(tmp_path)}", path.read_bytes())
    source = OfficialFeatures(folder, TINY)
    found = source.examine(record(0))
    assert found.problems == ()
    assert found.odd == (OddFile(kind, f"vggish/{video_id(0)}.npy"),)
    expected = values.astype(np.float16) if kind != "all-zero" else np.zeros((10, 3))
    np.testing.assert_array_equal(source.read(record(0))[:, :3], expected)


def test_kinds_add_up_in_one_file_and_good_files_have_none(tmp_path):
    write_features(tmp_path, [video_id(0)])
    source = OfficialFeatures(tmp_path, TINY)
    assert source.examine(record(0)) == Examined()
    np.save(vggish(tmp_path, 0), np.asfortranarray(np.zeros((10, 3), ">f8")))
    more(vggish(tmp_path, 0), b"x")
    assert [odd.kind for odd in source.examine(record(0)).odd] == [
        "float64",
        "big-endian",
        "fortran-order",
        "all-zero",
        "trailing-bytes",
    ]


def test_what_cannot_be_used_exactly_is_refused(tmp_path):
    write_features(tmp_path, [video_id(number) for number in range(4)])
    np.save(vggish(tmp_path, 0), np.zeros((10, 3), np.longdouble))
    np.save(vggish(tmp_path, 1), np.array([[Path("x")] * 3] * 10, object))
    np.save(vggish(tmp_path, 2), np.zeros((10, 3), complex))
    vggish(tmp_path, 3).write_bytes(vggish(tmp_path, 3).read_bytes()[:-1])
    source = OfficialFeatures(tmp_path, TINY)
    for number, text in enumerate(
        ("holds float128, expected float32", "not a readable .npy array (Object arrays cannot be loaded", "holds complex128",
         "not a readable .npy array")
    ):  # fmt: skip
        found = source.examine(record(number))
        assert found.problems[0].startswith(f"vggish/{video_id(number)}.npy: {text}")
        assert found.odd == ()


def test_check_counts_them_and_pack_takes_them(tmp_path, capsys, caplog):
    write_annotations(tmp_path / "llp", (2, 1, 1))
    write_features(tmp_path / "llp", [video_id(number) for number in range(4)], LLP)
    files = ["--annotations", tmp_path / "llp", "--features", tmp_path / "llp", "--workers", 1]
    report = tmp_path / "report.json"
    assert avvp("data", "pack", "llp", *files, "--out", tmp_path / "plain") == 0
    assert avvp("data", "check", "llp", *files, "--json", report) == 0
    told = capsys.readouterr().out
    assert "all good" in told
    assert "odd" not in told + caplog.text
    assert json.loads(report.read_text())["odd_features"] == []
    for number in (0, 1, 3):
        path = vggish(tmp_path / "llp", number)
        np.save(path, np.load(path).astype(">f8"))
    more(tmp_path / "llp" / "feats" / "res152" / f"{video_id(2)}.npy")
    assert avvp("data", "check", "llp", *files, "--json", report) == 0
    told = capsys.readouterr().out
    assert "features of 4 videos: none bad" in told
    rows = [line.replace("│", "").split()[:4] for line in told.splitlines()]
    assert ["big-endian", "vggish", "3", f"{video_id(0)}.npy"] in rows
    assert ["float64", "vggish", "3", f"{video_id(0)}.npy"] in rows
    assert ["trailing-bytes", "res152", "1", f"{video_id(2)}.npy"] in rows
    found = json.loads(report.read_text())["odd_features"]
    assert len(found) == 7
    assert asdict(OddFile("float64", f"vggish/{video_id(3)}.npy")) in found
    assert avvp("data", "pack", "llp", *files, "--out", tmp_path / "other") == 0
    assert "odd feature files that can be used: 3 big-endian, 3 float64, 1 trailing-bytes" in caplog.text
    for name in ("train-000000.tar", "val-000000.tar", "test-000000.tar"):
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_processes_report_them_too(tmp_path):
    write_annotations(tmp_path, (3, 1, 1))
    write_features(tmp_path, [video_id(number) for number in range(5)])
    np.save(vggish(tmp_path, 3), np.zeros((10, 3)))
    vggish(tmp_path, 4).unlink()
    bad, odd = packing.check_features(read_annotations(tmp_path).records, OfficialFeatures(tmp_path, TINY), workers=2)
    assert [video.id for video in bad] == [video_id(4)]
    assert [file.kind for file in odd] == ["float64", "all-zero"]
