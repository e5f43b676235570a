"""Targets are probed before the work: all that cannot be written are reported together, and nothing is left behind."""

import os
import stat
import subprocess
import sys

import pytest
from devices import FULL, NULL, device

from avvp_dist import storage
from avvp_dist.errors import ConfigError
from avvp_dist.storage.probe import refuse_unwritable


def refused(**targets):
    with pytest.raises(ConfigError) as error:
        refuse_unwritable(**targets)
    return error.value.problems


def test_writable_targets_are_left_unchanged(tmp_path):
    (tmp_path / "there.json").write_text("x")
    refuse_unwritable(
        folders={"a": tmp_path, "b": tmp_path / "new" / "deep", "c": None, "d": f"file://{tmp_path}/e"},
        files={"e": str(tmp_path / "there.json"), "f": str(tmp_path / "new" / "f.json"), "g": None, "h": "/dev/stdout"},
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["there.json"]
    assert (tmp_path / "there.json").read_text() == "x"


def test_all_unwritable_targets_are_reported_together(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    problems = refused(
        folders={"output": tmp_path / "file" / "run", "store": "/proc/store", "data": "s3://"},
        files={"--json": str(tmp_path / "folder"), "--csv": str(tmp_path / ("n" * 256)), "--latex": ""},
    )
    assert [problem.split(":")[0] for problem in problems] == ["output", "store", "data", "--json", "--csv", "--latex"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_pipe_without_a_reader_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    [problem] = refused(files={"--json": str(tmp_path / "pipe")})
    assert "no process reads from it" in problem
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_bucket_is_probed_and_left_empty(s3):
    refuse_unwritable(folders={"output": f"{s3}/runs/a"}, files={"--json": f"{s3}/x.json"})
    assert storage.names(s3) == []
    [problem] = refused(folders={"output": f"{s3}-nowhere/runs/a"})
    assert problem.startswith(f"output: {s3}-nowhere/")
    assert "there is no bucket" in problem


def test_devices_are_written_to_and_not_replaced(tmp_path):
    null, full = device(tmp_path / "null", NULL), device(tmp_path / "full", FULL)
    storage.write_text(null, "x")
    with pytest.raises(OSError, match="No space left") as error:
        storage.write_text(full, "x")
    assert error.value.filename == str(full)
    assert all(stat.S_ISCHR(path.stat().st_mode) for path in (null, full))


def test_standard_output_can_be_given_as_a_file():
    code = "from avvp_dist import storage; storage.write_text('/dev/stdout', 'x' * 100_000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "x" * 100_000


def test_a_failed_write_names_its_target_and_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder") as error:
        storage.write_text(tmp_path / "folder", "x")
    assert error.value.filename == str(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
