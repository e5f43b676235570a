"""Every byte of a packed data set is verified: flipped bits, wrong lengths, missing files, invalid values."""

import io
import json
import random
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from llp_files import TINY, contents, video_id, write_annotations, write_features

from avvp_dist.cli.main import main
from avvp_dist.datasets.llp import OfficialFeatures, read_annotations
from avvp_dist.errors import DataError
from avvp_dist.shards.index import INDEX_FILE, LABELS_FILE, Index, labels_info, read_labels
from avvp_dist.shards.pack import pack

IDS = [video_id(number) for number in range(12)]
SHARD = "train-000001.tar"
FILES = [INDEX_FILE, LABELS_FILE, SHARD]
FLIPS = 100  # of each file


def pack_again(official: Path, out: Path) -> Index:
    records, source = read_annotations(official).records, OfficialFeatures(official, TINY)
    return pack(TINY, records, source, str(out), provenance={"from": "test"}, workers=1, shard_videos=3)


@pytest.fixture
def official(tmp_path) -> Path:
    write_annotations(tmp_path / "llp")
    write_features(tmp_path / "llp", IDS)
    return tmp_path / "llp"


@pytest.fixture
def data(official, tmp_path) -> Path:
    """A packed data set of twelve videos."""
    pack_again(official, tmp_path / "data")
    return tmp_path / "data"


def avvp(capsys, *arguments: object) -> tuple[int, str]:
    """Exit code of a command, and its stderr without progress lines."""
    capsys.readouterr()
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err


def refused(capsys, *arguments: object) -> str:
    """The only message of a command that ends with exit code 2."""
    code, output = avvp(capsys, *arguments)
    assert code == 2, output
    assert output.count("error: ") == 1
    assert "Traceback" not in output
    return output


def flipped(path: Path, count: int) -> Iterator[int]:
    """Flip single random bits of a file, one at a time."""
    rng, whole = random.Random(path.name), path.read_bytes()
    for _ in range(count):
        bit = rng.randrange(8 * len(whole))
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        yield bit
    path.write_bytes(whole)


def as_packed_earlier(data: Path) -> None:
    """Remove the checksums that earlier versions did not record."""
    content = json.loads((data / INDEX_FILE).read_text())
    del content["labels"], content["checksum"]
    (data / INDEX_FILE).write_text(json.dumps(content, indent=1) + "\n")


def rewrite_index(data: Path, change) -> None:
    """Write a sealed index with other content, like a faulty program."""
    content = json.loads((data / INDEX_FILE).read_text())
    del content["checksum"], content["labels"]
    change(content)
    (data / INDEX_FILE).write_text(json.dumps(content))


def rewrite_labels(data: Path, change) -> None:
    """Write other rows and record them in the index."""
    rows = pq.ParquetFile(data / LABELS_FILE).read().to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=Index.load(str(data)).labels_schema), data / LABELS_FILE)
    index = replace(Index.load(str(data)), labels=labels_info((data / LABELS_FILE).read_bytes()))
    (data / INDEX_FILE).write_text(index.to_json())


def rewrite_members(data: Path, change) -> None:
    """Rewrite the members of a shard by ``change``, a map of name and content, and record the shard in the index."""
    sink = io.BytesIO()
    with tarfile.open(data / SHARD) as old, tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for member in old.getmembers():
            member.name, content = change(member.name, old.extractfile(member).read())
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    (data / SHARD).write_bytes(sink.getvalue())
    index, info = Index.load(str(data)), labels_info(sink.getvalue())
    shards = [replace(shard, **vars(info)) if shard.name == SHARD else shard for shard in index.shards]
    (data / INDEX_FILE).write_text(replace(index, shards=tuple(shards)).to_json())


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_verify_detects_every_flipped_bit(data, capsys, name):
    assert avvp(capsys, "data", "verify", data, "--workers", 1)[0] == 0
    for bit in flipped(data / name, FLIPS):
        assert name in refused(capsys, "data", "verify", data, "--workers", 1), bit
    assert avvp(capsys, "data", "verify", data, "--workers", 1)[0] == 0


@pytest.mark.parametrize("name", [INDEX_FILE, LABELS_FILE])
def test_no_command_accepts_a_flipped_bit(data, tmp_path, capsys, name):
    for bit in flipped(data / name, 10):
        assert name in refused(capsys, "data", "inspect", data), bit
        assert name in refused(capsys, "train", "han", f"data={data}", f"output={tmp_path / 'run'}", "tracking=none"), bit
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["shorter", "longer", "empty", "missing"])
def test_verify_detects_wrong_lengths(data, capsys, name, damage):
    path = data / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"shorter": whole[:-1], "longer": whole + b"\n", "empty": b""}[damage])
    assert name in refused(capsys, "data", "verify", data, "--workers", 1)


