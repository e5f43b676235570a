"""Recipes, overrides, and error messages about them."""

import pytest

from avvp_dist.errors import ConfigError
from avvp_dist.experiments.earlier_keys import warn_once
from avvp_dist.experiments.recipe import load, recipes
from avvp_dist.methods import METHODS
from avvp_dist.methods.han import HanMethodConfig
from avvp_dist.models import MODELS


@pytest.mark.parametrize("name", recipes())
def test_every_shipped_recipe_loads_and_loads_from_its_own_dump(name, tmp_path):
    config = load(name)
    path = tmp_path / f"{name}.yaml"
    path.write_text(config.to_yaml())
    assert load(str(path)) == config
    assert config.method.name in METHODS


def test_a_dump_holds_no_password():
    assert "hunter2" not in load("han", ["tracking.uri=http://me:hunter2@server:5000"]).to_yaml()


def test_published_hyper_parameters():
    han, jomold = load("han"), load("jomold")
    assert (han.seed, han.train.epochs, han.train.batch_size) == (1, 40, 16)
    assert (han.optim.lr, han.optim.step_size, han.optim.gamma, han.optim.weight_decay) == (3e-4, 10, 0.1, 0)
    assert (han.task.protocol, han.evaluate.select) == ("joint", "segment.type")
    assert (han.model.dropout, han.model.visual_dropout, han.method.visual_smoothing) == (0.1, 0, 0.1)
    assert (jomold.seed, jomold.train.epochs, jomold.train.batch_size) == (6, 25, 128)
    assert (jomold.optim.lr, jomold.optim.step_size, jomold.optim.gamma) == (5e-4, 6, 0.25)
    assert (jomold.task.protocol, jomold.evaluate.select) == ("modality", "event.audio")
    assert (jomold.model.visual_dropout, jomold.method.audio_weight, jomold.method.temperature) == (0.5, 2, 0.2)
    assert (jomold.method.audio_threshold, jomold.method.visual_threshold, jomold.method.warmup_epochs) == (0.6, 1.8, 0.9)


def test_overrides_of_nested_keys_and_shorthands():
    config = load(
        "jomold", ["launch=ray", "launch.workers=2", "optim.lr=1e-3", "data=s3://bucket/llp", "method.rounding=carry"]
    )
    assert (config.launch.name, config.launch.workers) == ("ray", 2)
    assert config.optim.lr == 1e-3
    assert config.data.url == "s3://bucket/llp"
    assert config.method.rounding == "carry"


def test_the_name_of_an_optimizer_has_a_shorthand():
    assert load("han", ["optim=adamw"]).optim.name == "adamw"


def test_a_value_in_place_of_a_section_is_refused_with_one_of_its_keys():
    with pytest.raises(ConfigError, match=r"evaluate: is a section; set its keys instead, e\.g\. evaluate\.select="):
        load("han", ["evaluate=segment.type"])


def test_order_of_shorthand_and_detail_does_not_matter():
    assert load("han", ["launch.workers=2", "launch=ray"]).launch == load("han", ["launch=ray", "launch.workers=2"]).launch


def test_another_method_starts_from_its_own_defaults():
    config = load("jomold", ["method=han"])
    assert config.method == HanMethodConfig()


RECIPES = {recipe: load(recipe) for recipe in recipes()}


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (recipe, name)
        for recipe, config in RECIPES.items()
        for name, variant in MODELS.items()
        if config.model.name != name and config.model.tracks == variant.tracks
    ],
)
def test_another_network_starts_from_its_own_defaults(recipe, name):
    variant = MODELS[name]
    assert load(recipe, [f"model={name}"]).model == variant()
    assert load(recipe, [f"model={name}", "model.width=32"]).model == variant(width=32)
    assert load(recipe, ["model.width=32", f"model={name}"]).model == variant(width=32)


@pytest.fixture
def warnings(caplog):
    warn_once.cache_clear()
    caplog.set_level("WARNING", "avvp_dist")
    return caplog


def test_a_warning_names_the_settings_of_the_recipe_that_another_network_does_not_use(warnings):
    load("valor", ["model=ave-llp", "model.visual_dropout=0.5"])
    [warning] = warnings.messages
    assert warning.startswith(
        "model=ave-llp replaces model han of recipe valor; not applied: model.width=512, model.feedforward=1024"
    )
    assert "visual_dropout" not in warning  # set explicitly
    assert "model ave-llp uses its own defaults" in warning


def test_a_warning_says_that_a_recipe_was_written_for_another_method(warnings):
    config = load("jomold", ["method=ma", "method.refine=audio"])
    assert config.method.refine == "audio"
    [warning] = warnings.messages
    assert "method=ma replaces method jomold of recipe jomold; not applied: method.audio_threshold=0.6" in warning
    assert "train and optim settings are still those chosen for jomold" in warning
    assert "recipe ma has the published settings of ma" in warning


