"""Output of `avvp compare`: published scores, the file of statistics per video, Markdown, LaTeX, figures."""

import re

import numpy as np
import pytest
from fake_runs import avvp_compare, one_line, seeds, two_settings, write_run
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from avvp_dist.errors import DataError
from avvp_dist.experiments.comparison import read_settings
from avvp_dist.experiments.published_scores import published_scores
from avvp_dist.metrics.per_video import VideoStatistics
from avvp_dist.report.canvas import BLUE, ORANGE
from avvp_dist.report.compare import ComparisonOptions, compare_groups
from avvp_dist.report.compare_figures import importance
from avvp_dist.report.text_table import TextTable, latex, markdown
from avvp_dist.tasks.parsing import ParsingConfig


@pytest.fixture
def two(tmp_path):
    return two_settings(tmp_path)


# published scores


def test_published_scores_are_in_a_table_of_their_own_with_view_features_and_a_warning(two):
    shown = avvp_compare(*two, "--published")
    table = shown[shown.index("PUBLISHED scores") :]
    assert "method.temperature" not in table.split("- data:")[0]
    row = next(line for line in table.splitlines() if line.strip().startswith("JoMoLD"))
    assert [part for part in ("V/R", "modality", "61.3", "63.8", "57.2", "60.8", "59.9") if part not in row] == []
    assert "those of these runs on SYNTHETIC DATA: not comparable" in one_line(shown)


def test_published_scores_are_consistent():
    published = published_scores("parsing")
    assert len(published.rows) > 25
    assert all(row.view is None or not row.rule for row in published.rows)
    sources = {part.strip() for row in published.rows for part in row.source.split(",")}
    assert {source for source in sources if not source.startswith("its ")} == {*published.sources, "third party"}
    odd = {row.method for row in published.rows if ParsingConfig.inconsistent(row.scores)}
    assert odd == {"MA", "MM-Pyramid", "CoLeaF", "PPL"}  # as printed; PoiBin's event Type is 0.1 off by rounding
    names = {metric.name for metric in ParsingConfig.metrics}
    assert all(row.scores.keys() <= names and (row.view in (None, "joint", "modality", "none")) for row in published.rows)
    figures = dict.fromkeys(("event.audio", "event.visual", "event.audio_visual"), 60.0)
    assert ParsingConfig.inconsistent(figures | {"event.type": 61.0})
    assert not ParsingConfig.inconsistent(figures | {"event.type": 60.1})
    assert published_scores("no-such-task") is None


# files


def test_statistics_per_video_round_trip_through_their_file(tmp_path):
    write_run(tmp_path / "run")
    url = str(tmp_path / "run" / "per_video.npz")
    kept = VideoStatistics.load(url)
    assert kept.to_bytes() == (tmp_path / "run" / "per_video.npz").read_bytes()
    assert kept.ids["val"][:2] == ("val-0", "val-1")
    assert kept.values["val", "joint/without_speech"].shape == (40, 8)
    assert ("train", "joint") not in kept.values
    for content in (b"", b"PK", (tmp_path / "run" / "result.json").read_bytes()):
        (tmp_path / "run" / "per_video.npz").write_bytes(content)
        with pytest.raises(DataError, match="not a file of statistics per video"):
            VideoStatistics.load(url)
    np.savez(tmp_path / "run" / "per_video.npz", **{"val/ids": np.array(["a"]), "val/joint": np.zeros((2, 8))})
    with pytest.raises(DataError, match="val/joint"):
        VideoStatistics.load(url)


def test_markdown_rows_have_as_many_cells_as_headers(two, tmp_path):
    out = tmp_path / "out.md"
    avvp_compare(*two, "--published", "--per-class", "--markdown", out)
    tables = [part for part in out.read_text().split("\n\n") if part.startswith("|")]
    assert len(tables) == 6  # scores and classes of two splits, tests, published
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table.strip().splitlines()}) == 1
    assert "Frying\\_(food)" in out.read_text()
    assert "- SYNTHETIC DATA" in out.read_text()


def test_latex_escapes_special_characters(two, tmp_path):
    out = tmp_path / "out.tex"
    avvp_compare(*two, "--per-class", "--published", "--latex", out)
    code = "\n".join(line for line in out.read_text().splitlines() if not line.startswith("%"))
    assert "Frying\\_(food)" in code
    assert not re.search(r"(?<!\\)[_%#]", code)
    assert code.isascii()
    bare = code.replace("\\{", "").replace("\\}", "")
    assert bare.count("{") == bare.count("}")
    assert code.count("$") % 2 == 0
    for name in ("table", "tabular"):
        assert code.count(rf"\begin{{{name}}}") == code.count(rf"\end{{{name}}}") == 6
    for table in re.findall(r"\\begin{tabular}{(\w+)}\n\\toprule\n(.*?)\\bottomrule", code, flags=re.DOTALL):
        lines = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") + 1 for line in lines} == {len(table[0])}


def test_text_that_looks_like_markup_is_escaped():
    table = TextTable("a_b & 50 %", ["x"], [["[1, 2]"], ["a|b\n[3, 4]"], [r"\input{x}"]])
    code, text = latex([table], []), markdown([table], [])
    assert r"a\_b \& 50 \%" in code
    assert "\n{}[1, 2]" in code  # would otherwise be an argument of the preceding line break
    assert r"\\{}[3, 4]" in code
    assert r"\input" not in code
    assert "| a\\|b [3, 4] |" in text


def pixels(path, color):
    image = imread(path)[..., :3]
    return int((np.abs(image - np.array(to_rgb(color))) < 1 / 255).all(axis=-1).sum())


def test_figures_of_one_key(two, tmp_path):
    avvp_compare(*two, "--figures", tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["against.png", "settings.png"]
    avvp_compare(*two, "--select", "--figures", tmp_path / "chosen")
    for name in ("against.png", "settings.png"):
        found = [pixels(tmp_path / folder / name, ORANGE) for folder in ("all", "chosen")]
        assert 100 < found[1] < 0.8 * found[0]  # the test scores of one setting are not drawn
        assert pixels(tmp_path / "all" / name, BLUE) > 300


def test_figures_of_two_keys_show_combinations_and_importance(tmp_path):
    runs = [
        run
        for lr in ("1e-4", "1e-3")
        for t in (0.1, 0.2, 0.3)
        for run in seeds(tmp_path, f"{lr}-{t}", f"optim.lr={lr}", f"method.temperature={t}", count=2, gain=t)
    ]
    avvp_compare(*runs, "--figures", tmp_path / "figures")
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == ["against.png", "heatmap.png", "importance.png", "settings.png"]
    options = ComparisonOptions(("val", "test"), ("modality",), ("segment",), "segment.type")
    shares, seed_share = importance(compare_groups(read_settings(runs)[0], options))
    assert shares["method.temperature"] > 0.95
    assert shares["optim.lr"] < 0.05
    assert seed_share < 0.05
