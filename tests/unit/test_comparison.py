"""`avvp compare` on synthetic finished runs: what is one setting, what is tested, what is shown."""

import csv
import io
import json
import re
import statistics
from pathlib import Path

import pytest
from fake_runs import avvp_compare, one_line, seeds, two_settings, write_run

from avvp_dist import storage
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.experiments.comparison import read_settings, read_sweep
from avvp_dist.experiments.recipe import load


def labels(*runs):
    return [setting.label for setting in read_settings(runs)[0]]


@pytest.fixture
def two(tmp_path):
    return two_settings(tmp_path)


# settings


def test_runs_that_differ_only_in_seed_and_location_are_one_setting(tmp_path):
    runs = seeds(tmp_path, "run", count=2)
    elsewhere = ["launch.workers=2", "tracking=none", "store=stages", "train.device=cpu", "evaluate.batch_size=3"]
    runs.append(write_run(tmp_path / "other", *elsewhere, seed=7))
    ((setting,), notes) = read_settings(runs)
    assert setting.seeds == [1, 2, 7]
    assert setting.label == "jomold"
    assert not notes


def test_labels_show_the_keys_that_differ(tmp_path):
    runs = [
        write_run(tmp_path / "a", "method.temperature=0.1", "optim.lr=1e-3"),
        write_run(tmp_path / "b", "method.temperature=0.25", "optim.lr=1e-3"),
    ]
    assert labels(*runs) == ["method.temperature=0.1", "method.temperature=0.25"]
    runs += [write_run(tmp_path / "c", recipe="han"), write_run(tmp_path / "d", "data.refined=some/where/labels.npz")]
    assert labels(*runs) == [
        "jomold data.refined=none method.temperature=0.1 optim.lr=0.001",
        "jomold data.refined=none method.temperature=0.25 optim.lr=0.001",
        "han",
        "jomold data.refined=labels.npz method.temperature=0.2 optim.lr=0.0005",
    ]


def test_labels_are_unique_even_if_shortened_values_are_not(tmp_path):
    close = [write_run(tmp_path / str(n), f"optim.lr={lr}") for n, lr in enumerate((0.000312345, 0.000312346))]
    files = [write_run(tmp_path / f"{n}-r", f"data.refined={n}/labels.npz") for n in "ab"]
    assert labels(*close) == ["optim.lr=0.000312345", "optim.lr=0.000312346"]
    assert labels(*files) == ["data.refined=a/labels.npz", "data.refined=b/labels.npz"]


def test_labels_of_different_methods_show_only_the_name(tmp_path):
    recipe = tmp_path / "mine.yaml"
    runs = []
    for name in ("han", "jomold"):
        recipe.write_text(load(name, ["output=x"]).to_yaml().replace(f"recipe: {name}", "recipe: mine"))
        runs.append(write_run(tmp_path / name, "optim.lr=1e-3", "train.epochs=3", recipe=str(recipe)))
    found = labels(*runs)
    assert all("method.name=" in label for label in found)
    assert not any("temperature" in label for label in found)


def test_configs_written_before_a_key_existed_are_the_same_setting(tmp_path):
    old, new = write_run(tmp_path / "old", seed=1), write_run(tmp_path / "new", seed=2)
    config = tmp_path / "old" / "config.yaml"
    text = config.read_text()
    assert "  refined: null\n" in text
    config.write_text(text.replace("  refined: null\n", ""))
    assert len(read_settings([old, new])[0]) == 1


def test_a_seed_counts_once(tmp_path):
    first, again = write_run(tmp_path / "first", seed=1), write_run(tmp_path / "again", seed=1)
    ((setting,), (note,)) = read_settings([first, first + "/", again])
    assert len(setting.runs) == 1
    assert str(tmp_path / "again") in note
    assert "same setting and seed" in note
    assert "DIFFER" not in note


def test_a_repeated_seed_with_other_scores_counts_once_and_is_reported(tmp_path):
    first = write_run(tmp_path / "first", seed=1)
    other = write_run(tmp_path / "other", seed=1, val=0.0, test=0.1)
    for run, world in ((first, 1), (other, 2)):
        path = tmp_path / run / "result.json"
        result = json.loads(path.read_text()) | {"provenance": {"world_size": world, "launcher": "torchrun"}}
        path.write_text(json.dumps(result))
    ((setting,), (note,)) = read_settings([first, other])
    assert [run.url for run in setting.runs] == [first]
    assert note.startswith(f"{other}: left out; same setting and seed as {first}, but its SCORES DIFFER: test by")
    assert float(re.search(r"test by up to ([\d.]+) points", note).group(1)) == pytest.approx(10, abs=1)
    assert "val by" not in note
    assert note.endswith("(world_size 1 and 2)")
    assert "SCORES DIFFER" in one_line(avvp_compare(first, other))


