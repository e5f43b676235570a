"""Annotations of AVE: order of the videos, flaws that are reported, files that cannot be used."""

from collections import Counter
from pathlib import Path

import ave_files
import h5py
import numpy as np
import pytest
from ave_files import BARK, BELL, MANDOLIN, ROWS, write_annotations, write_h5

from avvp_dist.datasets.ave import read_annotations
from avvp_dist.datasets.catalog import AVE
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.types import Event, VideoRecord


@pytest.fixture
def annotated(tmp_path) -> Path:
    """The official files without features."""
    return write_annotations(tmp_path / "ave")


def video(number: int, split: str, name: str | None = None) -> VideoRecord:
    category, youtube, start, end = ROWS[number]
    label = AVE.classes.index(category)
    events = (Event(label, start, end),) if start < end else ()
    return VideoRecord(name or youtube, youtube, split, (label,), {"event": events})


def test_records_follow_the_order_files_with_the_background_videos_last_in_train(annotated):
    background = [VideoRecord(f"background_000{n}", f"background_000{n}", "train", (), {"event": ()}) for n in range(2)]
    assert read_annotations(annotated).records == (
        video(1, "train", "BBBBBBBBBBB_1"),
        video(0, "train"),
        video(2, "train"),
        video(3, "train"),
        video(5, "train"),
        *background,
        video(4, "val", "BBBBBBBBBBB_4"),
        video(6, "test"),
    )


def test_known_flaws_are_reported(annotated):
    found = read_annotations(annotated)
    assert [(flaw.file, flaw.row, flaw.kind) for flaw in found.flaws] == [
        ("Annotations.txt", 3, "zero-length"),
        ("Annotations.txt", 5, "repeated-id"),
        ("train_order.h5", None, "class-sorted"),
        ("val_order.h5", 0, "shared-id"),
    ]
    assert {flaw.kind for flaw in found.flaws} <= set(found.meanings)
    assert found.flaws[1].detail == "BBBBBBBBBBB: also in line 2"
    assert found.flaws[3].detail == "BBBBBBBBBBB (line 5): also in train"


def test_labels_are_compared_with_the_annotations(annotated):
    labels = ave_files.segment_labels()
    labels[3, 7] = labels[3, 8]
    write_h5(annotated / "labels.h5", labels)
    write_h5(annotated / "right_labels.h5", ave_files.segment_labels())
    weak = np.eye(29)[[BELL, BELL, BELL, BARK, BELL, MANDOLIN, MANDOLIN]]
    write_h5(annotated / "mil_labels.h5", weak)
    found = read_annotations(annotated)
    differing = [(flaw.file, flaw.row, flaw.detail) for flaw in found.flaws if flaw.kind == "other-label"]
    assert differing == [("labels.h5", 3, "DDDDDDDDDDD (line 4)"), ("mil_labels.h5", 4, "BBBBBBBBBBB (line 5)")]
    assert video(3, "train") in found.records


def test_labels_of_another_data_set_are_refused(annotated):
    write_h5(annotated / "mil_labels.h5", np.roll(np.eye(29)[[BELL, BELL, BELL, BARK, BELL, MANDOLIN, MANDOLIN]], 1, axis=1))
    with pytest.raises(DataError, match=r"mil_labels.h5: 7 of 7 rows differ from Annotations.txt"):
        read_annotations(annotated)


def test_optional_files_can_be_missing(annotated):
    for name in ("labels.h5", "mil_labels.h5", "labels_noisy.h5"):
        (annotated / name).unlink()
    write_h5(annotated / "train_order.h5", np.array([1, 3, 0]), "order")
    (annotated / "Annotations.txt").write_text(
        "Category&YouTubeID&Quality&StartTime&EndTime\n" + (annotated / "Annotations.txt").read_text()
    )
    found = read_annotations(annotated)
    assert [(flaw.file, flaw.kind) for flaw in found.flaws if flaw.kind.startswith(("no-", "un", "cl"))] == [
        ("Annotations.txt", "unused"),
        ("Annotations.txt", "unused"),
        ("labels.h5", "no-labels"),
        ("labels_noisy.h5", "no-background"),
        ("mil_labels.h5", "no-labels"),
    ]
    assert [record.split for record in found.records] == ["train"] * 3 + ["val", "test"]
    assert [flaw.row for flaw in found.flaws if flaw.kind == "unused"] == [4, 7]  # lines, after the header


