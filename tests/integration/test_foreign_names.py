"""Foreign names, classes and settings in output and files: markup and formulas have no effect, nothing fails."""

import csv
import shutil

import fake_runs
import pytest
from fake_runs import write_run
from indexes import change_index

from avvp_dist.cli.main import main

CLASS = "=cmd|$a$ [/x] <b>\x1b[31m"
VALUE = '"[/x]=$a$|`<b>\\e[2J"'


def avvp(*arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        assert not ended.code  # noqa: PT017


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(fake_runs, "CLASSES", ("Speech", CLASS))
    return [write_run(tmp_path / "[/x] run", f"data.refined={VALUE}"), write_run(tmp_path / "other", gain=0.1)]


def test_comparisons_escape_foreign_names(runs, tmp_path, capsys):
    files = {kind: tmp_path / kind for kind in ("csv", "markdown", "latex")}
    avvp("compare", *runs, "--per-class", *(f"--{kind}={path}" for kind, path in files.items()), "--figures", tmp_path / "p")
    out = capsys.readouterr().out
    assert "\\x1b[31m" in out
    assert "[/x]" in out
    rows = list(csv.reader(files["csv"].read_text().splitlines()))
    assert any(cell.startswith("'=cmd") for row in rows for cell in row)
    assert not any(cell.startswith(("=", "@", "+")) for row in rows for cell in row)
    assert len({len(row) for row in rows}) == 1
    markdown, latex = files["markdown"].read_text(), files["latex"].read_text()
    assert "<b>" not in markdown
    assert r"\|$a$ [/x] &lt;b&gt;" in markdown
    assert r"\$a\$" in latex
    assert not any("\x1b" in text for text in (out, markdown, latex, files["csv"].read_text()))
    assert (tmp_path / "p" / "settings.png").is_file()


def test_a_run_in_a_folder_with_markup_in_its_name(packed, tmp_path, capsys, figures):
    data = tmp_path / "data"
    shutil.copytree(packed, data)
    change_index(data, lambda index: {"classes": ("[/x]", "$a$ $\\frac{$", "[red]", *index.classes[3:])})
    tiny = ["train.epochs=1", "model.width=16", "model.feedforward=16", "train.device=cpu", "tracking=none"]
    output = tmp_path / "[/x] [red]\x1b[31m"
    avvp("train", "han", f"data={data}", f'output="{str(output).encode("unicode_escape").decode()}"', *tiny)
    shown = capsys.readouterr()
    assert "[/x] [red]\\x1b[31m/result.json" in shown.out
    avvp("evaluate", output)
    avvp("data", "inspect", data)
    shown = shown.out + "".join(capsys.readouterr())
    assert "\x1b[31m" not in shown
    assert (output / "figures" / "classes.png").is_file()
