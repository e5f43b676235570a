"""Relative paths: made absolute once, when a command starts, in every key that can hold one."""

import json
import os
import re
from typing import Annotated, get_args, get_origin

import pytest
import yaml

from avvp_dist.config import PathMarker, Section, convert_paths
from avvp_dist.errors import ConfigError
from avvp_dist.experiments import paper_tables
from avvp_dist.experiments import sweep as sweeps
from avvp_dist.experiments.recipe import RunConfig, absolute_overrides, load
from avvp_dist.storage.config import StorageConfig


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder in which a command starts, and one in which it goes on."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("start", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "start")
    return tmp_path / "start"


def strings(kind, path=()):
    """Dotted keys of all strings of a config, with what their help says and whether they are marked as places."""
    if get_origin(kind) is Annotated or get_args(kind):
        for part in get_args(kind):
            yield from strings(part, path)
    elif isinstance(kind, type) and issubclass(kind, Section):
        for name, field in kind.model_fields.items():
            text = repr(field.annotation) + repr(field.metadata)
            if re.search(r"\bstr\b|<class 'str'>", text) and "Literal" not in text:
                yield ".".join((*path, name)), field.description or "", "PathMarker(" in text
            yield from strings(field.annotation, (*path, name))


def test_every_key_whose_help_mentions_a_path_has_a_marker():
    found = {key: (help_text, marked) for key, help_text, marked in strings(RunConfig)}
    assert {key for key, (_, marked) in found.items() if marked} == {
        "output", "store", "data.url", "data.refined", "data.cache", "method.ratios", "tracking.uri"
    }  # fmt: skip
    assert not [key for key, (text, marked) in found.items() if re.search(r"\b[Ff]older\b|\b[Pp]ath\b", text) and not marked]


def test_all_paths_of_a_run_become_absolute(here):
    relative = [
        "output=o",
        "store=s",
        "data=d",
        "data.refined=r",
        "data.cache=c",
        "method.ratios=m",
        "tracking.uri=sqlite:///t",
    ]
    config = load("jomold", relative).absolute()
    places = [config.output, config.store, config.data.url, config.data.refined, config.data.cache, config.method.ratios]
    assert places == [f"{here}/{name}" for name in "osdrcm"]
    assert config.tracking.uri == f"sqlite:///{here}/t"
    assert load("jomold", ["data=d"]).absolute().tracking.uri == f"sqlite:///{here}/mlflow.db"
    assert config.absolute() == config
    elsewhere = ["output=s3://b/o", "data=memory://d", "method.ratios=/r", "tracking.uri=http://server:5000"]
    kept = load("jomold", elsewhere)
    assert kept.absolute() == kept


def test_overrides_become_absolute_and_can_be_parsed_again(here):
    given = ["data=d", "method={name: jomold, ratios: m}", "data.refined='a #b: c'"]
    given += ["optim.lr=1e-3", "launch=ray", "method=ma", "store=s3://b/s", "data.cache=null", "no.such=key"]
    assert absolute_overrides(given) == [
        f"data={here}/d",
        f'method={{"name": "jomold", "ratios": "{here}/m"}}',
        f'data.refined="{here}/a #b: c"',
        *given[3:],
    ]
    assert load("han", absolute_overrides(given[:1] + given[2:3])).data.refined == f"{here}/a #b: c"


def test_paths_in_lists_mappings_and_unions_are_found():
    mark = Annotated[str, PathMarker()]

    class One(Section):
        name: str = "one"
        files: tuple[mark, ...] = ()
        by_name: dict[str, mark | None]
        words: tuple[str, ...] = ()

    content = {"name": "one", "files": ["a", "b"], "by_name": {"x": "c", "y": None}, "words": ["d"], "unknown": "e"}
    assert convert_paths(One, content, lambda text, _: text.upper()) == {
        "name": "one", "files": ["A", "B"], "by_name": {"x": "C", "y": None}, "words": ["d"], "unknown": "e"
    }  # fmt: skip


def sweep_of(folder, **content):
    base = {"title": "t", "recipe": "jomold", "space": {"method.temperature": {"grid": [0.1]}}, "seeds": [1]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(base | content))
    return sweeps.read("sweep.yaml")[1]