def test_all_problems_are_reported_together(annotated):
    text = (annotated / "Annotations.txt").read_text().splitlines()
    text[0] = "Church bells&AAAAAAAAAAA&good&0&11"
    text[1] = "Church bell&../BBB&good&5&2"
    text[2] = "Church bell&CCCCCCCCCCC&good"
    (annotated / "Annotations.txt").write_text("\n".join(text))
    write_h5(annotated / "train_order.h5", np.array([0, 0, 3, 7, -1, 2]), "order")
    write_h5(annotated / "val_order.h5", np.array([3, 2]), "order")
    write_h5(annotated / "test_order.h5", np.zeros((2, 2)), "order")
    write_h5(annotated / "labels_noisy.h5", np.eye(29)[[28, 3]])
    with pytest.raises(DataError) as error:
        read_annotations(annotated)
    assert error.value.problems == [
        "Annotations.txt:1: unknown category 'Church bells'; did you mean 'Church bell'?",
        "Annotations.txt:1: EndTime '11' is not a number of seconds within 0..10",
        "Annotations.txt:2: YouTube id '../BBB' is not 11 letters, digits, '-' or '_'",
        "Annotations.txt:2: StartTime 5 is after EndTime 2",
        "Annotations.txt:3: 3 values separated by '&', expected Category&YouTubeID&Quality&StartTime&EndTime: "
        "'Church bell&CCCCCCCCCCC&good'",
        "train_order.h5: 2 of 6 row numbers are outside the 7 rows of Annotations.txt (0..6): 7, -1",
        "train_order.h5: 1 row is listed more than once: 0",
        "test_order.h5: shape [2, 2], expected [any]",
        "train_order.h5 and val_order.h5: 2 rows are in both: 2, 3",
        "labels_noisy.h5: 1 of 2 videos has another label than background: 1",
    ]


def test_an_order_of_floats_is_refused(annotated):
    write_h5(annotated / "train_order.h5", np.array([1.0, 3.0, 0.0]), "order")
    with pytest.raises(DataError, match=r"train_order.h5: has dtype float64, expected integers"):
        read_annotations(annotated)


def test_a_folder_without_files_and_a_remote_one(tmp_path):
    with pytest.raises(DataError) as error:
        read_annotations(tmp_path)
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "Annotations.txt",
        "train_order.h5",
        "val_order.h5",
        "test_order.h5",
    ]
    with pytest.raises(DataError, match="no such folder"):
        read_annotations(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="copy them to a local or shared folder"):
        read_annotations("s3://bucket/ave")


def test_real_annotations(ave_annotations):
    found = read_annotations(ave_annotations)
    counts = Counter(flaw.kind for flaw in found.flaws)
    expected = {"repeated-id": 46, "shared-id": 18, "zero-length": 1, "class-sorted": 1}
    assert {kind: counts[kind] for kind in expected} == expected
    assert counts["other-label"] == counts["unused"] == 0
    splits = Counter(record.split for record in found.records)
    assert splits == {"train": 3339 + 178, "val": 402, "test": 402}
    assert len({record.id for record in found.records}) == 4321
    train = [record for record in found.records if record.split == "train"]
    assert all(record.weak for record in train[:3339])
    assert not any(record.weak for record in train[3339:])
    for split, share in (("train", 0.831), ("val", 0.818), ("test", 0.8221)):
        of_split = [record for record in found.records if record.split == split and record.weak]
        seconds = sum(event.offset - event.onset for record in of_split for event in record.events["event"])
        assert seconds / len(of_split) / 10 == pytest.approx(share, abs=0.0006)
    with h5py.File(ave_annotations / "train_order.h5") as file:
        order = file["order"][:]
    assert [found.rows[record.id] for record in train] == [*order.tolist(), *range(4143, 4321)]
