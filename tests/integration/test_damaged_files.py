"""A run whose files were damaged, copied or moved resumes, names the damaged file, and ends like an undisturbed run."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from commands import history, stage_folder, train_here
from damage import flip
from dying import DyingRuntime, Killed
from forks import ranks
from typer.testing import CliRunner

from avvp_dist.cli import main as cli
from avvp_dist.errors import ConfigError, TrainingError
from avvp_dist.storage import integrity
from avvp_dist.train import checkpoint
from avvp_dist.train.loop import StageResult, StageTrainer

TINY = ["model.width=16", "model.feedforward=16", "tracking=none", "train.device=cpu"]
SMALL = [*TINY, "train.epochs=2", "train.checkpoint_every=2"]


def run(data, output, *overrides, recipe="han", runtime=None):
    return train_here(recipe, data, output, *SMALL, *overrides, runtime=runtime)


def cut(data, output, after):
    """A run that is killed after so many checkpoints, of which it makes two an epoch."""
    with pytest.raises(Killed):
        run(data, output, runtime=DyingRuntime(str(output), after=after))


def checkpoints(output):
    return sorted(path.name for path in Path(output, "checkpoints").iterdir())


def assert_equal_runs(one, other, name="train"):
    assert history(one, name) == history(other, name)
    weights = [(stage_folder(output, name) / "model.safetensors").read_bytes() for output in (one, other)]
    assert weights[0] == weights[1]


@pytest.fixture(scope="module")
def whole(packed, tmp_path_factory):
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run(packed, output)
    return output


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1000])


def absurd(file):
    file.write_bytes(checkpoint.pack({**checkpoint.unpack(file.read_bytes()), "epoch": 10**6}))


def negative(file):
    file.write_bytes(checkpoint.pack({**checkpoint.unpack(file.read_bytes()), "step": -1}))


def other_shapes(file):
    state = checkpoint.unpack(file.read_bytes())
    state["model"] = {name: value.new_zeros(3) for name, value in state["model"].items()}
    file.write_bytes(checkpoint.pack(state))


def not_finite(file):
    state = checkpoint.unpack(file.read_bytes())
    state["model"] = {name: value * float("nan") for name, value in state["model"].items()}
    file.write_bytes(checkpoint.pack(state))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flip, "its content differs from its checksum"),
        (truncate, "bytes of content, but"),
        (absurd, "epoch 1000000 of a stage of 2 epochs"),
        (negative, "step -1"),
        (other_shapes, "weights do not fit the network"),
        (not_finite, "weights are not finite"),
    ],
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(packed, whole, tmp_path, caplog, damage, why):
    output = tmp_path / "run"
    cut(packed, output, after=3)
    assert checkpoints(output) == ["00000002.pt", "00000003.pt"]
    damage(output / "checkpoints" / "00000003.pt")
    with caplog.at_level("INFO"):
        run(packed, output)
    assert f"{output}/checkpoints/00000003.pt: " in caplog.text
    assert why in caplog.text
    assert_equal_runs(whole, output)


def test_without_a_valid_checkpoint_the_stage_starts_from_scratch(packed, whole, tmp_path, caplog):
    output = tmp_path / "run"
    cut(packed, output, after=3)
    for name in checkpoints(output):
        flip(output / "checkpoints" / name)
    run(packed, output)
    assert caplog.text.count("its content differs from its checksum") == 2
    assert_equal_runs(whole, output)


def test_foreign_files_among_the_checkpoints_are_neither_used_nor_deleted(packed, whole, tmp_path, caplog):
    output = tmp_path / "run"
    cut(packed, output, after=3)
    foreign = ["best.pt", "00000001-copy.pt", "last.ckpt", "9.pt"]
    for name in foreign:
        (output / "checkpoints" / name).write_bytes(b"foreign")
    run(packed, output)
    assert checkpoints(output) == sorted(foreign)
    assert "checkpoints" not in caplog.text
    assert_equal_runs(whole, output)


def nan_weights(folder):
    """As an earlier version would have left them, without checksums."""
    file, done = folder / "model.safetensors", folder / "stage.json"
    weights = safetensors.torch.load(file.read_bytes())
    file.write_bytes(safetensors.torch.save({name: value * float("nan") for name, value in weights.items()}))
    content = json.loads(done.read_text())
    done.write_text(json.dumps({key: content[key] for key in content if key not in (integrity.FILES, integrity.CHECKSUM)}))


def other_weights(folder):
    nan_weights(folder)
    weights = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").write_bytes(
        safetensors.torch.save({name: value.new_zeros(2) for name, value in weights.items()})
    )


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors: damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: missing"),
        (lambda folder: flip(folder / "stage.json"), "stage.json: damaged"),
        (lambda folder: (folder / "stage.json").write_bytes(b""), "stage.json: damaged"),
        (nan_weights, "model.safetensors: weights are not finite"),
        (other_weights, "model.safetensors: weights do not fit the network"),
    ],
)
def test_a_damaged_stage_is_run_again(packed, whole, tmp_path, caplog, damage, file):
    output = Path(shutil.copytree(whole, tmp_path / "run"))
    damage(stage_folder(output))
    run(packed, output)
    assert f"{stage_folder(output)}/{file}" in caplog.text
    assert "stage train is run again" in caplog.text
    assert caplog.text.count(file) == 1
    assert_equal_runs(whole, output)


def test_two_ranks_agree_on_what_is_damaged(packed, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = ["train", "jomold", f"data={packed}", *SMALL]
    ranks(2, [*arguments, f"output={one}"])
    shutil.copytree(one, two)
    flip(stage_folder(two, "estimate") / "model.safetensors")
    (stage_folder(two, "ratios") / "ratios.json").unlink()
    ranks(2, [*arguments, f"output={two}"])
    for name in ("estimate", "denoise"):
        assert_equal_runs(one, two, name)


def test_a_copied_and_a_moved_run_resume(packed, whole, tmp_path):
    """The config in the folder names another output; that decides nothing about what comes out."""
    cut(packed, tmp_path / "begun", after=2)
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    (tmp_path / "begun").rename(moved)
    run(packed, moved)
    assert_equal_runs(whole, moved)
    copied = Path(shutil.copytree(whole, tmp_path / "copied"))
    before = json.loads((whole / "result.json").read_text())["scores"]
    assert run(packed, copied)["scores"] == before
    done = CliRunner().invoke(cli.app, ["compare", str(copied), str(whole)])
    assert done.exit_code == 0, done.exception
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        run(packed, copied, "optim.lr=0.5")


def test_a_run_resumes_with_another_checkpoint_interval(packed, whole, tmp_path):
    cut(packed, tmp_path / "run", after=2)
    run(packed, tmp_path / "run", "train.checkpoint_every=1", "train.check_every=3", "evaluate.batch_size=7")
    assert_equal_runs(whole, tmp_path / "run")
    assert "checkpoint_every: 1" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_config_that_is_damaged_is_named(packed, whole, tmp_path):
    output = Path(shutil.copytree(whole, tmp_path / "run"))
    (output / "config.yaml").write_bytes(b"recipe: [\xff")
    with pytest.raises(ConfigError, match=r"config\.yaml: damaged"):
        run(packed, output)


def test_a_stage_that_ends_in_weights_that_are_not_finite_is_not_kept(packed, tmp_path, monkeypatch):
    def diverged(trainer):
        return StageResult({name: value * float("nan") for name, value in trainer.kept.state_dict().items()})

    monkeypatch.setattr(StageTrainer, "run", diverged)
    with pytest.raises(TrainingError, match="stage train: weights are not finite"):
        run(packed, tmp_path)
    assert not list(tmp_path.glob("stages/*/stage.json"))
