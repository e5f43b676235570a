"""The subcommands of ``avvp data`` as a user calls them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from llp_files import video_id, write_annotations, write_features
from typer.testing import CliRunner, Result

from avvp_dist.cli.data import data
from avvp_dist.cli.main import main
from avvp_dist.datasets.catalog import LLP
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.shards.index import Index


def avvp_data(*arguments: object) -> Result:
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


@pytest.fixture
def official(tmp_path) -> Path:
    """Two training videos, one validation and one test video; full-size features."""
    write_annotations(tmp_path / "llp", (2, 1, 1))
    write_features(tmp_path / "llp", [video_id(number) for number in range(4)], LLP)
    return tmp_path / "llp"


def pack(official: Path, out: Path, *options: object) -> Result:
    return avvp_data(
        "pack", "llp", "--annotations", official, "--features", official, "--out", out, "--workers", 1, *options
    )


def test_pack_and_inspect(official, tmp_path):
    out = tmp_path / "out"
    packed = pack(official, out, "--shard-videos", 1)
    assert packed.exit_code == 0, packed.output
    index = Index.load(str(out))
    assert f"4 videos in 4 shards, fingerprint {index.fingerprint[:16]}" in packed.output
    assert index.provenance["annotations"] == str(official)
    assert not index.synthetic
    shown = json.loads(avvp_data("inspect", out, "--json").output)
    assert shown["fingerprint"] == index.fingerprint
    assert shown["splits"]["train"] == {
        "videos": 2,
        "shards": 2,
        "bytes": index.shards[0].bytes + index.shards[1].bytes,
        "segments_with_truth": 0,
    }
    assert shown["splits"]["test"]["segments_with_truth"] == 10
    assert shown["streams"][1] == {"name": "visual", "dim": 2048, "offset": 128, "shape": [2048]}
    assert shown["weak_labels"]["Speech"] == {"train": 2, "val": 1, "test": 1}
    assert shown["weak_labels"]["Car"] == {"train": 1, "val": 0, "test": 0}
    table = avvp_data("inspect", out)
    assert table.exit_code == 0
    assert index.fingerprint in table.output
    assert "Acoustic_guitar" in table.output


def test_bad_features_are_reported_or_left_out(official, tmp_path):
    bad = official / "feats" / "res152" / f"{video_id(2)}.npy"
    np.save(bad, np.full((80, 2048), np.inf, np.float32))
    refused = pack(official, tmp_path / "out")
    assert isinstance(refused.exception, DataError)
    assert f"res152/{video_id(2)}.npy: 163840 values are not finite" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    checked = avvp_data("check", "llp", "--annotations", official, "--features", official, "--workers", 1)
    assert checked.exit_code == 2
    assert f"res152/{video_id(2)}.npy: 163840 values are not finite" in checked.output
    skipped = pack(official, tmp_path / "out", "--skip-bad")
    assert skipped.exit_code == 0
    assert video_id(2) in skipped.output
    shown = json.loads(avvp_data("inspect", tmp_path / "out", "--json").output)
    assert [(video["id"], video["split"]) for video in shown["left_out"]] == [(video_id(2), "val")]
    assert "left out: 1 video" in avvp_data("inspect", tmp_path / "out").output


def test_check_of_good_features(official):
    checked = avvp_data("check", "llp", "--annotations", official, "--features", official, "--workers", 1)
    assert checked.exit_code == 0
    assert "features of 4 videos: all good" in checked.output


def test_check_lists_flaws_and_writes_them_to_json(official, tmp_path):
    with (official / "AVVP_eval_visual.csv").open("a") as file:
        file.write("nobody-knows_0_10\t1\t1\tCar\nnobody-knows_0_10\t0\t10\tCar\n")
    report = tmp_path / "report.json"
    checked = avvp_data("check", "llp", "--annotations", official, "--json", report, "--limit", 1)
    assert checked.exit_code == 0
    assert "2 more flaws not shown" in checked.output
    content = json.loads(report.read_text())
    assert content["counts"] == {"empty": {"AVVP_eval_visual.csv": 1}, "orphan": {"AVVP_eval_visual.csv": 2}}
    first = {"file": "AVVP_eval_visual.csv", "row": 4, "kind": "empty", "detail": "nobody-knows_0_10: Car 1-1"}
    assert content["flaws"][0] == first
    assert len(content["flaws"]) == 3
    everything = avvp_data("check", "llp", "--annotations", official).output
    assert everything.count("nobody-knows_0_10: Car") == 3


def test_check_of_the_official_annotations(llp_annotations, tmp_path):
    checked = avvp_data("check", "llp", "--annotations", llp_annotations, "--json", tmp_path / "report.json")
    assert checked.exit_code == 0
    flaws = json.loads((tmp_path / "report.json").read_text())["flaws"]
    kinds = Counter((flaw["kind"], flaw["file"]) for flaw in flaws)
    assert kinds["orphan", "AVVP_eval_visual.csv"] == 11
    assert kinds["duplicate", "AVVP_eval_audio.csv"] == 8
    assert all(flaw["detail"] in checked.output for flaw in flaws)


def test_names_from_files_are_not_interpreted_as_markup(official):
    with (official / "AVVP_eval_visual.csv").open("a") as file:
        file.write("[red]x[/blue]\t1\t2\tCar\n")
    checked = avvp_data("check", "llp", "--annotations", official)
    assert checked.exit_code == 0
    assert "[red]x[/blue]: Car 1-2" in checked.output


def test_unknown_data_set(official, tmp_path):
    refused = avvp_data("check", "lpl", "--annotations", official)
    assert isinstance(refused.exception, ConfigError)
    assert str(refused.exception) == "unknown data set 'lpl'; did you mean 'llp'? Valid names: llp, ave"


@pytest.mark.parametrize(
    ("options", "name", "dims"),
    [([], "llp", [128, 2048, 512]), (["--streams", "clip-clap"], "llp-clip-clap", [768, 768, 512])],
)
def test_synthetic_shards_equal_packed_synthetic_files(tmp_path, options, name, dims):
    common = ["--splits", "4,2,2", "--seed", 3, "--workers", 1, *options]
    created = avvp_data("synth", tmp_path / "shards", "--layout", "shards", "--shard-videos", 3, *common)
    assert created.exit_code == 0, created.output
    direct = Index.load(str(tmp_path / "shards"))
    assert [shard.samples for shard in direct.shards] == [3, 1, 2, 2]
    assert direct.dataset == name
    assert [stream.dim for stream in direct.streams] == dims
    files = tmp_path / "files"
    assert avvp_data("synth", files, *common).exit_code == 0
    arguments = ["--annotations", files, "--features", files / "feats", *options]
    checked = avvp_data("check", "llp", *arguments, "--workers", 1)
    assert "features of 8 videos: all good" in checked.output
    packed = avvp_data("pack", "llp", *arguments, "--out", tmp_path / "packed", "--shard-videos", 3, "--workers", 1)
    assert packed.exit_code == 0, packed.output
    assert "SYNTHETIC" in packed.output
    index = Index.load(str(tmp_path / "packed"))
    assert (index.synthetic, direct.synthetic) == (True, True)
    assert index.fingerprint == direct.fingerprint
    shown = avvp_data("inspect", tmp_path / "packed").output.splitlines()
    assert f"streams of {name}" in [line.strip() for line in shown]


def test_missing_features_are_reported_by_their_folders(official):
    refused = avvp_data("check", "llp", "--annotations", official, "--features", official, "--streams", "clip-clap")
    assert isinstance(refused.exception, DataError)
    assert refused.exception.problems == ["CLAP/features/: no such folder", "CLIP/features/: no such folder"]
    assert "'vggish-resnet', 'clip-clap'" in avvp_data("check", "llp", "--streams", "clip").output


def test_splits_that_are_not_numbers(tmp_path):
    refused = avvp_data("synth", tmp_path / "out", "--splits", "4,2")
    assert isinstance(refused.exception, ConfigError)
    assert "expected three integers" in str(refused.exception)


@pytest.mark.parametrize("command", ["pack", "inspect", "check", "synth"])
def test_every_option_has_help(command):
    import typer

    options = typer.main.get_command(data).commands[command].params
    assert options
    assert all(option.help for option in options)


def test_the_limit_applies_to_bad_features_too(tmp_path, capsys):
    from avvp_dist.datasets import synthetic

    synthetic.write(str(tmp_path), videos=None, seed=0, splits=(8, 2, 2), workers=1)
    for path in (tmp_path / "feats" / "vggish").iterdir():
        path.write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", "llp", "--annotations", str(tmp_path), "--features", str(tmp_path), "--limit", "3"])
    out = capsys.readouterr().out
    assert ended.value.code == 2
    assert "bad features: 12 videos" in out
    assert out.count("vggish/") == 3
    assert "9 more videos not shown" in out
