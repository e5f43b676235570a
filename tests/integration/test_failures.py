"""Failures that need a process of their own: a closed pipe, a missing package, a job script, a bug."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(*arguments, cwd, before=""):
    code = f"import sys\n{before}\nfrom avvp_dist.cli.main import main\nmain(sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={"PATH": "", "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(("arguments", "first"), [('"config", "jomold"', "r"), ('"train", "--help"', " ")])
def test_a_closed_output_pipe_is_not_an_error(arguments, first):
    done = subprocess.run(
        f"{sys.executable} -c 'from avvp_dist.cli.main import main; main([{arguments}])' | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    assert (done.stdout, done.stderr) == (first, "")


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("ray", ["train", "han", "launch=ray", "data=DATA", "output=run", "tracking=none"], "ray"),
        ("ray", ["sweep", "jomold-denoising", "data=DATA", "--output", "sweep"], "ray"),
        ("s3fs", ["train", "han", "data=s3://bucket/llp", "output=run"], "s3"),
    ],
)
def test_a_missing_package_is_named_with_its_install_command(missing, arguments, extra, packed, tmp_path):
    given = [argument.replace("DATA", packed) for argument in arguments]
    done = python(*given, cwd=tmp_path, before=f"sys.modules[{missing!r}] = None")
    assert done.returncode == 2, done.stderr
    assert f"pip install 'avvp_dist[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_bug_is_reported_and_its_traceback_written_to_a_file(tmp_path):
    broken = "import avvp_dist.experiments.recipe\navvp_dist.experiments.recipe.recipes = lambda: 1 / 0"
    done = python("recipes", cwd=tmp_path, before=f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\n{broken}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: this is a bug in avvp_dist: ZeroDivisionError: division by zero")
    [file] = tmp_path.iterdir()
    assert str(file) in done.stderr
    assert "Traceback" in file.read_text()


def test_a_job_fails_as_the_command_does(tmp_path):
    command = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "s3://"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: run 's3://' names no bucket")
