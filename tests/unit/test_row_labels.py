"""Labels indexed by the row of AVVP_train.csv: MA's need_to_change.pkl and arrays, imported by ``avvp data labels``."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from llp_files import TINY, video_id, write_annotations, write_features

from avvp_dist.cli.main import main
from avvp_dist.datasets import safe_pickle
from avvp_dist.datasets.catalog import LLP
from avvp_dist.datasets.llp import OfficialFeatures, read_annotations
from avvp_dist.errors import DataError
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards import pack as packing
from avvp_dist.shards.index import Index, read_labels

TRAIN = 7
SPEECH = 0


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Annotations of seven training videos; video n has Speech and class 1 + n."""
    folder = tmp_path_factory.mktemp("llp")
    write_annotations(folder, (TRAIN, 1, 1))
    write_features(folder, [video_id(number) for number in range(TRAIN + 2)])
    return folder


@pytest.fixture(scope="module")
def packed(official, tmp_path_factory):
    """The data set without training video 2."""
    records = [record for record in read_annotations(official).records if record.id != video_id(2)]
    out = tmp_path_factory.mktemp("packed")
    packing.pack(TINY, records, OfficialFeatures(official, TINY), str(out), provenance={}, workers=1)
    return out


def avvp(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def need_to_change(changes, kind=int):
    """MA's two lists; ``changes`` are (modality, class, row)."""
    lists = [[[] for _ in range(25)] for _ in range(2)]
    for modality, label, row in changes:
        lists[("visual", "audio").index(modality)][label].append(kind(row))
    return lists


def in_a_batch(row):
    """A row number as MA's code stores it: an element of the batch of indices from its data loader."""
    return torch.arange(16)[row]


CHANGES = [
    ("visual", SPEECH, 0),
    ("visual", SPEECH, 3),
    ("visual", 2, 1),
    ("audio", 5, 4),
    ("visual", 5, 4),
    ("audio", 3, 2),
]
KINDS = [int, in_a_batch, np.int64, lambda row: np.array([row]), lambda row: torch.tensor([row])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_need_to_change_clears_what_ma_clears(official, packed, tmp_path, kind, protocol, capsys):
    file, out = tmp_path / "need_to_change.pkl", tmp_path / "refined.npz"
    file.write_bytes(pickle.dumps(need_to_change(CHANGES, kind), protocol=protocol))
    command = ["data", "labels", "--data", packed, "--annotations", official, "--format", "need-to-change", "--file", file]
    assert avvp(*command, "--out", out) == 0
    assert "cleared 1 audio and 4 visual labels" in capsys.readouterr().out
    found = RefinedLabels.load(str(out))
    train = read_labels(str(packed), Index.load(str(packed)))["train"]
    assert found.ids == train.ids == tuple(video_id(number) for number in (0, 1, 3, 4, 5, 6))
    audio, visual, video = train.weak.copy(), train.weak.copy(), train.weak.copy()
    visual[0, SPEECH] = visual[2, SPEECH] = visual[1, 2] = visual[3, 5] = (
        False  # row 3 is the third packed video, row 4 the fourth
    )
    audio[3, 5] = video[3, 5] = False  # clearing an audio label also clears the video-level label, a visual one does not
    np.testing.assert_array_equal(found.audio, audio)
    np.testing.assert_array_equal(found.visual, visual)
    np.testing.assert_array_equal(found.video, video)
    assert found.audio.dtype == np.float32
    assert avvp(*command, "--out", out, "--aliasing", "fixed") == 0
    np.testing.assert_array_equal(RefinedLabels.load(str(out)).video, train.weak)


def test_arrays_instead_of_lists(official, packed, tmp_path):
    lists = need_to_change(CHANGES)
    plain, file = tmp_path / "plain.pkl", tmp_path / "arrays.pkl"
    plain.write_bytes(pickle.dumps(lists))
    command = ["data", "labels", "--data", packed, "--annotations", official, "--format", "need-to-change"]
    assert avvp(*command, "--file", plain, "--out", tmp_path / "plain.npz") == 0
    for convert in (lambda rows: np.array(rows, np.int64), lambda rows: torch.tensor(rows, dtype=torch.int64), tuple):
        file.write_bytes(pickle.dumps([[convert(rows) for rows in of_classes] for of_classes in lists]))
        assert avvp(*command, "--file", file, "--out", tmp_path / "arrays.npz") == 0
        first, second = (RefinedLabels.load(str(tmp_path / name)) for name in ("plain.npz", "arrays.npz"))
        assert first.fingerprint == second.fingerprint


def test_need_to_change_of_other_annotations_is_refused_with_all_reasons(official, packed, tmp_path, capsys):
    file, out = tmp_path / "need_to_change.pkl", tmp_path / "refined.npz"
    wrong = [("visual", SPEECH, 7), ("visual", SPEECH, -1), ("visual", SPEECH, 2), ("audio", 1, 0), ("audio", 1, 3)]
    lists = need_to_change(wrong)
    lists[1][2] = [0.5]
    lists[1][3] = "many"
    file.write_bytes(pickle.dumps(lists))
    command = ["data", "labels", "--data", packed, "--annotations", official, "--format", "need-to-change", "--out", out]
    assert avvp(*command, "--file", file) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {file}: these labels do not match the data; nothing was written",
        "  - visual[0] (Speech): 2 of 3 row numbers outside the 7 rows of AVVP_train.csv (0..6): 7, -1",
        f"  - audio[1] (Car): in 1 of 2 rows, the weak label does not contain this class: row 3 ({video_id(3)}_10_20)",
        "  - audio[2] (Cheering): contains 0.5, expected row numbers",
        "  - audio[3] (Dog): 'many', expected row numbers",
    ]
    for content, message in (
        ([[], []], "visual: a list of 0, expected 25 lists, one per class"),
        ([lists[0]], "contains a list of 1, expected two lists: visual and audio"),
        ({"visual": 1, "audio": 2}, "contains a dict of 2, expected two lists"),
        ([np.zeros((25, 3)), np.zeros((24, 3), int)], "visual[0] (Speech): contains 0.0, expected row numbers"),
    ):
        file.write_bytes(pickle.dumps(content))
        assert avvp(*command, "--file", file) == 2
        assert message in capsys.readouterr().err
    assert avvp(*command, "--file", tmp_path / "nowhere.pkl") == 2
    assert "nowhere.pkl: no such file" in capsys.readouterr().err
    assert not out.exists()


class Bomb:
    """Creates a folder when unpickled."""

    def __init__(self, path: Path, through=None) -> None:
        self.path = path
        self.through = through

    def __reduce__(self):
        return (os.mkdir, (str(self.path),)) if self.through is None else (torch.storage._load_from_bytes, (self.through,))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_is_refused_by_name(official, packed, tmp_path, protocol, capsys):
    mark, file = tmp_path / "exploded", tmp_path / "need_to_change.pkl"
    torch.save([Bomb(mark)], tmp_path / "bomb.pt", _use_new_zipfile_serialization=False)
    inner = (tmp_path / "bomb.pt").read_bytes()
    command = ["data", "labels", "--data", packed, "--annotations", official, "--format", "need-to-change", "--file", file]
    for bomb, name in (
        ([need_to_change([]), Bomb(mark)], "posix.mkdir"),
        (Bomb(mark, inner), "a torch storage that is damaged or contains something else"),
        (np.array([Bomb(mark)], object), "a numpy array of object"),
        ([replace(LLP, name="x")], "avvp_dist.shards.spec.Dataset" if protocol > 0 else "copy_reg._reconstructor"),
    ):
        file.write_bytes(pickle.dumps(bomb, protocol=protocol))
        assert avvp(*command, "--out", tmp_path / "out.npz") == 2
        assert (
            f"{file}: refused, because it contains {name}, which is neither a list nor an array" in capsys.readouterr().err
        )
    assert not mark.exists()


def test_damaged_pickles_are_one_message(tmp_path):
    content = pickle.dumps(need_to_change(CHANGES))
    for damaged in (b"", b"no pickle", content[:50], b"(" * 100, b"cos\n", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f."):
        with pytest.raises(DataError, match=r"x\.pkl: (not a readable pickle|refused)"):
            safe_pickle.load(damaged, "x.pkl")
    with pytest.raises(DataError, match="_codecs.encode with 'rot13'"):
        safe_pickle.load(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.", "x.pkl")


def arrays(official, segments=None):
    """Weak labels of all rows with some halves and zeros, per video or per segment."""
    weak = np.zeros((TRAIN, 25))
    for row, record in enumerate(record for record in read_annotations(official).records if record.split == "train"):
        weak[row, list(record.weak)] = 1
    rng = np.random.default_rng(0)
    shape = weak.shape if segments is None else (TRAIN, segments, 25)
    return (weak if segments is None else weak[:, None]) * rng.integers(0, 3, shape) / 2


@pytest.mark.parametrize(("audio_rows", "visual_rows"), [(None, None), (10, 10), (None, 10)])
def test_arrays_in_the_order_of_the_rows(official, packed, tmp_path, audio_rows, visual_rows):
    audio, visual = arrays(official, audio_rows), arrays(official, visual_rows)
    np.save(tmp_path / "a.npy", audio.astype(">f8"))
    np.save(tmp_path / "v.npy", np.asfortranarray(visual))
    np.savez(tmp_path / "both.npz", audio=audio, visual=visual)
    command = ["data", "labels", "--data", packed, "--annotations", official, "--format", "arrays"]
    assert avvp(*command, "--audio", tmp_path / "a.npy", "--visual", tmp_path / "v.npy", "--out", tmp_path / "one.npz") == 0
    assert avvp(*command, "--file", tmp_path / "both.npz", "--out", tmp_path / "two.npz") == 0
    one, two = (RefinedLabels.load(str(tmp_path / name)) for name in ("one.npz", "two.npz"))
    assert one.fingerprint == two.fingerprint
    assert one.video is None
    kept = [0, 1, 3, 4, 5, 6]
    np.testing.assert_array_equal(one.audio, audio[kept])
    np.testing.assert_array_equal(one.visual, visual[kept])
    assert one.has_segment_labels is (audio_rows == visual_rows == 10)
    one.aligned(one.ids, LLP.classes, 10, "test")


def test_classes_follow_the_data_set(official, tmp_path):
    turned = replace(TINY, classes=TINY.classes[::-1])
    records = [replace(record, weak=tuple(24 - label for label in record.weak), events=None)
               for record in read_annotations(official).records]  # fmt: skip
    packing.pack(turned, records, OfficialFeatures(official, TINY), str(tmp_path / "packed"), provenance={}, workers=1)
    audio = arrays(official)
    np.savez(tmp_path / "both.npz", audio=audio, visual=audio)
    command = ["data", "labels", "--data", tmp_path / "packed", "--annotations", official, "--format", "arrays"]
    assert avvp(*command, "--file", tmp_path / "both.npz", "--out", tmp_path / "out.npz") == 0
    np.testing.assert_array_equal(RefinedLabels.load(str(tmp_path / "out.npz")).audio, audio[:, ::-1])


def test_arrays_that_do_not_match_are_refused_with_all_reasons(official, packed, tmp_path, capsys):
    out, good = tmp_path / "out.npz", arrays(official)
    command = ["data", "labels", "--data", packed, "--annotations", official, "--format", "arrays", "--out", out]

    def refused(audio, visual):
        np.savez(tmp_path / "both.npz", audio=audio, visual=visual)
        assert avvp(*command, "--file", tmp_path / "both.npz") == 2
        assert not out.exists()
        return capsys.readouterr().err

    message = refused(good[:6], np.full((TRAIN, 10, 25), np.nan))
    assert "audio: shape [6, 25], expected [7, 25] or [7, 10, 25]: the rows of AVVP_train.csv, segments, classes" in message
    assert "visual: 1750 values outside 0..1, the first at [0, 0, 0]" in message
    message = refused(good.astype(complex), good * 2)
    assert "audio: has dtype complex128, expected bool, int or float" in message
    assert "values outside 0..1" in message
    message = refused(np.array([[Path("x")] * 25] * TRAIN, object), good)
    assert "both.npz: not a readable .npy or .npz file (Object arrays cannot be loaded" in message
    message = refused(good, np.roll(np.ceil(good), 1, axis=0))
    assert "visual: labels that are not in their video's weak label, in " in message
    assert f" of 7 rows: row 0 ({video_id(0)}_10_20), row 1 (" in message
    assert "--keep-outside-weak" in message
    assert avvp(*command, "--file", tmp_path / "both.npz", "--keep-outside-weak") == 0
    assert "labels are not in their video's weak label; they were kept" in capsys.readouterr().out
    np.savez(tmp_path / "names.npz", a=good, v=good)
    assert avvp(*command, "--file", tmp_path / "names.npz") == 2
    assert "no array 'audio'; it contains a, v" in capsys.readouterr().err


def test_annotations_of_other_videos_or_labels_are_refused(official, packed, tmp_path, capsys):
    (tmp_path / "both.npz").touch()
    command = [
        "data",
        "labels",
        "--data",
        packed,
        "--format",
        "arrays",
        "--file",
        tmp_path / "both.npz",
        "--out",
        tmp_path / "o",
    ]
    lines = (official / "AVVP_train.csv").read_text().splitlines(keepends=True)
    (tmp_path / "AVVP_train.csv").write_text("".join(lines[:4]))
    assert avvp(*command, "--annotations", tmp_path) == 2
    message = capsys.readouterr().err
    assert f"4 of 6 videos are not in it: {video_id(3)}, {video_id(4)}, {video_id(5)}, ..." in message
    (tmp_path / "AVVP_train.csv").write_text("".join(lines).replace("Car", "Blender"))
    assert avvp(*command, "--annotations", tmp_path) == 2
    assert f"1 of 6 videos has other weak labels in it: {video_id(0)}" in capsys.readouterr().err
    (tmp_path / "AVVP_train.csv").unlink()
    assert avvp(*command, "--annotations", tmp_path) == 2
    assert "AVVP_train.csv: missing" in capsys.readouterr().err


def test_options_of_other_formats_are_refused(packed, capsys):
    command = ["data", "labels", "--data", packed, "--out", "o.npz"]
    for options, expected in (
        ([], ["--audio: missing", "--visual: missing"]),
        (["--format", "need-to-change", "--audio", "a", "--keep-outside-weak"],
         ["--annotations: missing", "--file: missing", "--audio: not used here", "--keep-outside-weak: not used here"]),
        (["--format", "arrays", "--aliasing", "fixed"],
         ["--annotations: missing", "--audio: missing", "--visual: missing", "or --file", "--aliasing: not used here"]),
        (["--format", "arrays", "--file", "f", "--audio", "a", "--annotations", "x"], ["--audio: not used here"]),
    ):  # fmt: skip
        assert avvp(*command, *options) == 2
        message = capsys.readouterr().err
        assert [line.startswith(f"  - {text}") for line, text in zip(message.splitlines()[1:], expected, strict=True)], (
            message
        )
        for text in expected:
            assert text in message