def test_verify_names_every_bad_file_and_files_of_another_pack(data, capsys):
    for name in (LABELS_FILE, SHARD):
        path = data / name
        path.write_bytes(path.read_bytes()[:-1])
    (data / "val-000000.tar").unlink()
    (data / "train-000007.tar").write_bytes(b"")
    (data / "old.parquet").write_bytes(b"")
    (data / "notes.txt").write_text("foreign")
    output = refused(capsys, "data", "verify", data, "--workers", 1)
    assert "5 problems; 5 of 12 videos are bad" in output
    named = [
        line.removeprefix("  - ").removeprefix(f"{data}/").split(":")[0] for line in output.splitlines() if "  - " in line
    ]
    assert named == ["old.parquet", "train-000007.tar", LABELS_FILE, SHARD, "val-000000.tar"]


def test_the_number_of_shown_problems_is_limited(data, capsys):
    for number in range(3, 40):
        (data / f"train-{number:06d}.tar").write_bytes(b"")
    output = refused(capsys, "data", "verify", data, "--workers", 1)
    assert len(output.splitlines()) <= 25
    assert "… and 34 more like these" in output


def test_labels_are_compared_with_the_shards(data, capsys):
    def change(rows):
        rows[4]["weak"] = [0, 2]
        rows[10]["audio_events"][1]["offset"] = 7
        rows[11]["name"] = "other"

    rewrite_labels(data, change)
    output = refused(capsys, "data", "verify", data, "--workers", 1)
    assert "3 problems\n" in output
    assert (
        f'{SHARD}: {IDS[4]}.json: "weak" is ["Speech", "Frying_(food)"], but {LABELS_FILE} records ["Speech", "Cheering"]'
        in output
    )
    assert f'test-000000.tar: {IDS[10]}.json: "audio_events" is' in output
    assert f'test-000000.tar: {IDS[11]}.json: "name" is "{IDS[11]}_10_20", but {LABELS_FILE} records "other"' in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, content: (name, b"{" if name == f"{IDS[4]}.json" else content), f"{IDS[4]}.json: not valid JSON"),
        (lambda name, content: (name, b"[" * 10**5 if name == f"{IDS[4]}.json" else content), f"{IDS[4]}.json: not valid"),
        (lambda name, content: (name, b"[1]" if name == f"{IDS[4]}.json" else content), f"{IDS[4]}.json: not a JSON object"),
        (
            lambda name, content: (name, content[:-1] + b', "weak": []}' if name == f"{IDS[5]}.json" else content),
            f'{IDS[5]}.json: "weak" is []',
        ),
        (lambda name, content: (name.replace(f"{IDS[5]}.json", "x\x1b[2J.json"), content), r'"x\u001b[2J.json"'),
    ],
)
def test_damaged_members_are_named(data, capsys, change, message):
    rewrite_members(data, change)
    output = refused(capsys, "data", "verify", data, "--workers", 1)
    assert f"{SHARD}: " in output
    assert message in output


def test_the_fingerprint_covers_the_labels(data):
    before = Index.load(str(data)).fingerprint
    rewrite_labels(data, lambda rows: rows[4].update(weak=[0]))
    assert Index.load(str(data)).fingerprint != before


def test_packing_again_repairs_labels_and_keeps_those_of_other_pyarrow_versions(official, data):
    whole, rows = contents(data), pq.ParquetFile(data / LABELS_FILE).read()
    (data / LABELS_FILE).write_bytes(whole[LABELS_FILE][:-1])
    assert contents(data) != whole
    index = pack_again(official, data)
    assert contents(data) == whole
    pq.write_table(rows, data / LABELS_FILE, compression="none")
    other = (data / LABELS_FILE).read_bytes()
    (data / INDEX_FILE).write_text(replace(index, labels=labels_info(other)).to_json())
    assert pack_again(official, data).labels == labels_info(other)
    assert (data / LABELS_FILE).read_bytes() == other