def planned(*arguments, **more):
    """What the trials of a sweep share, as its driver gives it to them."""
    os.environ.update({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AIR_NEW_OUTPUT": "0"})  # before ray is imported
    from avvp_dist.launch.trial import TrialContext

    return TrialContext(*arguments, **more)


def trial_configs(sweep, overrides, output):
    """What trials would run, made in whatever folder this process is in, as a trial does."""
    plan = planned("t", sweep, tuple(overrides), "f", output, None, StorageConfig())
    return [plan.config(todo.point, todo.seed) for todo in sweeps.trials(sweep, sweeps.sweep_points(sweep), overrides, "f")]


def test_paths_of_trials_are_relative_to_the_folder_where_the_sweep_started(here, monkeypatch):
    (here / "mine.yaml").write_text(
        yaml.safe_dump({"recipe": "mine", "model": {"name": "han"}, "method": {"name": "jomold"}, "data": {"cache": "c"}})
    )
    space = {
        "data.refined": {"grid": [None, "a.npz", "s3://b/c.npz"]},
        "method.ratios": {"choice": ["r.json"], "when": {"data.refined": "a.npz"}},
    }
    read = sweep_of(here, recipe="mine.yaml", overrides=["data.url=other", "optim.lr=0.5"], space=space)
    sweep, overrides = sweeps.with_absolute_paths(read, ["data=packed"])
    monkeypatch.chdir(here.parent / "elsewhere")
    again = sweeps.with_absolute_paths(sweep, overrides)
    assert again == (sweep, overrides)  # goes on in any folder
    first, second, third = trial_configs(sweep, overrides, f"{here}/out")
    assert {config.data.url for config in (first, second, third)} == {f"{here}/packed"}
    assert {config.data.cache for config in (first, second, third)} == {f"{here}/c"}
    assert {config.tracking.uri for config in (first, second, third)} == {f"sqlite:///{here}/mlflow.db"}
    assert [config.data.refined for config in (first, second, third)] == [None, f"{here}/a.npz", "s3://b/c.npz"]
    assert [config.method.ratios for config in (first, second, third)] == [None, f"{here}/r.json", None]
    assert first.output.startswith(f"{here}/out/runs/")
    assert all(not config.relative() for config in (first, second, third))


def test_a_trial_uses_the_tracking_server_of_the_driver(here, monkeypatch):
    """On a node of a cluster whose environment names another server, or none; and the address is written nowhere."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@server:5000")
    sweep, overrides = sweeps.with_absolute_paths(sweep_of(here), ["data=d"])
    assert "hunter2" not in json.dumps([sweep.model_dump(mode="json"), overrides])
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    plan = planned(
        "t", sweep, tuple(overrides), "f", "/out", None, StorageConfig(), tracking_uri="http://me:hunter2@server:5000"
    )
    assert plan.config({"method.temperature": 0.1}, 1).tracking.uri == "http://me:hunter2@server:5000"


def test_a_relative_path_that_does_not_apply_to_every_trial_is_refused(here):
    (here / "mine.yaml").write_text(
        yaml.safe_dump({"model": {"name": "han"}, "method": {"name": "jomold", "ratios": "r.json"}})
    )
    with pytest.raises(
        ConfigError, match=r"method.ratios: give an absolute path in .*mine.yaml, because the sweep varies method"
    ):
        sweeps.with_absolute_paths(sweep_of(here, recipe="mine.yaml", space={"method.name": {"grid": ["jomold", "ma"]}}), [])


def test_rows_of_a_table_are_absolute(here):
    (here / "mine.yaml").write_text(
        yaml.safe_dump({"model": {"name": "han"}, "method": {"name": "jomold", "ratios": "r.json"}})
    )
    row = {"view": "joint", "published": {}}
    rows = [{"label": "a", "recipe": "mine.yaml", **row}, {"label": "b", "recipe": "han", "overrides": ["store=s"], **row}]
    content = {"title": "t", "source": "s", "rows": rows}
    (here / "table.yaml").write_text(yaml.safe_dump(content))
    _, table = paper_tables.read("table.yaml")
    first, second = paper_tables.configs(table, ["data.refined=l.npz"])
    assert (first.method.ratios, first.data.refined) == (f"{here}/r.json", f"{here}/l.npz")
    assert (second.store, second.tracking.uri) == (f"{here}/s", f"sqlite:///{here}/mlflow.db")
