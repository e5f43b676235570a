"""Annotation files rewritten by other tools, and LLP's older edition: the same records as the clean, corrected files."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from llp_files import video_id, write_annotations, write_features

from avvp_dist.cli.main import main
from avvp_dist.datasets.catalog import LLP
from avvp_dist.datasets.llp import EVENT_FILES, SPLIT_FILES, read_annotations
from avvp_dist.errors import DataError

FILES = [*SPLIT_FILES.values(), *EVENT_FILES.values()]


def avvp(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def rewritten(source: Path, target: Path, change) -> Path:
    """The annotation files of ``source`` with ``change`` applied to the bytes of each."""
    target.mkdir()
    for name in FILES:
        (target / name).write_bytes(change((source / name).read_bytes()))
    return target


def quoted(content: bytes) -> bytes:
    lines = content.decode().rstrip("\n").split("\n")
    return "".join("\t".join(f'"{value}"' for value in line.split("\t")) + "\n" for line in lines).encode()


def floats(content: bytes) -> bytes:
    return re.sub(rb"\t([0-9]+)\t([0-9]+)\t", rb"\t\1.0\t\2.0\t", content)


VARIANTS = {
    "crlf": lambda content: content.replace(b"\n", b"\r\n"),
    "cr": lambda content: content.replace(b"\n", b"\r"),
    "bom": lambda content: b"\xef\xbb\xbf" + content,
    "quoted": quoted,
    "quoted with a BOM and CRLF": lambda content: b"\xef\xbb\xbf" + quoted(content).replace(b"\n", b"\r\n"),
    "floats": floats,
    "no newline at the end": lambda content: content.rstrip(b"\n"),
    "blank lines": lambda content: b"\n" + content.replace(b"\n", b"\n\n") + b"\n \t \n\n",
    "blanks and tabs at the ends": lambda content: content.replace(b"\n", b" \t\t\n"),
    "blanks around values": lambda content: content.replace(b"\t", b" \t  "),
    "one CR among LF": lambda content: content.replace(b"\n", b"\r", 1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_rewritten_files_yield_the_same_records(tmp_path, name):
    write_annotations(tmp_path / "clean")
    folder = rewritten(tmp_path / "clean", tmp_path / "other", VARIANTS[name])
    assert contents(folder) != contents(tmp_path / "clean")
    assert (
        read_annotations(folder) == read_annotations(tmp_path / "clean") or "lines" in name
    )  # these change the row numbers
    assert read_annotations(folder).records == read_annotations(tmp_path / "clean").records


@pytest.mark.parametrize("name", ["cr", "quoted with a BOM and CRLF", "floats"])
def test_the_official_files_rewritten(llp_annotations, tmp_path, name):
    clean = read_annotations(llp_annotations)
    found = read_annotations(rewritten(llp_annotations, tmp_path / "other", VARIANTS[name]))
    assert found.records == clean.records
    assert found.count() == clean.count()


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_unreadable_rows_are_reported_by_file_and_row(tmp_path):
    write_annotations(tmp_path)
    name = f"{video_id(7)}_10_20"
    rows = [
        f"{name}\t0.5\t3\tSpeech",
        f"{name}\t0\t10.01\tSpeech",
        f"{name}\t0\t11.0\tSpeech",
        f"{name}\t1e1\tinf\tSpeech",
        f'{name}\t0\t3\t"Speech',
        f'{name}\t"0"1\t3\tSpeech',
        f"{name}\t0\t3\tSpeech\tDog",
        "x" * 500,
    ]
    (tmp_path / "AVVP_eval_audio.csv").write_bytes("\r".join(["filename\tonset\toffset\tevent_labels", *rows, ""]).encode())
    (tmp_path / "AVVP_eval_visual.csv").write_bytes(b"\xef\xbb\xbf\r\n\r\n")
    (tmp_path / "AVVP_train.csv").write_text("filename," + "event" * 1000 + "\n")
    with pytest.raises(DataError) as caught:
        read_annotations(tmp_path)
    problems = caught.value.problems
    assert problems[0].startswith("AVVP_train.csv:1: no column filename, event_labels in the header 'filename,event")
    assert problems[0].endswith("...'; it seems to be separated by commas instead of tabs")
    assert max(map(len, problems)) < 250
    expected = [
        "AVVP_eval_audio.csv:6: quotes that do not enclose a whole value",
        "AVVP_eval_audio.csv:7: quotes that do not enclose a whole value",
        "AVVP_eval_audio.csv:8: 5 tab-separated values, but the header has 4",
        "AVVP_eval_audio.csv:9: 1 tab-separated values, but the header has 4",
        "AVVP_eval_audio.csv:2: onset '0.5' is not a whole number of seconds",
        "AVVP_eval_audio.csv:3: offset '10.01' is not a whole number of seconds",
        "AVVP_eval_audio.csv:4: offset 11.0 is outside 0..10",
        "AVVP_eval_audio.csv:5: onset '1e1' is not a whole number of seconds",
        "AVVP_eval_audio.csv:5: offset 'inf' is not a whole number of seconds",
        "AVVP_eval_visual.csv: empty, expected a header with filename, onset, offset, event_labels",
    ]
    assert [problem[: len(start)] for problem, start in zip(problems[1:], expected, strict=True)] == expected


OLDER = {
    b"JfZEqeLZqWk_30_40\t0\t4\tSpeech": b"Baby_cry_infant_cry\t0\t4\tSpeech",
    b"JfZEqeLZqWk_30_40\t7\t10\tSpeech": b"Baby_cry_infant_cry\t7\t10\tSpeech",
    b"KvIjsmANkxI_10_20\t0\t1\tCat": b"KvIjsmANkxI_10_20`\t0\t1\tCat",
}


def older(content: bytes) -> bytes:
    for current, before in OLDER.items():
        content = content.replace(current, before)
    return content


@pytest.fixture
def editions(tmp_path):
    """Annotations with the rows that LLP's authors corrected, after and before the correction."""
    write_annotations(tmp_path / "mended", (2, 1, 0))
    with (tmp_path / "mended" / "AVVP_test_pd.csv").open("a") as file:
        file.write("JfZEqeLZqWk_30_40\tSpeech,Baby_cry_infant_cry\nKvIjsmANkxI_10_20\tCat,Speech\n")
    with (tmp_path / "mended" / "AVVP_eval_audio.csv").open("ab") as file:
        file.write(b"JfZEqeLZqWk_30_40\t0\t10\tBaby_cry_infant_cry\n" + b"\n".join(OLDER) + b"\n")
    return tmp_path / "mended", rewritten(tmp_path / "mended", tmp_path / "older", older)