def test_data_sets_packed_earlier_are_read_with_a_warning_and_get_their_checksums(data, official, capsys, caplog):
    recorded = (data / INDEX_FILE).read_bytes()
    index = Index.load(str(data))
    as_packed_earlier(data)
    earlier = Index.load(str(data))
    assert earlier == replace(index, labels=None)
    assert earlier.fingerprint != index.fingerprint
    for _ in range(2):
        assert read_labels(str(data), earlier)["train"].ids == tuple(IDS[:7])
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"avvp data verify {data} --record" in warning
    assert avvp(capsys, "data", "verify", data, "--workers", 1)[0] == 0
    assert Index.load(str(data)) == earlier
    whole = (data / LABELS_FILE).read_bytes()
    rewrite = pq.ParquetFile(data / LABELS_FILE).read().to_pylist()
    rewrite[4]["weak"] = [0]
    pq.write_table(pa.Table.from_pylist(rewrite, schema=earlier.labels_schema), data / LABELS_FILE)
    assert f"{IDS[4]}.json" in refused(capsys, "data", "verify", data, "--workers", 1, "--record")
    assert Index.load(str(data)) == earlier
    (data / LABELS_FILE).write_bytes(whole)
    assert avvp(capsys, "data", "verify", data, "--workers", 1, "--record")[0] == 0
    assert (data / INDEX_FILE).read_bytes() == recorded
    as_packed_earlier(data)
    assert pack_again(official, data) == index
    assert (data / INDEX_FILE).read_bytes() == recorded


@pytest.mark.slow
def flat_labels(labels) -> dict[str, object]:
    return {**vars(labels), "truth": None, **(labels.truth or {})}


def test_without_a_hash_flips_that_change_values_are_detected(data, capsys):
    as_packed_earlier(data)
    before = read_labels(str(data), Index.load(str(data)))
    passed = 0
    for bit in flipped(data / LABELS_FILE, 60):
        code, output = avvp(capsys, "data", "verify", data, "--workers", 1)
        assert "Traceback" not in output
        assert code in (0, 2), bit
        if code == 0:
            passed += 1
            for split, labels in read_labels(str(data), Index.load(str(data))).items():
                for name, values in flat_labels(before[split]).items():
                    np.testing.assert_array_equal(flat_labels(labels)[name], values, err_msg=str(bit))
    assert passed < 60


BIG = 10**30


def put(*path: object, value: object):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("classes", 3, value="Car"), "classes: Car is listed 2 times"),
        (put("classes", 3, value=7), "classes.3: Input should be a valid string"),
        (put("classes", 3, value=""), "classes.3: String should have at least 1 character"),
        (
            put("classes", 3, value="\x1b[2J"),
            r"classes.3: Value error, '\x1b[2J' contains characters that cannot be printed",
        ),
        (put("classes", 3, value="\ud800"), r"classes.3: "),
        (put("classes", value=[]), "classes: Tuple should have at least 1 item"),
        (put("streams", value=[]), "streams: Tuple should have at least 1 item"),
        (put("streams", 1, "offset", value=2), "streams: visual begins at column 2, but the previous one ends at 3"),
        (put("streams", 1, "offset", value=4), "streams: visual begins at column 4, but the previous one ends at 3"),
        (put("streams", 2, "offset", value=100), "streams: motion begins at column 100"),
        (put("streams", 2, "name", value="audio"), "streams: audio is listed 2 times"),
        (put("streams", 2, "dim", value=0), "streams.2.dim: Input should be greater than or equal to 1"),
        (put("streams", 2, "dim", value=-2), "streams.2.dim: Input should be greater than or equal to 1"),
        (put("streams", 2, "dim", value="2"), "streams.2.dim: Input should be a valid integer"),
        (put("streams", 2, "dim", value=2.5), "streams.2.dim: Input should be a valid integer"),
        (put("streams", 2, "dim", value=True), "streams.2.dim: Input should be a valid integer"),
        (put("streams", 2, "dim", value=BIG), "streams.2.dim: "),
        (put("segments", value=0), "segments: Input should be greater than or equal to 1"),
        (put("segments", value=-10), "segments: Input should be greater than or equal to 1"),
        (put("segments", value=BIG), "segments: "),
        (put("shards", 1, "name", value="train-000000.tar"), "shards: train-000000.tar is listed 2 times"),
        (put("shards", 1, "name", value="val-000000.tar"), "shards: val-000000.tar has split train"),
        (put("shards", 1, "split", value="test"), "shards: train-000001.tar has split test"),
        (put("shards", 1, "samples", value=-3), "shards.1.samples: Input should be greater than or equal to 1"),
        (put("shards", 1, "samples", value=0), "shards.1.samples: Input should be greater than or equal to 1"),
        (put("shards", 1, "samples", value=4), "train-000001.tar: 3 videos, but 4 in the index"),
        (put("shards", 1, "bytes", value=0), "shards.1.bytes: Input should be greater than or equal to 1"),
        (put("shards", 1, "bytes", value=BIG), "shards.1.bytes: "),
        (put("shards", 1, "sha256", value="f" * 63), "shards.1.sha256: String should match pattern"),
        (put("shards", 1, "sha256", value="F" * 64), "shards.1.sha256: String should match pattern"),
        (put("shards", 1, "sha256", value="../../up"), "shards.1.sha256: String should match pattern"),
        (put("shards", 1, "color", value="red"), "shards.1.color: Unexpected keyword argument"),
        (put("lables", value={}), "lables: Unexpected keyword argument"),
        (put("labels", value={"bytes": 3, "sha256": "0" * 64}), "its checksum is missing"),
        (put("labels", value={"bytes": 3, "sha256": "0"}), "labels.sha256: String should match pattern"),
        (put("checksum", value="0" * 64), "its checksum does not match"),
        (put("provenance", value=["x"]), "provenance: Input should be a valid dictionary"),
        (put("provenance", value={"x": float("nan")}), "NaN is not a number"),
        (put("schema_version", value=3), "schema version 3, but this avvp_dist reads at most 2"),
        (put("dataset", value="a\nb"), "dataset: Value error, 'a\\nb' contains characters that cannot be printed"),
        (put("left_out", value=[{"id": "x", "split": "val"}]), "left_out.0.reason: Field required"),
    ],
)
def test_invalid_values_in_an_index(data, capsys, change, message):
    rewrite_index(data, change)
    for command in (["inspect"], ["verify", "--workers", 1]):
        output = refused(capsys, "data", *command, data)
        assert INDEX_FILE in output or LABELS_FILE in output
        assert message in output