def test_other_data_are_another_setting(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", fingerprint="fedcba9876543210")]
    assert labels(*runs) == ["data.fingerprint=0123456789ab", "data.fingerprint=fedcba987654"]


def test_every_folder_without_a_run_is_reported(tmp_path):
    good, bad, old = write_run(tmp_path / "good"), write_run(tmp_path / "bad"), write_run(tmp_path / "old")
    (tmp_path / "bad" / "result.json").write_text("{}")
    (tmp_path / "old" / "config.yaml").write_text((tmp_path / "old" / "config.yaml").read_text() + "gone: 1\n")
    with pytest.raises(DataError) as error:
        read_settings([good, bad, old, str(tmp_path / "nowhere")])
    for part in (
        "nowhere/result.json: does not exist",
        "nowhere/config.yaml",
        "bad/result.json: not the result",
        "gone: unknown",
    ):
        assert part in str(error.value)
    assert "good" not in str(error.value)


def test_runs_and_sweeps_can_be_in_an_object_store(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, seed=ord(name))
        for path in (tmp_path / name).iterdir():
            storage.write_bytes(f"memory://compare/runs/{name}/{path.name}", path.read_bytes())
    found = read_sweep("memory://compare")
    assert [run.rsplit("/", 1)[1] for run in found.runs] == ["a", "b"]
    ((setting,), _) = read_settings(found.runs)
    assert setting.seeds == [97, 98]
    assert setting.statistics("val", "joint").shape == (2, 40, 8)


# sweeps


def record(folder, names, metric="val event.visual"):
    """Write a sweep.json with the keys that are read."""
    rows = [{"name": name, "setting": {}, "seed": 1, "status": "finished"} for name in names]
    (folder / "sweep.json").write_text(json.dumps({"name": folder.name, "metric": metric, "mode": "max", "trials": rows}))


def test_runs_of_a_sweep_are_those_listed_in_sweep_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "sweeps" / "warm"
    runs = [write_run(folder / "runs" / f"trial-{n}", f"method.temperature={n}") for n in (1, 2)]
    write_run(folder / "runs" / "left-by-another", "method.temperature=5")
    write_run(folder / "runs" / "trial-1" / "tracking" / "artifacts" / "kept", "method.temperature=6")  # as in a journal
    (folder / "tracking").mkdir()
    (folder / "tracking" / "result.json").write_text("{}")
    record(folder, ["trial-2", "trial-1", "trial-3"])
    found = read_sweep(str(folder))
    assert sorted(found.runs) == sorted(runs)
    assert found.metric == "event.visual"
    shown = one_line(avvp_compare("--sweep", "warm"))
    assert "visual, event level minus that of method.temperature=" in shown
    assert "1 of the sweep's 3 trials has no result" in shown
    assert "method.temperature=5" not in shown


def test_without_sweep_json_every_folder_with_a_run_counts(tmp_path):
    runs = [write_run(tmp_path / name, f"method.temperature={number}") for number, name in enumerate("ab", start=1)]
    write_run(tmp_path / "a" / "tracking" / "kept")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "result.json").write_text((tmp_path / "a" / "result.json").read_text())
    assert read_sweep(str(tmp_path)).runs == sorted(runs)


@pytest.mark.parametrize("content", ["[]", "{", '{"metric": "segment.type", "trials": ["a"]}', '{"trials": []}'])
def test_missing_or_empty_sweeps_are_rejected(tmp_path, content):
    with pytest.raises(DataError, match="outputs/sweeps/nothing"):
        read_sweep("nothing")
    with pytest.raises(DataError, match="no finished run"):
        read_sweep(str(tmp_path))
    write_run(tmp_path / "runs" / "a")
    record(tmp_path, [])
    with pytest.raises(DataError, match="no finished run"):
        read_sweep(str(tmp_path))
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(DataError, match=r"sweep\.json: .*not the record of a sweep"):
        read_sweep(str(tmp_path))


# what is shown


def test_table_has_mean_spread_and_interval_over_seeds(two):
    shown = avvp_compare(*two, "--metric", "segment.audio")
    ((setting, _), _) = read_settings(two)
    values = setting.values("test", "modality", "segment.audio")
    assert f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" in shown
    half = 4.302653 * statistics.stdev(values) / 3**0.5
    assert f"[{statistics.mean(values) - half:.1f}, {statistics.mean(values) + half:.1f}]" in shown
    assert "SYNTHETIC DATA. val split, segment level, modality protocol" in shown
    assert "event level" not in shown
    assert "select on val, report test once" in one_line(shown)


