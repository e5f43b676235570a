"""Flipped bits are detected in checkpoints, stage artifacts, labels, ratios, weights, scores and results."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from damage import flip
from typer.testing import CliRunner

from avvp_dist import storage
from avvp_dist.cli import main as cli
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.experiments import result as results
from avvp_dist.experiments.comparison import read_settings
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import run_experiment
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods.jomold import read_ratios
from avvp_dist.storage import integrity
from avvp_dist.train import checkpoint
from avvp_dist.train.stages import read_collected, read_trained

FLIPS = 300
SMALL = ["train.epochs=1", "model.width=16", "model.feedforward=16", "tracking=none", "train.device=cpu"]
CLASSES = ["Speech", "Dog", "Car"]


@pytest.fixture(scope="module")
def finished(packed, tmp_path_factory):
    """A finished run of JoMoLD."""
    output = str(tmp_path_factory.mktemp("run") / "run")
    run_experiment(load("jomold", [f"data={packed}", f"output={output}", *SMALL]), LocalRuntime(output, "cpu"))
    return Path(output)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def flipped(content):
    """Copies of ``content`` with one random bit flipped, and some truncated copies."""
    draw = random.Random(0)
    for _ in range(FLIPS):
        damaged, bit = bytearray(content), draw.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)
    for length in (0, 1, len(content) // 2, len(content) - 1):
        yield content[:length]


def same(one, other):
    """Whether two objects are equal, including their tensors and arrays; NaN equals itself."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if hasattr(one, "__dict__"):
        return same(vars(one), vars(other))
    return one == other


def assert_no_flip_is_read(file, read, named=True):
    """For any flipped bit, the reader must refuse the file by name, or read the same content."""
    whole, content = read(), file.read_bytes()
    refused = 0
    for damaged in flipped(content):
        file.write_bytes(damaged)
        try:
            assert same(read(), whole)
        except (DataError, ConfigError) as error:
            message = str(error)
            refused += 1
            if named and file.name not in message:
                pytest.fail(f"no {file.name} in {message}")
    file.write_bytes(content)
    assert refused > 0.6 * FLIPS
    assert same(read(), whole)


def stage(run, name):
    (folder,) = (run / "stages").glob(f"{name}-*")
    return folder


def test_checkpoints(tmp_path):
    file = tmp_path / "00000001.pt"
    state = {"key": "k", "epoch": 2, "model": {"w": torch.randn(40, 9)}, "optimizer": {"state": {0: torch.randn(9)}}}
    file.write_bytes(checkpoint.pack(state))
    assert_no_flip_is_read(file, lambda: checkpoint.unpack(file.read_bytes(), str(file)))


def test_a_sealed_document_is_valid_after_removing_its_credentials(tmp_path):
    url = str(tmp_path / "result.json")
    storage.write_text(
        url, json.dumps(integrity.seal({"messages": ["see http://me:pass-4711@host/x?token=t-4711"]}), indent=1)
    )
    assert "4711" not in Path(url).read_text()
    assert integrity.read_sealed(url)["messages"] == ["see http://***@host/x?token=***"]


