"""Search spaces: the settings and trials of a sweep file."""

from dataclasses import replace

import pytest

from avvp_dist.errors import ConfigError
from avvp_dist.experiments import sweep as sweeps
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.sweep import SweepConfig, label, sweep_points, trials, with_metric
from avvp_dist.tasks.parsing import ParsingConfig


def spec(**content):
    return SweepConfig.model_validate(
        {"title": "t", "recipe": "jomold", "space": {"method.temperature": {"grid": [0.1, 0.2]}}} | content
    )


def test_grid_crosses_all_keys_and_conditions_leave_keys_out():
    space = {
        "method.warmup": {"grid": ["published", "linear"]},
        "method.warmup_epochs": {"choice": [1.0, 2.0], "when": {"method.warmup": "linear"}},
    }
    assert sweep_points(spec(space=space)) == [
        {"method.warmup": "published"},
        {"method.warmup": "linear", "method.warmup_epochs": 1.0},
        {"method.warmup": "linear", "method.warmup_epochs": 2.0},
    ]


def test_steps_are_rounded_and_integers_stay_integers():
    space = {
        "method.temperature": {"uniform": [0.1, 0.5], "step": 0.1},
        "train.batch_size": {"uniform": [32, 128], "step": 32},
    }
    found = sweep_points(spec(space=space))
    assert [s["method.temperature"] for s in found[::4]] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [s["train.batch_size"] for s in found[:4]] == [32, 64, 96, 128]
    assert all(isinstance(s["train.batch_size"], int) for s in found)


def test_random_settings_are_distinct_within_bounds_and_reproducible():
    space = {"optim.lr": {"loguniform": [1e-5, 1e-3]}, "method.rounding": {"choice": ["floor", "carry"]}}
    sweep = spec(space=space, search={"name": "random", "samples": 50})
    found = sweep_points(sweep)
    assert found == sweep_points(sweep)
    assert len({s["optim.lr"] for s in found}) == 50
    assert all(1e-5 <= s["optim.lr"] <= 1e-3 for s in found)
    assert 15 < sum(s["optim.lr"] < 1e-4 for s in found) < 35  # uniform in the logarithm
    more = sweep_points(spec(space=space, search={"name": "random", "samples": 60}))
    assert more[:50] == found  # more samples keep the ones already trained


def test_random_search_of_a_small_space_ends():
    assert len(sweep_points(spec(search={"name": "random", "samples": 50}))) == 2


def test_trials_are_settings_times_seeds_with_stable_names():
    sweep = spec(seeds=[1, 2])
    found = trials(sweep, sweep_points(sweep), ["data=x"], "fingerprint")
    assert [(t.seed, t.config.method.temperature, t.config.seed) for t in found] == [
        (1, 0.1, 1),
        (1, 0.2, 1),
        (2, 0.1, 2),
        (2, 0.2, 2),
    ]
    assert len({t.name for t in found}) == 4
    again = trials(spec(seeds=[2, 3]), sweep_points(sweep), ["data=x"], "fingerprint")
    assert {t.name for t in again} & {t.name for t in found} == {t.name for t in found if t.seed == 2}
    assert not {t.name for t in trials(sweep, sweep_points(sweep), ["data=x"], "other data")} & {t.name for t in found}


def test_a_limit_on_trials_completes_one_seed_after_another():
    sweep = spec(seeds=[1, 2], trials=3)
    assert [t.seed for t in trials(sweep, sweep_points(sweep), [], "f")] == [1, 1, 2]


def test_all_problems_are_reported_together():
    sweep = spec(space={"method.temperture": {"grid": [1]}, "method.audio_threshold": {"grid": [-1.0]}})
    with pytest.raises(ConfigError) as error:
        trials(sweep, sweep_points(sweep), [], "f")
    assert "did you mean 'temperature'" in str(error.value)
    assert "audio_threshold" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"space": {"seed": {"grid": [1]}}}, "use seeds"),
        ({"space": {"a": {"grid": [1], "choice": [1]}}}, "exactly one of"),
        ({"space": {"a": {"uniform": [2, 1]}}}, "first bound"),
        ({"space": {"a": {"loguniform": [0, 1]}}, "search": {"name": "random"}}, "above 0"),
        ({"space": {"a": {"uniform": [0, 1]}}}, "needs a finite number of values"),
        ({"space": {"a": {"grid": [1], "when": {"b": 1}}, "b": {"grid": [1]}}}, "listed before it"),
        ({"seeds": [1, 1]}, "distinct integers"),
        ({"scheduler": {"name": "pbt"}}, "search.name=random"),
        ({"scheduler": {"name": "asha"}, "space": {"train.epochs": {"grid": [1]}}}, "different length"),
        ({"sedes": [1]}, "sedes"),
    ],
)
def test_an_invalid_sweep_is_refused(content, message, tmp_path):
    import yaml

    base = {"title": "t", "recipe": "jomold", "space": {"method.temperature": {"grid": [0.1]}}}
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(base | content))
    with pytest.raises(ConfigError, match=message):
        sweeps.read(str(path))


def test_overrides_cannot_set_what_the_sweep_varies():
    with pytest.raises(ConfigError) as error:
        trials(spec(), [{}], ["method.temperature=1", "seed=3", "output=x"], "f")
    assert len(error.value.problems) == 3


@pytest.mark.parametrize("name", sweeps.sweeps())
def test_shipped_sweeps_can_be_run(name):
    _, sweep = sweeps.read(name)
    assert trials(sweep, sweep_points(sweep), ["data=x"], "f")


def test_labels_are_short_but_unambiguous():
    assert label({"method.tau": 0.5, "optim.lr": 1e-4}) == "tau=0.5, lr=0.0001"
    assert label({"method.name": "ma", "model.name": "han"}) == "method.name=ma, model.name=han"


def test_metric_and_mode_are_those_of_the_task_unless_the_sweep_sets_them(monkeypatch):
    base = load("jomold")
    assert (spec().metric, spec().mode) == (None, None)
    default = with_metric(spec(), base)
    assert (default.metric, default.mode) == ("segment.type", "max")
    assert with_metric(default, base) == default
    assert with_metric(spec(metric="event.audio"), base).metric == "event.audio"
    lower = tuple(replace(metric, higher_is_better=False) for metric in ParsingConfig.metrics)
    monkeypatch.setattr(ParsingConfig, "metrics", lower)
    assert with_metric(spec(), base).mode == "min"
    assert with_metric(spec(mode="max"), base).mode == "max"
    with pytest.raises(ConfigError, match=r"task parsing has no metric 'segment.tpye'; did you mean 'segment.type'\?"):
        with_metric(spec(metric="segment.tpye"), base)