def test_a_deeply_nested_index_is_one_message(data, capsys):
    (data / INDEX_FILE).write_text("[" * 10**6)
    assert "not valid JSON" in refused(capsys, "data", "verify", data, "--workers", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(4, "weak", value=[3, 3]), "train: weak labels listed twice for a video"),
        (put(4, "weak", value=[25]), "train: weak labels outside 0..24"),
        (put(4, "weak", value=[-1]), "train: weak labels outside 0..24"),
        (put(4, "id", value="../up"), "1 invalid video id, the first '../up'"),
        (put(4, "id", value=""), "1 invalid video id, the first ''"),
        (put(4, "id", value=IDS[5]), f"train: video {IDS[5]} is listed 2 times"),
        (put(4, "split", value="val"), "1 video has another split than their shard"),
        (put(4, "shard", value=9), "1 row refers to shards that are not in the index"),
        (put(4, "shard", value=-1), "1 row refers to shards that are not in the index"),
        (put(4, "position", value=-1), f"{SHARD}: its videos are not in order"),
        (put(4, "offset", value=-1), f"{SHARD}: byte ranges that do not match"),
        (put(4, "nbytes", value=7), f"{SHARD}: byte ranges that do not match"),
        (put(10, "audio_events", 0, "onset", value=2), f"the first in video {IDS[10]}: class 0, seconds 2 to 1"),
        (put(10, "audio_events", 0, "onset", value=1), f"the first in video {IDS[10]}: class 0, seconds 1 to 1"),
        (put(10, "audio_events", 0, "onset", value=-1), "test: audio events: 1 with labels or seconds out of range"),
        (put(10, "visual_events", 0, "offset", value=11), "test: visual events: 1 with labels or seconds out of range"),
        (put(10, "visual_events", 0, "label", value=25), f"the first in video {IDS[10]}: class 25, seconds 0 to 10"),
        (put(10, "visual_events", value=None), "test: visual events: known only for some videos"),
    ],
)
def test_invalid_labels(data, capsys, change, message):
    rewrite_labels(data, change)
    for command in (["inspect"], ["verify", "--workers", 1]):
        output = refused(capsys, "data", *command, data)
        assert LABELS_FILE in output
        assert message in output


def test_inspect_shows_special_characters_literally(official, tmp_path, capsys):
    records = read_annotations(official).records
    named = replace(TINY, name="[red]", classes=("[/x]", *TINY.classes[1:]))
    provenance = {"from": "[/x] \x1b[2J"}
    source = OfficialFeatures(official, named)
    pack(named, records, source, str(tmp_path / "[/y]"), provenance=provenance, workers=1, shard_videos=3)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["data", "inspect", str(tmp_path / "[/y]")])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    for name in ("[/x]", "[red]", r"\x1b[2J", "[/y]"):
        assert name in shown
    with pytest.raises(DataError, match="not valid JSON"):
        Index.from_json("{")
