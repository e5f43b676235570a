"""docs/methods.md says what the code does: its examples run, and what it names is there."""

import doctest
import re
from pathlib import Path

import pytest

from avvp_dist.experiments import paper_tables
from avvp_dist.experiments.recipe import load, recipes
from avvp_dist.methods import METHODS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods.md"


def test_the_examples_come_out_as_written():
    done = doctest.testfile(str(PAGE), module_relative=False)
    assert done.attempted > 0
    assert done.failed == 0


def test_every_setting_it_names_exists_and_takes_the_values_it_names():
    configs = [load(name).model_dump() for name in recipes()]
    configs += [load("jomold", [f"model={network}"]).model_dump() for network in ("ave", "avslowfast")]
    named = set(re.findall(r"`((?:method|model|train|optim|evaluate|data)\.[a-z_]+)(?:=([^`]*))?`", PAGE.read_text()))
    assert len(named) > 20
    for key, value in sorted(named):
        section, field = key.split(".")
        owners = [config["recipe"] for config in configs if field in config[section]]
        assert owners, key
        if value and value.islower():
            load(owners[0], [f"{key}={value}"])


def test_every_recipe_table_and_file_it_names_is_there():
    page = PAGE.read_text()
    rows = [line.split("|") for line in page.splitlines() if re.match(r"\| \[\w+\]\(#", line)]
    named = {cells[2].strip().strip("`"): cells[5] for cells in rows if "`" in cells[2]}
    assert set(named) >= {"han", "ma", "jomold", "lr", "valor"}
    assert set(named) <= set(recipes())
    assert {load(name).method.name for name in named} <= set(METHODS)
    tables = set(paper_tables.tables())
    assert {name for cells in named.values() for name in re.findall(r"`([a-z-]+)`", cells)} <= tables
    for path in re.findall(r"`([\w/-]+\.(?:py|md|yaml|json))`", page):
        places = [ROOT / path, ROOT / "avvp_dist" / path]
        if "/" in path:
            assert any(place.exists() for place in places), path


@pytest.mark.parametrize("target", re.findall(r"\]\(#([a-z0-9-]+)\)", PAGE.read_text()))
def test_links_within_the_page_lead_somewhere(target):
    heads = [line.lstrip("# ") for line in PAGE.read_text().splitlines() if line.startswith("#")]
    assert target in {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}
