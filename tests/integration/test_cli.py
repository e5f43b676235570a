"""The command line in processes of its own: exit codes, messages, output files."""

import json
import os
import subprocess
import sys

import pytest
from commands import invoke
from forks import avvp

from avvp_dist.datasets import synthetic
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import run_experiment
from avvp_dist.shards.index import Index

SMALL = [
    "train.epochs=2",
    "train.batch_size=16",
    "model.width=32",
    "model.feedforward=32",
    "tracking=none",
    "train.device=cpu",
]


@pytest.fixture(scope="module")
def trained(packed, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "jomold"
    command = [sys.executable, "-m", "avvp_dist", "train", "jomold", f"data={packed}", f"output={output}", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return output, done


def test_train_reports_stages_scores_and_output_files(trained):
    output, done = trained
    for stage in ("estimate", "ratios", "denoise"):
        assert f"stage {stage}: " in done.stderr
    assert "denoise epoch 2, loss " in done.stderr
    assert "SYNTHETIC" in done.stdout
    assert str(output / "result.json") in done.stdout
    assert (output / "result.json").is_file()


def test_a_second_train_reuses_every_stage(trained, packed):
    output, _ = trained
    before = (output / "result.json").read_text()
    again = avvp("train", "jomold", f"data={packed}", f"output={output}", *SMALL)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("reused") == 3
    assert json.loads(before)["scores"] == json.loads((output / "result.json").read_text())["scores"]


def test_evaluate_reproduces_the_result_and_accepts_other_data(trained, packed, tmp_path):
    output, _ = trained
    done = avvp("evaluate", output, f"data={packed}", "--json", tmp_path / "again.json")
    assert done.returncode == 0, done.stderr
    assert "result.json reproduced" in done.stdout
    recorded, again = (json.loads(path.read_text()) for path in (output / "result.json", tmp_path / "again.json"))
    assert again["scores"] == recorded["scores"]
    other = tmp_path / "other"
    synthetic.write(str(other), videos=None, seed=1, layout="shards", splits=(8, 6, 6), workers=1)
    done = avvp("evaluate", output, f"data={other}", "--json", tmp_path / "other.json")
    assert done.returncode == 0, done.stderr
    assert "scores on other data than the run's: not compared" in done.stdout
    assert json.loads((tmp_path / "other.json").read_text())["data"]["fingerprint"] == Index.load(str(other)).fingerprint


def test_evaluate_restores_missing_statistics_per_video(trained, tmp_path):
    output, _ = trained
    left = (output / "per_video.npz").read_bytes()
    (output / "per_video.npz").unlink()
    settings = ["task.segment_threshold=0.7", "task.protocol=none"]
    other = avvp("evaluate", output, *settings, "--json", tmp_path / "other.json")
    assert other.returncode == 0, other.stderr
    scored = json.loads((tmp_path / "other.json").read_text())
    assert scored["task"]["view"] == "none"
    assert scored["scores"]["test"]["joint"]["settings"] == {"segment_threshold": 0.7, "video_threshold": 0.5}
    assert not (output / "per_video.npz").exists()  # these would be the scores of another setting
    done = avvp("evaluate", output)
    assert done.returncode == 0, done.stderr
    assert (output / "per_video.npz").read_bytes() == left
    assert "per_video.npz" in "".join(done.stdout.split())


def test_compare_tests_trained_settings_against_each_other(trained, packed, tmp_path):
    output, _ = trained
    for name, setting in (("again", "seed=1"), ("carry", "method.rounding=carry")):
        given = [f"data={packed}", f"output={tmp_path / name}", f"store={output / 'stages'}", setting]
        run_experiment(load("jomold", [*given, *SMALL]), LocalRuntime(str(tmp_path / name), "cpu"))
    files = [f"--{kind}={tmp_path / kind}" for kind in ("csv", "markdown", "latex", "figures")]
    done = avvp("compare", output, "--sweep", tmp_path, *files)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    for part in ("SYNTHETIC DATA", "minus that of method.rounding=floor", "14 test videos", "one seed, therefore no spread"):
        assert part in shown
    recorded = json.loads((output / "result.json").read_text())["scores"]["test"]["modality"]["metrics"]["segment.type"]
    assert f"{recorded:.6g}" in (tmp_path / "csv").read_text()
    assert (tmp_path / "figures" / "settings.png").stat().st_size > 5_000


def test_compare_names_every_folder_without_a_run(trained):
    output, _ = trained
    missing = avvp("compare", output, output.parent / "nothing", output.parent / "nowhere")
    assert missing.returncode == 2
    for name in ("nothing", "nowhere"):
        assert f"{name}/result.json: does not exist" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_config_prints_what_would_run():
    done = avvp("config", "jomold", "method.rounding=carry")
    assert done.returncode == 0
    assert "rounding: carry" in done.stdout
    assert "lr: 0.0005" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "jomold", "method.warmpu=linear", "optim.lr=-1"],
            ["method.warmpu: unknown key of method 'jomold'", "optim.lr:"],
        ),
        (["train", "jomold"], ["data: missing; give data=URL"]),
        (["train", "jomold", "data=nowhere"], ["nowhere: no such folder"]),
        (["train", "jomold", "data=nowhere", "seed=1", "seed=2"], ["seed: given 2 times"]),
        (["train", "jomodl", "data=nowhere"], ["unknown recipe 'jomodl'; did you mean 'jomold'?"]),
        (["train", "jomold", "data=nowhere", "method.ratios=none.json"], ["nowhere"]),
        (["evaluate", "nowhere"], ["nowhere: not a finished run", "config.yaml", "result.json"]),
        (
            ["evaluate", "nowhere", "model=han", "train.epochs=9"],
            ["model, train.epochs cannot be changed for a trained model", "train.device"],
        ),
        (["sync", "nowhere"], ["nowhere"]),
        (["data", "pack", "lpl", "--annotations", "a", "--features", "b", "--out", "c"], ["unknown data set 'lpl'", "llp"]),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(arguments, message, tmp_path):
    done = avvp(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(part in done.stderr for part in message), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_gpu_is_refused(packed, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    done = avvp("train", "han", f"data={packed}", f"output={tmp_path / 'run'}", "train.device=cuda")
    assert done.returncode == 2
    assert "no CUDA device on this machine" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:9", "127.0.0.1:9: cannot connect"), ("nowhere:x", "nowhere:x: Port could not be cast")],
)
def test_an_unreachable_ray_cluster_is_refused(packed, tmp_path, address, message):
    pytest.importorskip("ray")
    given = [f"data={packed}", f"output={tmp_path / 'run'}", "launch=ray"]
    done = avvp("train", "han", *given, RAY_ADDRESS=address)
    assert done.returncode == 2, done.stderr
    assert f"error: RAY_ADDRESS={message}" in done.stderr
    assert "correct RAY_ADDRESS" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "evaluate",
        "config",
        "compare",
        "recipes",
        "table",
        "sync",
        "doctor",
        "data pack",
        "data synth",
        "data inspect",
        "data check",
        "cache info",
        "cache clear",
    ],
)
def test_every_command_has_help(command):
    assert len(invoke(*command.split(), "--help").splitlines()) > 5


@pytest.mark.parametrize("command", [["train"], ["data", "verify"]])
def test_paragraphs_of_help_wrap_at_the_width_of_the_terminal(command):
    done = avvp(*command, "--help", COLUMNS="400")
    described = done.stdout.partition("Arguments")[0]
    assert any(text in described for text in ("To train in several processes, use torchrun", "--record changes the")), (
        described
    )
