"""Cache keys of stages: they change with everything that can change the artifact, and with nothing else."""

import json
from typing import Literal, get_args, get_origin

import pytest

from avvp_dist.config import Section
from avvp_dist.experiments.recipe import load, stage_config
from avvp_dist.methods import METHODS
from avvp_dist.methods.base import CollectStage, Method, TrainStage
from avvp_dist.train.stages import Identity

CLASSES = ("Speech", "Dog", "Car")
# the published methods' stages that do not depend on a key of the method
UNAFFECTED = {
    "jomold": {
        "warmup": ["estimate", "ratios"],
        "warmup_epochs": ["estimate", "ratios"],
        "rounding": ["estimate", "ratios"],
        "ranking_dropout": ["estimate", "ratios"],
        "overlap": ["estimate", "ratios"],
        "audio_weight": ["estimate", "ratios"],
        "audio_threshold": ["estimate"],
        "visual_threshold": ["estimate"],
        "visual_target": ["estimate"],
    },
    "ma": {"refine": ["base"], "rule": ["base"], "aliasing": ["base"], "partners": ["base"], "partner_seed": ["base"]},
    "lr": {"refine": ["base"], "tau": ["base"], "partner_seed": ["base"]},
}
VALUES = {
    ("lr", "window"): 2,
    ("lr", "base_epochs"): 3,
    ("poibin", "mil_epochs"): 3,
    ("em-mil", "phases"): "[1, 1, 1, 1]",
}  # values to change to, for keys whose valid values depend on other keys


def keys(config, fingerprint="data", **more):
    method = config.method.build(CLASSES, 10)
    return {planned.stage.name: planned.key for planned in Identity(fingerprint, stage_config(config), **more).plan(method)}


def unchanged(keys, others):
    return [name for name in keys if keys[name] == others.get(name)]


def other_value(name, key, value):
    if (name, key) in VALUES:
        return VALUES[name, key]
    annotation = METHODS[name].model_fields[key].annotation
    if get_origin(annotation) is Literal:
        return next(option for option in get_args(annotation) if option != value)
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else 0.37


def unaffected(method, key):
    """Stages that list the key as irrelevant and need no stage that depends on it."""
    names = []
    for stage in method.stages:
        if key in stage.irrelevant and set(stage.needs) <= set(names):
            names.append(stage.name)
    return names


def fields():
    for name, config in METHODS.items():
        yield from ((name, key) for key in config.model_fields if key not in ("name", "ratios"))


@pytest.mark.parametrize(("name", "key"), list(fields()))
def test_a_key_of_the_method_changes_every_stage_that_does_not_list_it_as_irrelevant(name, key):
    config = load(name, ["output=x"])
    value = getattr(config.method, key)
    changed = load(name, ["output=x", f"method.{key}={other_value(name, key, value)}"])
    assert getattr(changed.method, key) != value
    assert unchanged(keys(config), keys(changed)) == unaffected(config.method.build(CLASSES, 10), key)


@pytest.mark.parametrize("name", UNAFFECTED)
def test_irrelevant_keys_of_the_published_methods(name):
    method = load(name).method.build(CLASSES, 10)
    for key in METHODS[name].model_fields:
        if key != "ratios":  # counts by its content, see below
            assert unaffected(method, key) == UNAFFECTED[name].get(key, []), key


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "setting",
    ["seed=77", "model.width=64", "optim.lr=0.01", "train.epochs=3", "train.batch_size=9", "train.precision=bfloat16",
     "evaluate.segment_threshold=0.4"],
)  # fmt: skip
def test_the_rest_of_the_config_changes_every_stage(name, setting):
    assert unchanged(keys(load(name, ["output=x"])), keys(load(name, ["output=x", setting]))) == []


def test_a_stage_with_a_number_of_epochs_of_its_own_does_not_depend_on_that_of_the_others():
    one, other = load("ave-lr", ["output=x"]), load("ave-lr", ["output=x", "train.epochs=7"])
    assert unchanged(keys(one), keys(other)) == ["base"]


@pytest.mark.parametrize("name", METHODS)
def test_data_and_their_order_change_every_stage(name):
    config = load(name)
    assert unchanged(keys(config), keys(config, "other data")) == []
    assert unchanged(keys(config), keys(config, order={"mode": "streaming", "streams": 4})) == []


@pytest.mark.parametrize("name", METHODS)
def test_paths_and_launch_settings_change_nothing(name):
    settings = ["output=y", "store=z", "data=moved", "data.workers=7", "tracking=none", "launch=ray", "launch.workers=2"]
    settings += ["train.device=cpu", "train.check_every=3", "train.checkpoint_every=5", "evaluate.batch_size=3"]
    one, other = keys(load(name, ["output=x", "data=here"])), keys(load(name, settings))
    assert one == other


def test_a_ratio_file_counts_by_its_content(tmp_path):
    def with_file(name, ratio):
        path = tmp_path / name
        path.write_text(json.dumps({modality: dict.fromkeys(CLASSES, ratio) for modality in ("audio", "visual")}))
        return load("jomold", [f"method.ratios={path}", "method.audio_threshold=0.5"])

    first, moved, other = with_file("a.json", 0.1), with_file("b.json", 0.1), with_file("c.json", 0.2)
    assert keys(first) == keys(moved)
    assert unchanged(keys(first), keys(other)) == []
    threshold = load("jomold", [f"method.ratios={tmp_path / 'a.json'}", "method.audio_threshold=0.7"])
    assert keys(first) == keys(threshold)  # no stage uses it then


class _Train(TrainStage):
    name = "train"
    irrelevant = frozenset({"late"})

    def targets(self, *_):
        raise NotImplementedError

    def losses(self, *_):
        raise NotImplementedError


class _Collect(CollectStage):
    """A stage with only the required attributes."""

    name, source = "collect", "train"

    def collect(self, *_):
        raise NotImplementedError

    def finish(self, *_):
        raise NotImplementedError


class _Retrain(_Train):
    name, labels_from, irrelevant = "retrain", "collect", frozenset()


METHOD = Method((_Train(), _Collect(), _Retrain()))


class _Config(Section):
    early: float = 0.5
    late: float = 0.5


def test_needs_follow_from_the_source_and_the_labels_of_a_stage():
    assert [stage.needs for stage in METHOD.stages] == [(), ("train",), ("collect",)]

    def planned(fingerprint="data", seed=1, **method):
        content = {"seed": seed, "method": _Config(**method).model_dump()}
        return {stage.stage.name: stage.key for stage in Identity(fingerprint, content).plan(METHOD)}

    assert unchanged(planned(), planned("other")) == []
    assert unchanged(planned(), planned(seed=2)) == []
    assert unchanged(planned(), planned(early=0.1)) == []
    assert unchanged(planned(), planned(late=0.1)) == ["train"]


@pytest.mark.parametrize("name", METHODS)
def test_irrelevant_keys_exist(name):
    config = load(name).method
    for stage in config.build(CLASSES, 10).stages:
        assert stage.irrelevant <= set(type(config).model_fields)
