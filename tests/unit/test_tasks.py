"""Tasks: scores of parsing, results of earlier versions, what a config may combine."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_runs import CLASSES, VIDEOS, avvp_compare, one_line, seeds, write_run

from avvp_dist.datasets.catalog import LLP
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.experiments.comparison import read_settings
from avvp_dist.experiments.earlier_keys import present_keys, warn_once
from avvp_dist.experiments.recipe import load, run_folder, stage_config
from avvp_dist.experiments.result import read_result
from avvp_dist.experiments.run import _write_config
from avvp_dist.methods.base import MethodSection
from avvp_dist.metrics.names import KINDS, LEVELS, METRICS, PROTOCOLS
from avvp_dist.metrics.parsing import apply_protocol, per_class, score
from avvp_dist.tasks import DEFAULT_TASK, TASKS
from avvp_dist.tasks.base import as_content, describe, evaluate
from avvp_dist.tasks.parsing import ParsingConfig
from avvp_dist.train.evaluate import EvaluateConfig
from avvp_dist.train.stages import Identity

METRIC_NAMES = [metric.name for metric in ParsingConfig.metrics]
RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "parsing_protocols.json").read_text())

each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


@pytest.fixture(scope="module")
def recorded_inputs():
    """The outputs and the ground truth whose figures are in parsing_protocols.json, drawn as they were then."""
    rng = np.random.default_rng(14)
    videos, segments, classes = 24, 10, 25
    weak = rng.random((videos, classes)) < 0.08
    truth = {track: (rng.random((videos, segments, classes)) < 0.5) & weak[:, None] for track in ("audio", "visual")}
    drawn = rng.random((videos, segments, 2, classes)) * (0.25 + 0.75 * weak[:, None, None])
    probabilities = drawn.astype(np.float32)
    rows = {
        "video": probabilities.max((1, 2)),
        "modalities": probabilities.mean(1) * 1.4,
        "segments": probabilities,
    }
    return rows, truth


def flat(levels):
    """Nested figures of earlier versions by dotted name."""
    return {f"{level}.{name}": value for level in LEVELS for name, value in levels[level].items()}


@each_protocol
def test_figures_equal_those_recorded_before_tasks_existed(recorded_inputs, protocol):
    rows, truth = recorded_inputs
    expected = RECORDED[protocol]
    thresholds = {name: expected[name] for name in ("segment_threshold", "video_threshold")}
    assert thresholds == {"segment_threshold": 0.45, "video_threshold": 0.4}
    task = ParsingConfig(protocol=protocol, **thresholds).build(LLP.classes)
    scores = evaluate(task, rows, truth)
    assert task.settings() == thresholds
    assert scores[protocol].metrics == flat(expected)
    assert scores[protocol].per_class == {name: flat(levels) for name, levels in expected["per_class"].items()}
    assert scores[protocol].statistics.tolist() == expected["per_video"]
    subset = scores[f"{protocol}/without_speech"]
    assert subset.metrics == flat(expected["without_speech"])
    assert subset.per_class == {}
    assert subset.statistics.tolist() == expected["per_video_without"]


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_metrics_are_recomputed_from_the_statistics_of_videos(recorded_inputs, metric):
    rows, truth = recorded_inputs
    task = ParsingConfig(segment_threshold=0.45, video_threshold=0.4).build(LLP.classes)
    videos = len(rows["video"])
    for view, scores in evaluate(task, rows, truth).items():
        (once,) = ParsingConfig.recompute(scores.statistics, np.ones((1, videos)), metric)
        assert once == pytest.approx(scores.metrics[metric], abs=1e-9), view
    drawn = np.array([0, 0, 5, 7, 7, 7])  # a multiset of videos scores as a split with these videos
    weights = np.bincount(drawn, minlength=videos)[None].astype(float)
    of_drawn = task.score(
        {name: array[drawn] for name, array in rows.items()}, {name: array[drawn] for name, array in truth.items()}, "joint"
    )
    statistics = task.score(rows, truth, "joint").statistics
    found = ParsingConfig.recompute(statistics, np.concatenate([weights, 3 * weights]), metric)
    assert found == pytest.approx([of_drawn.metrics[metric]] * 2, abs=1e-9)


def random_outputs(classes, seed=7):
    rng = np.random.default_rng(seed)
    n, t, c = 6, 10, len(classes)
    rows = {"video": rng.random((n, c)), "modalities": rng.random((n, 2, c)), "segments": rng.random((n, t, 2, c))}
    return rows, {track: rng.random((n, t, c)) < 0.3 for track in ("audio", "visual")}


def test_a_result_has_all_scores_of_every_view():
    classes = ("Dog", "Speech", "Never", "Cat")
    rows, truth = random_outputs(classes)
    for events in (*truth.values(), rows["segments"]):
        events[..., 2] = 0
    task = ParsingConfig(protocol="modality", segment_threshold=0.4, video_threshold=0.3).build(classes)
    assert [view.name for view in task.views] == [*PROTOCOLS, *(f"{name}/without_speech" for name in PROTOCOLS)]
    assert task.view == "modality"
    content = as_content(task, evaluate(task, rows, truth))
    result = content["modality"]
    audio, visual = rows["modalities"][:, 0], rows["modalities"][:, 1]
    predicted = apply_protocol(rows["video"], audio, visual, rows["segments"], "modality", 0.4, 0.3)
    pairs = (*predicted, truth["audio"], truth["visual"])
    whole, rest = score(*pairs), score(*(array[..., [0, 2, 3]] for array in pairs))
    assert result["settings"] == {"segment_threshold": 0.4, "video_threshold": 0.3}
    assert result["metrics"] == flat({"segment": whole.segment, "event": whole.event})
    assert list(result["metrics"]) == METRIC_NAMES
    assert content["modality/without_speech"]["metrics"] == flat({"segment": rest.segment, "event": rest.event})
    pooled = per_class(*pairs)
    assert list(result["per_class"]) == list(classes)
    assert result["per_class"]["Never"] == dict.fromkeys(metric.name for metric in ParsingConfig.class_metrics)
    assert result["per_class"]["Cat"] == {f"{level}.{kind}": pooled[level][kind][3] for level in LEVELS for kind in KINDS}
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_speech_is_left_out_only_if_it_is_a_class():
    assert [view.name for view in ParsingConfig().build(("Dog", "Cat")).views] == list(PROTOCOLS)
    rows, truth = random_outputs(("Dog", "Cat"))
    assert set(evaluate(ParsingConfig().build(("Dog", "Cat")), rows, truth)) == set(PROTOCOLS)


def test_a_task_for_other_classes_is_refused():
    rows, truth = random_outputs(("Dog", "Cat"))
    with pytest.raises(ValueError, match="expected 1 classes, got 2"):
        ParsingConfig().build(("Dog",)).score(rows, truth, "joint")


@pytest.mark.parametrize("section", TASKS.values())
def test_every_task_is_described_completely(section):
    task = section().build(("Speech", "Car"))
    names = [metric.name for metric in section.metrics]
    assert len(set(names)) == len(names)
    assert section.default_metric in names
    views = [view.name for view in task.views]
    assert task.view in views
    assert len(set(views)) == len(views)
    assert all(view.of in views[:number] for number, view in enumerate(task.views) if view.of)
    assert all("/" not in view.name and view.name != "ids" for view in task.views if not view.of)  # see per_video.npz
    assert [view for view in section().build(()).views if not view.of] == [view for view in task.views if not view.of]
    described = describe(task)
    assert json.loads(json.dumps(described)) == described
    assert section.metric(section.default_metric).name == section.default_metric
    with pytest.raises(KeyError):
        section.metric("no-such-metric")


# results of earlier versions


def in_earlier_form(folder):
    """Rewrite a finished run as a version without tasks wrote it: nested scores by protocol, settings under evaluate."""
    path = Path(folder) / "result.json"
    result = json.loads(path.read_text())
    del result["task"]

    def nested(metrics, names):
        return {level: {name: metrics[f"{level}.{name}"] for name in names} for level in LEVELS}

    for split, views in result["scores"].items():
        result["scores"][split] = {
            protocol: {
                **views[protocol]["settings"],
                **nested(views[protocol]["metrics"], METRICS),
                "without_speech": nested(views[f"{protocol}/without_speech"]["metrics"], METRICS),
                "per_class": {name: nested(found, KINDS) for name, found in views[protocol]["per_class"].items()},
            }
            for protocol in PROTOCOLS
        }
    path.write_text(json.dumps(result))
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    settings = config.pop("task")
    assert settings.pop("name") == "parsing"
    config["evaluate"] = {**settings, **config["evaluate"]}
    (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def test_results_of_earlier_versions_are_read(tmp_path):
    changes = ["evaluate.select=event.visual", "task.segment_threshold=0.4"]
    present = write_run(tmp_path / "present", *changes, seed=1)
    earlier = in_earlier_form(write_run(tmp_path / "earlier", *changes, seed=1))
    assert "task" not in json.loads((tmp_path / "earlier" / "result.json").read_text())
    assert read_result(earlier) == read_result(present)
    another = in_earlier_form(write_run(tmp_path / "another", *changes, seed=2))
    ((setting,), notes) = read_settings([present, another])  # one setting, whatever version its runs are of
    assert (setting.seeds, notes) == ([1, 2], [])
    assert setting.task.view == "modality"
    assert setting.scored("test", "joint")[1]["settings"]["segment_threshold"] == 0.4
    assert setting.statistics("test", "none/without_speech").shape == (2, VIDEOS["test"], 8)


def test_statistics_per_video_of_earlier_versions_are_read(tmp_path):
    run = in_earlier_form(write_run(tmp_path / "run"))
    with np.load(tmp_path / "run" / "per_video.npz") as file:  # the names of arrays never changed
        names = {f"{split}/{name}" for split in VIDEOS for name in ("ids", *PROTOCOLS)}
        assert set(file.files) == names | {f"{split}/{name}/without_speech" for split in VIDEOS for name in PROTOCOLS}
    ((setting,), _) = read_settings([run])
    assert setting.runs[0].per_video_problem == ""


def test_runs_of_earlier_versions_are_compared(tmp_path):
    runs = seeds(tmp_path, "worse", "method.temperature=0.1")
    runs += [in_earlier_form(run) for run in seeds(tmp_path, "better", "method.temperature=0.2", gain=0.1)]
    shown = one_line(avvp_compare(*runs, "--subsets", "--per-class"))
    assert "modality (segment threshold 0.5, video threshold 0.5)" in shown
    assert "test split, segment level, modality protocol, without Speech" in shown
    assert CLASSES[1] in shown
    assert "segment level minus that of method.temperature=0.1" in shown
    assert "yes" in shown  # the difference is tested
    assert "VIEWS DIFFER" not in shown


@pytest.mark.parametrize("scores", [{}, {"val": {}}, {"val": {"joint": {}}}, {"val": {"joint": {"segment": 1}}}, 3])
def test_results_that_no_version_wrote_are_reported(tmp_path, scores):
    run = in_earlier_form(write_run(tmp_path / "run"))
    path = tmp_path / "run" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": scores}))
    with pytest.raises(DataError, match=r"run/result\.json: not the result"):
        read_settings([run])


@pytest.mark.parametrize(
    "change",
    [
        {"view": "jiont"}, {"name": 3}, {"views": 3}, {"views": [{"name": "joint"}]}, {"metrics": [{"name": "a", "b": 1}]},
        {"default_metric": "accuracy"}, {"metrics": None}, {"class_metrics": ["x"]},
    ],
)  # fmt: skip
def test_a_damaged_description_of_a_task_is_reported(tmp_path, change):
    run = write_run(tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "task": {**result["task"], **change}}))
    with pytest.raises(DataError, match=r"run/result\.json: not the result"):
        read_settings([run])


def test_an_earlier_result_without_its_config_is_reported(tmp_path):
    run = in_earlier_form(write_run(tmp_path / "run"))
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(DataError, match=r"run/config\.yaml"):
        read_settings([run])


def test_folders_and_stages_of_earlier_versions_are_found():
    recorded = {  # by the version before tasks, for the same data and classes
        "han": ("5117b0d7", ["686f5a4f2bb9eab6"]),
        "jomold": ("7123f570", ["e4edee7a4ffe064a", "1a5740d17bd5873d", "df8813100aac9ae2"]),
        "ma": ("f42babeb", ["65898ef3ee4db4d0", "68fe90ceb976709f", "117e55ef9ccec385"]),
    }
    for recipe, (folder, keys) in recorded.items():
        config = load(recipe, ["output=x", "data=shards"])
        assert run_folder("s", config, "0" * 16) == f"s-seed{config.seed}-{folder}"
        stages = Identity("f", stage_config(config)).plan(config.method.build(("A", "B"), 10))
        assert [stage.key for stage in stages] == keys
    other = load("han", ["output=x", "data=shards", "task.protocol=none"])
    assert run_folder("s", other, "0" * 16) != run_folder("s", load("han", ["output=x", "data=shards"]), "0" * 16)


def test_the_folder_of_a_run_of_an_earlier_version_is_used_again(tmp_path):
    write_run(tmp_path / "run")
    in_earlier_form(tmp_path / "run")
    config = load("jomold", [f"output={tmp_path / 'run'}", "data=shards", "seed=1"])
    _write_config(config)
    with pytest.raises(ConfigError, match="task.protocol: 'modality' there, 'none' in this command"):
        _write_config(load("jomold", [f"output={tmp_path / 'run'}", "data=shards", "seed=1", "task.protocol=none"]))


# configs


@pytest.fixture
def warnings(caplog):
    warn_once.cache_clear()
    caplog.set_level("WARNING", "avvp_dist")
    return caplog


def test_keys_of_earlier_versions_are_accepted_with_one_warning(warnings):
    for _ in range(2):
        config = load("jomold", ["evaluate.protocol=none", "evaluate.segment_threshold=0.3"])
    assert (config.task.protocol, config.task.segment_threshold, config.task.video_threshold) == ("none", 0.3, 0.5)
    assert warnings.messages == [
        "evaluate.protocol is now task.protocol", "evaluate.segment_threshold is now task.segment_threshold"
    ]  # fmt: skip


def test_a_key_given_under_its_earlier_and_its_present_name_is_refused():
    with pytest.raises(ConfigError, match=r"evaluate\.protocol: now task\.protocol, which is set as well"):
        load("han", ["evaluate.protocol=joint", "task.protocol=modality"])


def test_recipes_of_earlier_versions_are_accepted(tmp_path, warnings):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: {name: han}\nmethod: {name: han}\nevaluate: {protocol: none, video_threshold: 0.2, ties: first}\n"
    )
    config = load(str(path))
    assert config.task == ParsingConfig(name="parsing", protocol="none", video_threshold=0.2)
    assert config.evaluate == EvaluateConfig(select="segment.type", ties="first")
    assert load(str(path), ["task.protocol=joint"]).task.protocol == "joint"
    assert not warnings.messages


def test_settings_of_a_task_that_is_not_named_are_those_of_the_default_task(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {name: han}\nmethod: {name: han}\n")
    assert load(str(path)).task == DEFAULT_TASK()
    assert load(str(path), ["task.protocol=none"]).task == ParsingConfig(protocol="none")
    assert load(str(path), ["task=parsing"]).task == ParsingConfig()
    path.write_text("model: {name: han}\nmethod: {name: han}\ntask: {protocol: none}\n")
    assert load(str(path)).task == ParsingConfig(protocol="none")
    for odd in ("task: parsing", "task: [1]", "task: null"):
        path.write_text(f"model: {{name: han}}\nmethod: {{name: han}}\nevaluate: {{protocol: none}}\n{odd}\n")
        with pytest.raises(ConfigError):
            load(str(path))
    assert present_keys({"evaluate": 3, "task": 4}) == {"evaluate": 3, "task": 4}


def test_the_default_metric_of_the_task_is_resolved(tmp_path):
    config = load("jomold", ["evaluate.select=null"])
    assert config.evaluate.select == ParsingConfig.default_metric
    assert "select: segment.type" in config.to_yaml()
    assert config == load("jomold", ["evaluate.select=segment.type"])


def test_an_unknown_metric_is_refused_with_a_hint():
    with pytest.raises(ConfigError) as caught:
        load("han", ["evaluate.select=segment.tpye"])
    message = str(caught.value)
    assert "evaluate.select: unknown metric 'segment.tpye'; did you mean 'segment.type'?" in message
    assert "Valid names: segment.audio, " in message
    assert message.rstrip().endswith("event.event, last")


def test_a_network_or_method_that_does_not_serve_the_task_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(ParsingConfig, "tracks", ("event",))
    monkeypatch.setattr(ParsingConfig, "background", True)
    with pytest.raises(ConfigError) as caught:
        load("jomold")
    reason = "cannot be used for task 'parsing': it predicts the tracks audio and visual; the task has the track event"
    assert caught.value.problems == [f"model.name: network 'han' {reason}", f"method.name: method 'jomold' {reason}"]


def test_a_recipe_is_not_used_for_another_task():
    with pytest.raises(ConfigError) as caught:
        load("han", ["task=localization", "evaluate.select=segment.type"])
    keys = [problem.partition(":")[0] for problem in caught.value.problems]
    assert keys == ["model.name", "method.name", "evaluate.select"]
    with pytest.raises(ConfigError, match=r"unknown task 'sorting'. Valid names: .*'parsing'"):
        load("han", ["task=sorting"])


def test_reasons_why_a_task_is_not_served(monkeypatch):
    assert ParsingConfig.unsuitable(("audio", "visual"), False) == ""
    assert ParsingConfig.unsuitable(None, None) == ""
    assert (
        ParsingConfig.unsuitable(("event",), None) == "it predicts the track event; the task has the tracks audio and visual"
    )
    assert ParsingConfig.unsuitable(None, True) == "it has a class for the background; the task needs none"
    monkeypatch.setattr(ParsingConfig, "background", True)
    assert ParsingConfig.unsuitable(None, False) == "it has no class for the background; the task needs one"
    assert MethodSection.tracks == ("audio", "visual")


def test_the_better_epoch_depends_on_the_direction_of_the_metric(monkeypatch):
    config = EvaluateConfig(ties="first")
    assert config.is_better(ParsingConfig, 2.0, 1.0)
    assert not config.is_better(ParsingConfig, 1.0, 2.0)
    lower = [metric.__class__(metric.name, "", "", higher_is_better=False) for metric in ParsingConfig.metrics]
    monkeypatch.setattr(ParsingConfig, "metrics", tuple(lower))
    assert config.is_better(ParsingConfig, 1.0, 2.0)
    assert not config.is_better(ParsingConfig, 2.0, 1.0)
    assert not config.is_better(ParsingConfig, 1.0, 1.0)
    assert EvaluateConfig().is_better(ParsingConfig, 1.0, 1.0)  # of equally good epochs the later one