def test_correcting_the_older_edition_yields_the_records_of_the_corrected_one(editions):
    current, before = map(read_annotations, editions)
    assert current == read_annotations(editions[0], mend=True)
    assert before.records != current.records
    assert Counter(flaw.kind for flaw in before.flaws)["older-edition"] == 3
    corrected = read_annotations(editions[1], mend=True)
    assert corrected.records == current.records
    assert [(flaw.row, flaw.kind, flaw.detail) for flaw in corrected.flaws if flaw.kind == "mended"] == [
        (5, "mended", "Baby_cry_infant_cry: Speech 0-4, should be JfZEqeLZqWk_30_40"),
        (6, "mended", "Baby_cry_infant_cry: Speech 7-10, should be JfZEqeLZqWk_30_40"),
        (7, "mended", "KvIjsmANkxI_10_20`: Cat 0-1, should be KvIjsmANkxI_10_20"),
    ]
    rewritten_too = rewritten(editions[1], editions[1].parent / "both", lambda content: floats(quoted(content)))
    assert read_annotations(rewritten_too, mend=True).records == current.records


def test_correcting_the_official_files(llp_annotations, tmp_path):
    before = rewritten(llp_annotations, tmp_path / "older", older)
    clean, corrected = read_annotations(llp_annotations), read_annotations(before, mend=True)
    assert corrected.records == clean.records
    assert tuple(flaw for flaw in corrected.flaws if flaw.kind != "mended") == clean.flaws
    counts = Counter(flaw.kind for flaw in read_annotations(before).flaws)
    assert counts["older-edition"] == 3


def test_check_and_pack_report_and_correct_the_edition(editions, tmp_path, capsys):
    current, before = editions
    ids = [record.id for record in read_annotations(current).records]
    write_features(tmp_path, ids, LLP)
    check = ["data", "check", "llp", "--json", tmp_path / "report.json", "--annotations"]
    assert avvp(*check, current) == 0
    assert "edition" not in capsys.readouterr().out
    assert avvp(*check, before) == 0
    output = capsys.readouterr().out
    assert "AVVP_eval_audio.csv is the older edition: LLP's authors corrected 3 of its rows on 2024-04-16" in output
    assert "AVVP_eval_audio.csv:7: KvIjsmANkxI_10_20`: Cat 0-1, should be KvIjsmANkxI_10_20" in output
    assert "--mend" in output
    assert json.loads((tmp_path / "report.json").read_text())["counts"]["older-edition"] == {"AVVP_eval_audio.csv": 3}
    assert avvp(*check, before, "--mend") == 0
    told = capsys.readouterr().out
    assert "3 rows of AVVP_eval_audio.csv corrected as in the edition of 2024-04-16:" in told
    assert "older edition" not in told
    fingerprints = []
    for name, annotations, options in (("one", current, []), ("two", before, ["--mend"]), ("three", before, [])):
        pack = ["data", "pack", "llp", "--annotations", annotations, "--features", tmp_path, "--out", tmp_path / name]
        assert avvp(*pack, "--workers", 1, *options) == 0
        assert ("is the older edition" in capsys.readouterr().out) is (name == "three")
        index = json.loads((tmp_path / name / "index.json").read_text())
        fingerprints.append(index["source"])
        labels = (tmp_path / name / "labels.parquet").read_bytes()
        assert name != "two" or labels == (tmp_path / "one" / "labels.parquet").read_bytes()
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert index["provenance"]["flaws"]["older-edition"] == {"AVVP_eval_audio.csv": 3}
    shutil.rmtree(tmp_path / "three")