def test_options_show_further_tables(two):
    shown = avvp_compare(*two, "--view", "all", "--group", "all", "--subsets", "--per-class", "--split", "val")
    for protocol in ("joint", "modality", "none"):
        for level in ("segment", "event"):
            assert f"val split, {level} level, {protocol} protocol, in %" in shown
            assert f"val split, {level} level, {protocol} protocol, without Speech, in %" in shown
        assert f"val split, {protocol} protocol, by class: segment and event scores in %" in shown
    assert "Frying_(food)" in shown
    assert "test split" not in shown


def test_one_seed_has_no_interval_and_a_note(tmp_path):
    shown = one_line(avvp_compare(write_run(tmp_path / "a", "optim.lr=1e-3"), write_run(tmp_path / "b", gain=0.2)))
    assert "one seed, therefore no spread and no interval: optim.lr=0.001, optim.lr=0.0005" in shown
    assert "train more seeds" in shown
    assert "±" not in shown.split("data: llp")[0]


def rows_of(path, **wanted):
    """Return the rows of a CSV with these values."""
    return [row for row in csv.DictReader(io.StringIO(path.read_text())) if wanted.items() <= row.items()]


def difference(path, **wanted):
    """Return the only tested row with these values."""
    (row,) = [row for row in rows_of(path, **wanted) if row["difference"]]
    return {key: float(value) if re.fullmatch(r"[-+.e\d]+", value) else value for key, value in row.items()}


def test_better_settings_differ_and_equal_ones_do_not(two, tmp_path):
    out = tmp_path / "scores.csv"
    avvp_compare(*two, *seeds(tmp_path, "equal", "method.temperature=0.3"), "--csv", out)
    better = difference(out, split="test", setting="method.temperature=0.2")
    assert better["difference"] == pytest.approx(10, abs=1)
    assert better["videos_p_holm"] < 0.001
    assert 0 < better["seeds_low"] < better["videos_low"] < 10 < better["videos_high"] < better["seeds_high"]
    equal = difference(out, split="test", setting="method.temperature=0.3")
    assert equal["videos_low"] <= 0 <= equal["videos_high"]
    assert equal["videos_p"] > 0.3


def test_another_setting_raises_p_values_but_leaves_intervals(two, tmp_path):
    alone, together = tmp_path / "alone.csv", tmp_path / "together.csv"
    avvp_compare(*two, "--csv", alone)
    avvp_compare(*two, *seeds(tmp_path, "third", "method.temperature=0.3", gain=0.1), "--csv", together)
    one, other = (difference(path, split="val", setting="method.temperature=0.2") for path in (alone, together))
    assert one["videos_p_holm"] == one["videos_p"] == other["videos_p"]
    assert other["videos_p_holm"] == pytest.approx(2 * other["videos_p"])
    assert other["seeds_low"] == pytest.approx(one["seeds_low"])


def test_baseline_is_chosen_by_label_or_run(two):
    by_label = avvp_compare(*two, "--baseline", "method.temperature=0.2")
    assert "minus that of method.temperature=0.2" in one_line(by_label)
    assert by_label == avvp_compare(*two, "--baseline", two[4])
    with pytest.raises(ConfigError, match=r"did you mean 'method.temperature=0.2'"):
        avvp_compare(*two, "--baseline", "temperature=0.2")


def test_select_ranks_by_val_and_leaves_other_test_scores_unread(tmp_path):
    runs = [
        *seeds(tmp_path, "tempting", "method.temperature=0.1", val=0.0, test=0.3),
        *seeds(tmp_path, "best", "method.temperature=0.2", val=0.1, test=0.0),
    ]
    files = {name: tmp_path / f"out.{name}" for name in ("csv", "markdown", "latex")}
    shown = avvp_compare(*runs, "--select", *(part for name, path in files.items() for part in (f"--{name}", path)))
    assert "selected on val by segment.type (modality): method.temperature=0.2, the best of 2" in one_line(shown)
    assert shown.index("★ method.temperature=0.2") < shown.index("method.temperature=0.1")
    assert {row["setting"] for row in rows_of(files["csv"], split="test")} == {"method.temperature=0.2"}
    assert not [row for row in rows_of(files["csv"], split="test") if row["difference"]]
    assert len({row["setting"] for row in rows_of(files["csv"], split="val")}) == 2
    ((worse, _), _) = read_settings(runs)
    secret = f"{statistics.mean(worse.values('test', 'modality', 'segment.type')):.1f}"
    assert not [text for text in (shown, *(path.read_text() for path in files.values())) if secret in text]
    assert secret in avvp_compare(*runs)


