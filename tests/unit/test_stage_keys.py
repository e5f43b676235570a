"""Keys of stages: everything that may change an artifact changes its key, and what cannot does not."""

import json
from typing import get_args

import pytest

from avvp_dist.config import Section
from avvp_dist.experiments.recipe import load, stage_config
from avvp_dist.methods import METHODS, MethodConfig
from avvp_dist.methods.base import CollectStage, Method, TrainStage
from avvp_dist.train.stages import Identity

CLASSES = ("Speech", "Dog", "Car")
# stages that a key of the method does not touch; all others must be made anew
SHARED = {
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
    "lr": {"tau": ["base"], "partner_seed": ["base"]},
}
OTHER = {"refine": "audio", "loss": "weak", "warmup": "linear", "rounding": "carry", "overlap": "keep_one",
         "rule": "paper", "aliasing": "fixed", "window": 2}  # fmt: skip


def keys(config, fingerprint="data", **more):
    method = METHODS[config.method.name](config.method, CLASSES, 10)
    return {planned.stage.name: planned.key for planned in Identity(fingerprint, stage_config(config), **more).plan(method)}


def same(one, other):
    return [name for name in one if one[name] == other.get(name)]


def other_value(name, value):
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    return {"bootstrap": 0.9}.get(name, 0.37 if isinstance(value, float) else (value or 0) + 1)


def fields():
    for variant in get_args(get_args(MethodConfig)[0]):
        name = get_args(variant.model_fields["name"].annotation)[0]
        yield from ((name, key) for key in variant.model_fields if key not in ("name", "ratios"))


@pytest.mark.parametrize(("name", "key"), list(fields()))
def test_a_key_of_the_method_changes_every_stage_but_those_that_name_it_as_irrelevant(name, key):
    config = load(name, ["output=x"])
    value = getattr(config.method, key)
    changed = load(name, ["output=x", f"method.{key}={other_value(key, value)}"])
    assert getattr(changed.method, key) != value
    assert same(keys(config), keys(changed)) == SHARED.get(name, {}).get(key, [])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "setting",
    ["seed=77", "model.width=64", "optim.lr=0.01", "train.epochs=3", "train.batch_size=9", "train.precision=bfloat16",
     "evaluate.segment_threshold=0.4"],
)  # fmt: skip
def test_the_rest_of_the_config_changes_every_stage(name, setting):
    assert same(keys(load(name, ["output=x"])), keys(load(name, ["output=x", setting]))) == []


@pytest.mark.parametrize("name", METHODS)
def test_data_and_their_order_change_every_stage(name):
    config = load(name)
    assert same(keys(config), keys(config, "other data")) == []
    assert same(keys(config), keys(config, order={"mode": "streaming", "streams": 4})) == []


@pytest.mark.parametrize("name", METHODS)
def test_places_and_how_a_run_is_run_change_nothing(name):
    there = ["output=y", "store=z", "data=moved", "data.workers=7", "tracking=none", "launch=ray", "launch.workers=2"]
    there += ["train.device=cpu", "train.check_every=3", "train.checkpoint_every=5", "evaluate.batch_size=3"]
    one, other = keys(load(name, ["output=x", "data=here"])), keys(load(name, there))
    assert one == other


def test_ratios_of_a_file_count_by_their_content(tmp_path):
    def given(name, ratio):
        path = tmp_path / name
        path.write_text(json.dumps({modality: dict.fromkeys(CLASSES, ratio) for modality in ("audio", "visual")}))
        return load("jomold", [f"method.ratios={path}", "method.audio_threshold=0.5"])

    first, moved, other = given("a.json", 0.1), given("b.json", 0.1), given("c.json", 0.2)
    assert keys(first) == keys(moved)
    assert same(keys(first), keys(other)) == []
    threshold = load("jomold", [f"method.ratios={tmp_path / 'a.json'}", "method.audio_threshold=0.7"])
    assert keys(first) == keys(threshold)  # nothing reads it then


class _Train(TrainStage):
    name = "train"
    irrelevant = frozenset({"late"})

    def targets(self, *_):
        raise NotImplementedError

    def losses(self, *_):
        raise NotImplementedError


class _Collect(CollectStage):
    """As a user's method may have it: it says what network it runs, and nothing else."""

    name, source = "collect", "train"

    def collect(self, *_):
        raise NotImplementedError

    def finish(self, *_):
        raise NotImplementedError


class _Retrain(_Train):
    name, labels_from, irrelevant = "retrain", "collect", frozenset()


class _Mine(Method):
    def stages(self):
        return _Train(), _Collect(), _Retrain()


class _Config(Section):
    early: float = 0.5
    late: float = 0.5


def test_needs_follow_from_what_a_stage_runs_and_trains_on():
    assert [stage.needs for stage in _Mine().stages()] == [(), ("train",), ("collect",)]

    def planned(fingerprint="data", seed=1, **method):
        content = {"seed": seed, "method": _Config(**method).model_dump()}
        return {stage.stage.name: stage.key for stage in Identity(fingerprint, content).plan(_Mine())}

    assert same(planned(), planned("other")) == []
    assert same(planned(), planned(seed=2)) == []
    assert same(planned(), planned(early=0.1)) == []
    assert same(planned(), planned(late=0.1)) == ["train"]


@pytest.mark.parametrize("name", METHODS)
def test_stages_name_keys_that_exist(name):
    config = load(name).method
    for stage in METHODS[name](config, CLASSES, 10).stages():
        assert stage.irrelevant <= set(type(config).model_fields)