def test_warnings_about_a_recipe_are_logged_once(warnings):
    for _ in range(3):
        load("jomold", ["method=han"])
    assert len(warnings.messages) == 1


def test_the_network_and_method_of_the_recipe_itself_give_no_warning(warnings):
    load("jomold", ["model=han", "method=jomold", "model.heads=8"])
    load("jomold", ["model=ave-llp", "model=han"])  # the last one counts
    assert load("jomold", ["model=ave-llp", "model=han"]).model == load("jomold").model
    assert not warnings.messages


def test_a_method_refuses_the_keys_of_another():
    with pytest.raises(ConfigError, match=r"method.warmup: unknown key of method 'ma'. Valid names: .*refine"):
        load("jomold", ["method=ma", "method.warmup=linear"])


def test_another_launcher_or_tracker_keeps_the_settings_of_the_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: han\nmethod: {name: han}\nlaunch: {name: local, cpus_per_worker: 2}\n"
        "tracking: {name: none, experiment: mine}\n"
    )
    config = load(str(path), ["launch=ray", "tracking=mlflow", "model=han"])
    assert (config.launch.name, config.launch.cpus_per_worker) == ("ray", 2)
    assert (config.tracking.name, config.tracking.experiment) == ("mlflow", "mine")


def test_a_network_refuses_the_keys_of_another():
    with pytest.raises(ConfigError) as caught:
        load("jomold", ["model=ave-llp", "model.heads=8", "model.width=15"])
    assert sorted(caught.value.problems) == [
        "model.heads: unknown key of model 'ave-llp'. Valid names: name, visual_dropout, width",
        "model.width: Input should be a multiple of 2, got 15",
    ]
    with pytest.raises(ConfigError, match=r"unknown model 'alexnet'.*'han', 'ave-llp', 'avslowfast'"):
        load("jomold", ["model=alexnet"])


def test_a_recipe_without_a_network_is_refused_with_the_valid_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {width: 32}\nmethod: {name: han}\n")
    with pytest.raises(
        ConfigError, match=r"model.name: missing; this key is required. Valid names: 'han', 'ave-llp', 'avslowfast'"
    ):
        load(str(path))


def test_all_problems_are_listed_with_path_and_valid_names():
    with pytest.raises(ConfigError) as caught:
        load("jomold", ["method.warmpu=linear", "optim.lr=-1", "train.epochs=soon", "task.protocol=both", "sede=3"])
    problems = caught.value.problems
    assert len(problems) == 5
    text = "\n".join(problems)
    assert "method.warmpu: unknown key of method 'jomold'; did you mean 'warmup'?" in text
    assert "rounding" in text  # the valid names of the section with the typo
    assert "optim.lr:" in text
    assert "greater than 0" in text
    assert "train.epochs:" in text
    assert "'soon'" in text
    assert "task.protocol:" in text
    assert "'modality'" in text
    assert "sede: unknown key; did you mean 'seed'?" in text


def test_an_unknown_method_is_refused_with_the_valid_names():
    with pytest.raises(ConfigError, match=r"unknown method 'jomoldd'.*'han', 'jomold'"):
        load("han", ["method=jomoldd"])


def test_an_unknown_recipe_is_refused_with_the_valid_names():
    with pytest.raises(ConfigError, match=r"unknown recipe 'jomld'; did you mean 'jomold'\? Valid names: .*han, .*jomold"):
        load("jomld")


def test_all_invalid_overrides_are_listed():
    with pytest.raises(ConfigError) as caught:
        load("han", ["optim.lr", "=3", "optim..lr=2"])
    assert len(caught.value.problems) == 3


def test_missing_and_broken_recipe_files(tmp_path):
    with pytest.raises(ConfigError, match="no such recipe file"):
        load(str(tmp_path / "mine.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("optim: [1, 2\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(str(broken))


def test_elastic_workers_need_ray_and_a_range():
    launch = load("han", ["launch=ray", "launch.workers=4", "launch.min_workers=2"]).launch
    assert (launch.min_workers, launch.workers) == (2, 4)
    with pytest.raises(ConfigError, match="launch: .*min_workers=3 is more than workers=2"):
        load("han", ["launch=ray", "launch.workers=2", "launch.min_workers=3"])
    with pytest.raises(ConfigError, match="launch: .*min_workers=1 needs name=ray"):
        load("han", ["launch.workers=2", "launch.min_workers=1"])
    with pytest.raises(ConfigError, match="launch.min_workers"):
        load("han", ["launch=ray", "launch.min_workers=0"])


@pytest.mark.parametrize("value", ["inf", "-inf", ".nan", "nan", "1e999"])
@pytest.mark.parametrize("key", ["optim.lr", "data.memory_gb", "task.segment_threshold", "method.visual_smoothing"])
def test_numbers_that_are_not_finite_are_refused_with_their_key(key, value):
    with pytest.raises(ConfigError, match=f"{key}: Input should be a finite number"):
        load("han", [f"{key}={value}"])