def test_a_baseline_that_was_not_selected_is_tested_on_val_only(two, tmp_path):
    out = tmp_path / "scores.csv"
    avvp_compare(*two, "--select", "--baseline", "method.temperature=0.1", "--csv", out)
    assert [row["split"] for row in rows_of(out) if row["difference"]] == ["val"]


def test_select_rejects_settings_that_cannot_be_ranked(two, tmp_path):
    with pytest.raises(DataError, match="settings on different data cannot be ranked"):
        avvp_compare(*two, write_run(tmp_path / "other", fingerprint="fedcba9876543210"), "--select")
    with pytest.raises(ConfigError, match="--select ranks by val"):
        avvp_compare(*two, "--select", "--split", "test")


def test_runs_on_other_data_are_shown_but_not_tested(two, tmp_path):
    other = write_run(tmp_path / "real", fingerprint="fedcba9876543210", synthetic=False)
    shown = one_line(avvp_compare(*two[:3], other))
    assert "DATA DIFFER" in shown
    assert "not tested: data.fingerprint=fedcba987654" in shown
    assert "minus that of" not in shown
    assert "method.temperature=0.1 (synthetic)" in shown


def test_missing_video_scores_are_reported_with_the_command_that_writes_them(two, tmp_path):
    bare = write_run(tmp_path / "bare", "method.temperature=0.3", per_video=False)
    shown = "".join(avvp_compare(*two, bare).split())
    assert f"`avvpevaluate{bare}`writesit" in shown
    assert "minusthatofmethod.temperature=0.1" in shown  # the others are tested


def test_video_scores_of_other_networks_are_not_used(tmp_path):
    runs = [write_run(tmp_path / "a", "optim.lr=1e-3"), write_run(tmp_path / "b", gain=0.2)]
    (tmp_path / "a" / "per_video.npz").write_bytes((tmp_path / "b" / "per_video.npz").read_bytes())
    shown = one_line(avvp_compare(*runs))
    assert "belongs to another network than result.json" in shown
    assert "minus that of" not in shown
    (tmp_path / "a" / "per_video.npz").write_bytes(b"torn")
    assert "not a file of statistics per video" in one_line(avvp_compare(*runs))


def test_different_views_are_reported_and_one_is_used(tmp_path):
    runs = [write_run(tmp_path / "han", recipe="han"), write_run(tmp_path / "jomold")]
    shown = one_line(avvp_compare(*runs))
    assert "VIEWS DIFFER" in shown
    assert "joint: han; modality: jomold" in shown
    assert "joint protocol, in %" in shown
    assert "modality protocol, in %" not in shown
    assert "modality protocol, in %" in avvp_compare(*reversed(runs))


def test_mistakes_are_reported(two):
    with pytest.raises(ConfigError, match="runs: missing"):
        avvp_compare()
    with pytest.raises(ConfigError, match="segment.tpye"):
        avvp_compare(*two, "--metric", "segment.tpye")
    with pytest.raises(ConfigError) as caught:
        avvp_compare(*two, "--view", "jiont", "--group", "segments")
    assert "--view 'jiont': unknown; valid names: own, all, joint, modality, none, joint/without_speech" in str(caught.value)
    assert "--group 'segments': unknown; valid names: own, all, segment, event" in str(caught.value)


def test_former_names_of_options_are_accepted(two):
    former = avvp_compare(*two, "--score", "event.audio", "--protocol", "joint", "--level", "all")
    assert former == avvp_compare(*two, "--metric", "event.audio", "--view", "joint", "--group", "all")


def test_views_and_metrics_of_a_subset_can_be_compared(two, tmp_path):
    out = tmp_path / "scores.csv"
    shown = avvp_compare(*two, "--view", "modality/without_speech", "--csv", out)
    assert "val split, segment level, modality protocol, without Speech, in %" in shown
    assert difference(out, split="val", view="modality/without_speech", setting="method.temperature=0.2")
    assert rows_of(out, view="joint", metric="event.visual", **{"class": "Speech"})
    assert not rows_of(out, view="joint/without_speech", **{"class": "Speech"})
    assert not rows_of(out, metric="event.visual", **{"class": "Frying_(food)"})  # a class without a score has no row


def test_runs_of_several_tasks_are_refused(two):
    for run in two[3:]:
        path = Path(run) / "result.json"
        result = json.loads(path.read_text())
        path.write_text(json.dumps({**result, "task": {**result["task"], "name": "sorting"}}))
    with pytest.raises(DataError, match=r"(?s)several tasks cannot be compared.*parsing: method.*sorting: method"):
        avvp_compare(*two)
    shown = one_line(avvp_compare(*two[3:]))  # a task that is not installed: scores are shown, but cannot be tested
    assert "val split, segment level, modality protocol" in shown
