"""A named pipe or folder in place of a file is one error message; opening a pipe never blocks."""

import os

import pytest
from llp_files import write_annotations

from avvp_dist import storage
from avvp_dist.cli import main as cli
from avvp_dist.shards.index import Index


@pytest.fixture(params=["named pipe", "folder"])
def special(request, tmp_path):
    """Creates a named pipe or a folder in place of a file."""

    def make(path):
        if path.exists():
            path.unlink()
        os.mkfifo(path) if request.param == "named pipe" else path.mkdir()
        return path

    make.kind = f"a {request.param}"
    return make


def failed(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.fixture
def copied(packed, tmp_path):
    """A packed data set to be damaged."""
    out = tmp_path / "packed"
    out.mkdir()
    for name in storage.names(packed):
        (out / name).write_bytes(storage.read_bytes(storage.join(packed, name)))
    return out


@pytest.mark.parametrize("name", ["index.json", "labels.parquet"])
def test_in_place_of_an_index_or_labels(special, copied, capsys, name):
    path = special(copied / name)
    assert f"{path}: {special.kind}, not a file" in failed(capsys, "data", "inspect", copied)


def test_in_place_of_a_shard(special, copied, tmp_path, capsys):
    path = special(copied / Index.load(str(copied)).shards[0].name)
    message = failed(
        capsys, "train", "han", f"data={copied}", f"output={tmp_path / 'run'}", "tracking=none", "train.device=cpu"
    )
    assert f"{path}: {special.kind}, not a file" in message


def test_in_place_of_a_recipe_and_of_labels(special, packed, tmp_path, capsys):
    path = special(tmp_path / "mine.yaml")
    assert f"{path}: {special.kind}, not a file" in failed(capsys, "config", path)
    path = special(tmp_path / "refined.npz")
    settings = [f"data={packed}", f"output={tmp_path / 'run'}", f"data.refined={path}", "tracking=none", "train.device=cpu"]
    assert f"{path}: {special.kind}, not a file" in failed(capsys, "train", "han", *settings)


def test_in_place_of_annotations(special, tmp_path, capsys):
    write_annotations(tmp_path)
    path = special(tmp_path / "AVVP_train.csv")
    assert f"{path}: {special.kind}, not a file" in failed(capsys, "data", "check", "llp", "--annotations", tmp_path)