def test_old_checkpoints_are_refused_by_name(tmp_path):
    torch.save({"format": 1, "key": "k"}, tmp_path / "old.pt")
    with pytest.raises(DataError, match=r"old\.pt: a checkpoint of an earlier version"):
        checkpoint.unpack((tmp_path / "old.pt").read_bytes(), "old.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "removed.npz", "stage.json"])
def test_trained_stages(copy, name):
    folder = stage(copy, "denoise")
    assert_no_flip_is_read(folder / name, lambda: read_trained(str(folder)))


@pytest.mark.parametrize("name", ["ratios.json", "stage.json"])
def test_collected_stages(copy, name):
    folder = stage(copy, "ratios")
    assert_no_flip_is_read(folder / name, lambda: read_collected(str(folder), "ratios"), named=name != "ratios.json")


def test_a_missing_file_of_a_stage(copy):
    folder = stage(copy, "denoise")
    (folder / "removed.npz").unlink()
    with pytest.raises(DataError, match=r"removed\.npz: missing"):
        read_trained(str(folder))


def test_ratios_copied_to_another_file(copy, tmp_path):
    file = Path(shutil.copy(stage(copy, "ratios") / "ratios.json", tmp_path / "mine.json"))
    classes = list(json.loads(file.read_text())["audio"])
    assert_no_flip_is_read(file, lambda: read_ratios(str(file), classes))


def test_ratios_without_a_checksum_are_read(copy, tmp_path):
    content = json.loads((stage(copy, "ratios") / "ratios.json").read_text())
    del content["checksum"]
    (tmp_path / "mine.json").write_text(json.dumps(content))
    assert read_ratios(str(tmp_path / "mine.json"), list(content["audio"]))["audio"] == content["audio"]


@pytest.mark.slow
def test_result_and_config(copy):
    def read():
        (setting,), _ = read_settings([str(copy)])
        return {
            "keys": dict(setting.keys),
            "result": dict(setting.runs[0].result),
            "problem": setting.runs[0].per_video_problem,
        }

    assert_no_flip_is_read(copy / "result.json", read)
    assert_no_flip_is_read(copy / "config.yaml", read)


@pytest.mark.slow
def test_damaged_per_video_scores_are_not_used(copy):
    file = copy / "per_video.npz"
    content = file.read_bytes()
    for damaged in flipped(content):
        file.write_bytes(damaged)
        run = read_settings([str(copy)])[0][0].runs[0]
        assert run.per_video is None
        assert "per_video.npz: damaged" in run.per_video_problem
    done = CliRunner().invoke(cli.app, ["evaluate", str(copy)])
    assert done.exit_code == 0, done.exception
    assert file.read_bytes() == content
    assert read_settings([str(copy)])[0][0].runs[0].per_video is not None


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "result.json"])
def test_evaluate_refuses_damaged_files_by_name(copy, name):
    flip(copy / name, 2 / 3)
    done = CliRunner().invoke(cli.app, ["evaluate", str(copy)])
    assert isinstance(done.exception, DataError)
    assert f"{name}: damaged" in str(done.exception)


def test_weights_that_are_not_finite_are_refused_even_without_checksums(copy):
    result = json.loads((copy / "result.json").read_text())
    del result["files"], result["checksum"]  # as written by an earlier version
    (copy / "result.json").write_text(json.dumps(result))
    assert CliRunner().invoke(cli.app, ["evaluate", str(copy)]).exit_code == 0
    weights = safetensors.torch.load((copy / "model.safetensors").read_bytes())
    safetensors.torch.save_file({name: value * float("nan") for name, value in weights.items()}, copy / "model.safetensors")
    done = CliRunner().invoke(cli.app, ["evaluate", str(copy)])
    assert isinstance(done.exception, DataError)
    assert "model.safetensors: weights are not finite" in str(done.exception)


def labels(**changes):
    draw = np.random.default_rng(0)
    known = {
        "ids": tuple(f"video{number}" for number in range(6)),
        "classes": tuple(CLASSES),
        "video": None,
        "tracks": {name: draw.random((6, 4, 3), np.float32) for name in ("audio", "visual")},
        "provenance": {"refiner": "test"},
        "windows": ((0, 4), (2, 6), (4, 8), (6, 10)),
    }
    known["tracks"] = known["tracks"] | {name: changes.pop(name) for name in ("audio", "visual") if name in changes}
    return RefinedLabels(**known | changes)


def test_refined_labels(tmp_path):
    file = tmp_path / "refined.npz"
    file.write_bytes(labels().to_bytes())
    assert_no_flip_is_read(file, lambda: RefinedLabels.load(str(file)))


def test_refined_labels_of_other_tools_need_no_checksum(tmp_path):
    about = {"format": 1, "classes": CLASSES, "provenance": {}, "windows": None}
    made = np.ones((2, 3), np.float64)
    np.savez(tmp_path / "a.npz", audio=made, visual=made > 0, ids=np.array(["a", "b"]), about=np.array(json.dumps(about)))
    found = RefinedLabels.load(str(tmp_path / "a.npz"))
    assert found.audio.dtype == found.visual.dtype == np.float32


