"""`avvp table` with rows that need segment-level labels and several feature sets."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from indexes import change_index
from test_table_run import SMALL, avvp_table

from avvp_dist.datasets.external import noisy_segment_labels
from avvp_dist.errors import ConfigError
from avvp_dist.loading.refined import RefinedLabels

LABELED = """
title: Labels
source: a paper
rows:
  - {label: plain, recipe: han, view: joint, overrides: [data.dataset=llp], published: {segment: {type: 54.0}}}
  - {label: deep, recipe: valor-plus-plus, view: joint, published: {segment: {type: 66.2}}, oracle_noise: 0.18}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labeled")
    (folder / "two.yaml").write_text(LABELED)
    command = [folder / "two.yaml", "--videos", "40,8,8", "--seeds", "1", "--output", folder / "out", *SMALL]
    shown = avvp_table(*command, "--markdown", folder / "two.md")
    return folder, shown, json.loads((folder / "out" / "table.json").read_text())


@pytest.fixture
def real(finished, tmp_path):
    """The same data sets with nothing that marks them as synthetic: HAN's and CLIP and CLAP's."""
    _, _, content = finished
    places = []
    for name, url in (("llp", content["data"]["url"]), ("clip-clap", content["rows"][1]["data"]["url"])):
        places.append(Path(shutil.copytree(url, tmp_path / name)))
        change_index(places[-1], lambda index: {"provenance": index.provenance | {"synthetic": False}})
    return places


def config_of(row):
    (run,) = row["runs"]
    return yaml.safe_load(Path(run, "config.yaml").read_text())["data"]


def test_each_row_gets_its_features_and_synthetic_labels_if_it_needs_them(finished):
    folder, shown, content = finished
    plain, deep = content["rows"]
    assert (content["data"]["dataset"], plain["data"], deep["data"]["dataset"]) == ("llp", None, "llp-clip-clap")
    assert deep["data"]["synthetic"] is True
    assert plain["labels"] is None
    assert config_of(plain)["refined"] is None
    assert deep["labels"]["oracle_noise"] == 0.18
    assert config_of(deep)["refined"] == deep["labels"]["url"]
    assert Path(deep["labels"]["url"]).parent == folder / "out" / "labels"
    made, expected = RefinedLabels.load(deep["labels"]["url"]), noisy_segment_labels(deep["data"]["url"], 0.18, 0)
    assert made.fingerprint == expected.fingerprint
    assert made.provenance["flip"] == 0.18
    for text in (shown, (folder / "two.md").read_text()):
        lines = [line for line in text.splitlines() if "ORACLE labels: ground truth, 18% flipped" in line]
        assert len(lines) >= 2
        assert all("ours, SYNTHETIC" in line for line in lines)
        shown = " ".join(text.split())
        assert "deep: trained on ORACLE segment-level labels: the ground truth" in shown
        assert "deep: llp-clip-clap (SYNTHETIC DATA)" in shown


def test_on_real_data_labels_are_passed_to_the_rows_that_need_them(finished, real, tmp_path):
    folder, _, _ = finished
    llp, clip_clap = real
    out = tmp_path / "out"
    common = [folder / "two.yaml", "--seeds", "1", "--output", out, *SMALL]
    with pytest.raises(ConfigError, match=r"row 'deep' requires llp-clip-clap; give another --data in addition to llp \("):
        avvp_table(*common, "--data", llp)
    both = [*common, "--data", clip_clap, "--data", llp]
    with pytest.raises(ConfigError) as caught:
        avvp_table(*both)
    (problem,) = caught.value.problems
    assert "row 'deep' trains on segment-level labels" in problem
    assert "--set data.refined=FILE, which applies only to such rows" in problem
    with pytest.raises(ConfigError, match="row 'deep': .*two.npz: no such file"):
        avvp_table(*both, "--set", f"data.refined={tmp_path / 'two.npz'}")
    assert not out.exists()
    (tmp_path / "two.npz").write_bytes(noisy_segment_labels(str(llp), 0.1, 1).to_bytes())
    shown = avvp_table(*both, "--set", f"data.refined={tmp_path / 'two.npz'}")
    content = json.loads((out / "table.json").read_text())
    plain, deep = content["rows"]
    assert (config_of(plain)["refined"], plain["labels"]) == (None, None)
    assert deep["labels"] == {"url": str(tmp_path / "two.npz"), "oracle_noise": None}
    assert config_of(deep)["url"] == str(clip_clap)
    assert content["changes"] == ["train.epochs=1", "model.width=32"]
    assert "ORACLE" not in shown
    assert "SYNTHETIC" not in shown
    assert "deep: trained on the segment-level labels in" in shown


def test_synthetic_and_real_data_are_not_mixed(finished, real, tmp_path):
    folder, _, content = finished
    mixed = ["--data", content["data"]["url"], "--data", real[1], "--output", tmp_path / "out"]
    with pytest.raises(ConfigError, match="synthetic and real data cannot be mixed in one table"):
        avvp_table(folder / "two.yaml", *mixed)
    assert not (tmp_path / "out").exists()
