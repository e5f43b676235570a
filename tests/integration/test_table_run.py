"""`avvp table` from an empty folder to a finished table, on a small synthetic data set."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from avvp_dist.cli.table import table
from avvp_dist.errors import ConfigError

TINY = """
title: Rounding
source: a paper
rows:
  - {label: floor, recipe: jomold, view: modality, published: {segment: {type: 60.8}}}
  - {label: carry, recipe: jomold, overrides: [method.rounding=carry, method.warmup=linear], view: modality}
"""
SMALL = ["--epochs", "1", *(part for setting in ("model.width=32", "tracking=none") for part in ("--set", setting))]


def avvp_table(*arguments):
    app = typer.Typer()
    app.command()(table)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception:
        raise done.exception
    return done.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    (folder / "tiny.yaml").write_text(TINY)
    command = [folder / "tiny.yaml", "--videos", "40,8,8", "--seeds", "1,2", "--output", folder / "out", *SMALL]
    command += ["--markdown", folder / "tiny.md"]
    return folder, command, avvp_table(*command)


def names(folder):
    return sorted(path.name.rsplit("-", 1)[0] for path in folder.iterdir())


def test_rows_run_over_seeds_and_share_stages(finished):
    folder, _, shown = finished
    assert names(folder / "out" / "runs") == ["carry-seed1", "carry-seed2", "floor-seed1", "floor-seed2"]
    assert names(folder / "out" / "stages") == ["denoise"] * 4 + ["estimate"] * 2 + ["ratios"] * 2
    for part in ("SYNTHETIC DATA. Rounding", "60.8", "train.epochs=1, model.width=32", "modality", "tiny.md"):
        assert part in shown
    assert "tracking" not in shown  # how a run is run is no departure from the paper
    assert "| floor | published | modality |" in (folder / "tiny.md").read_text()


def test_table_json_holds_the_scores_of_the_runs(finished):
    folder, _, _ = finished
    content = json.loads((folder / "out" / "table.json").read_text())
    assert content["data"]["synthetic"] is True
    assert content["data"]["videos"] == {"train": 40, "val": 8, "test": 8}
    assert [row["published"] for row in content["rows"]] == [
        {"segment.type": 60.8},
        {},
    ]
    for row in content["rows"]:
        results = [json.loads(Path(run, "result.json").read_text()) for run in row["runs"]]
        scores = [result["scores"]["test"] for result in results]
        assert row["ours"]["seeds"] == [1, 2]
        assert row["view"] == row["ours"]["view"] == "modality"
        assert row["ours"]["task"] == results[0]["task"]
        for view in ("modality", "modality/without_speech"):
            for metric in ("segment.visual", "event.type"):
                values = row["ours"]["scores"][view][metric]["values"]
                assert values == [score[view]["metrics"][metric] for score in scores]


def test_a_second_call_trains_only_missing_runs(finished, caplog):
    folder, command, first = finished
    results = sorted((folder / "out" / "runs").glob("*/result.json"))
    written = [path.stat().st_mtime_ns for path in results]
    with caplog.at_level("INFO", logger="avvp_dist"):
        assert avvp_table(*command) == first
    assert [path.stat().st_mtime_ns for path in results] == written
    assert caplog.text.count("already finished, ") == 4
    assert "row 2 of 2 (carry), seed 2, run 4 of 4: already finished" in caplog.text
    assert "stage " not in caplog.text
    results[0].unlink()
    caplog.clear()
    with caplog.at_level("INFO", logger="avvp_dist"):
        assert avvp_table(*command) == first
    assert caplog.text.count("already finished, ") == 3
    assert caplog.text.count("reused") == 3


def test_other_settings_run_in_other_folders(finished):
    folder, _, _ = finished
    before = json.loads((folder / "out" / "table.json").read_text())
    (folder / "one.yaml").write_text(TINY.rsplit("  - ", 1)[0])
    where = ["--data", before["data"]["url"], "--output", folder / "out", "--seeds", "1"]
    avvp_table(folder / "one.yaml", *where, *SMALL, "--set", "task.segment_threshold=0.4")
    after = json.loads((folder / "out" / "table.json").read_text())
    assert after["changes"] == ["train.epochs=1", "model.width=32", "task.segment_threshold=0.4"]
    assert after["rows"][0]["ours"]["settings"]["segment_threshold"] == 0.4
    assert names(folder / "out" / "runs").count("floor-seed1") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mian"], "unknown table 'mian'.*Valid names: .*main"),
        ([], "missing; valid names: .*main"),
        (["main", "--seeds", "1,x"], "--seeds"),
        (["main", "--videos", "1,2"], "--videos"),
        (["main", "--data", "nowhere", "--videos", "3"], "only with --data synthetic"),
        (["main", "--data", "nowhere"], "nowhere: no such folder"),
        (["main", "--set", "seed=3"], "seed: use --seeds"),
        (["main", "--set", "optim.lrr=3"], "row 'HAN': optim.lrr: unknown key"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=message) as caught:
        avvp_table(*arguments)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_table_under_torchrun_is_refused(finished, monkeypatch):
    _, command, _ = finished
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="launch=ray"):
        avvp_table(*command)


def test_list_names_the_shipped_tables():
    lines = avvp_table("--list").splitlines()
    assert any(line.startswith("han-ablation ") and "10 rows" in line for line in lines)