SHAPE = (6, 4, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": np.full(SHAPE, 1e30, np.float32)}, "audio: 72 values outside 0..1, the first is 1"),
        ({"audio": np.full(SHAPE, np.nan, np.float32)}, "audio: 72 values outside 0..1, the first is nan"),
        ({"visual": np.full(SHAPE, np.inf, np.float32)}, "visual: 72 values outside 0..1"),
        ({"visual": np.full(SHAPE, -0.5)}, "visual: 72 values outside 0..1"),
        ({"video": np.full((6, 3), 2)}, "video: 18 values outside 0..1, the first is 2 at [0, 0]"),
        ({"audio": np.ones(SHAPE, np.complex64)}, "audio: has dtype complex64"),
        ({"audio": np.full(SHAPE, "a")}, "audio: has dtype <U1"),
        ({"audio": np.ones((6, 4, 2))}, "audio: shape [6, 4, 2], expected [6, 3] or [6, 4, 3]"),
        ({"audio": np.ones((5, 3))}, "audio: shape [5, 3]"),
        ({"audio": np.ones((6, 5, 3))}, "audio: shape [6, 5, 3], expected [6, 3] or [6, 4, 3]"),
        ({"video": np.ones((6, 4, 3))}, "video: shape [6, 4, 3], expected [6, 3]"),
        ({"ids": ("a", "b", "a", "c", "d", "e")}, "ids: 1 listed more than once, such as 'a'"),
        ({"classes": ("Speech", "Dog", "Dog")}, "classes: 1 listed more than once, such as 'Dog'"),
        ({"windows": ((0, 4), (4, 2), (4, 8), (6, 10))}, "windows: [4, 2] as number 1"),
        ({"windows": ((-1, 4), (2, 6), (4, 8), (6, 10))}, "windows: [-1, 4] as number 0"),
        ({"windows": ((0, 4), (4, 8), (2, 6), (6, 10))}, "windows: [2, 6] comes after [4, 8]"),
        ({"windows": ((0, 4), (2, 6.5), (4, 8), (6, 10))}, "windows: [2, 6.5] as number 1"),
    ],
)
def test_invalid_refined_labels(tmp_path, changes, message):
    file = tmp_path / "refined.npz"
    file.write_bytes(labels(**changes).to_bytes())
    with pytest.raises(DataError) as caught:
        RefinedLabels.load(str(file))
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_all_problems_of_refined_labels_are_reported_together(tmp_path):
    file = tmp_path / "refined.npz"
    bad = labels(audio=np.full(SHAPE, 7.0), visual=np.full(SHAPE, np.nan), ids=("a",) * 6)
    file.write_bytes(bad.to_bytes())
    with pytest.raises(DataError) as caught:
        RefinedLabels.load(str(file))
    assert len(caught.value.problems) == 3


def test_windows_beyond_the_end_of_a_video():
    with pytest.raises(DataError, match="windows: the last one ends at segment 10 of 9"):
        labels().aligned(labels().ids, CLASSES, 9, "refined.npz")


def test_training_refuses_damaged_labels(packed, tmp_path):
    file = tmp_path / "labels.npz"
    arguments = ["data", "noisy-labels", "--data", packed, "--out", str(file)]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    flip(file, bit=2)
    arguments = ["train", "han", f"data={packed}", f"output={tmp_path / 'run'}", f"data.refined={file}", *SMALL]
    done = CliRunner().invoke(cli.app, arguments)
    assert isinstance(done.exception, DataError)
    assert str(file) in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_sealed_documents():
    sealed = integrity.seal({"a": [1.5, float("nan"), {"b": None}]})
    text = json.dumps(sealed, indent=3).encode()
    assert integrity.unseal(text, "x.json")["a"][2] == {"b": None}
    assert integrity.unseal(b'{"old": 1}', "x.json") == {"old": 1}
    for damaged in (text.replace(b"1.5", b"1.25"), text.replace(b'"a"', b'"c"'), b'{"files": {}}', b"[]", b"{", b"\xff"):
        with pytest.raises(DataError, match=r"x\.json: damaged"):
            integrity.unseal(damaged, "x.json")


def test_a_sweep_repeats_a_run_with_a_damaged_result(copy, caplog):
    assert results.finished(str(copy / "nowhere")) is None
    assert results.finished(str(copy))["method"] == "jomold"
    (copy / "result.json").write_text("{}{")
    assert results.finished(str(copy)) is None
    assert "result.json: damaged" in caplog.text
