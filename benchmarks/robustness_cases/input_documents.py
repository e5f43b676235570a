"""Sweep files and table files that are valid YAML but invalid sweeps and tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.robustness_cases.fixtures import Fixtures, replace
from benchmarks.robustness_cases.inputs import BadInput

_NAN = float("nan")
_SWEEP = {"title": "t", "recipe": "jomold", "space": {"method.temperature": {"grid": [0.1, 0.2]}}, "seeds": [1]}
# name -> (changed keys, what the output must name)
SWEEPS: Mapping[str, tuple[dict[str, Any], str]] = {
    "unknown metric": ({"metric": "segment.tpye"}, "segment.tpye"),
    "unknown mode": ({"mode": "largest"}, "mode"),
    "unknown recipe": ({"recipe": "nosuch"}, "nosuch"),
    "no space": ({"space": {}}, "space"),
    "unknown key": ({"space": {"method.temprature": {"grid": [1]}}}, "temprature"),
    "value out of range": ({"space": {"method.temperature": {"grid": [0]}}}, "temperature"),
    "infinite value": ({"space": {"method.temperature": {"grid": [float("inf")]}}}, "temperature"),
    "infinite bound": (
        {"space": {"method.temperature": {"uniform": [0.1, float("inf")]}}, "search": {"name": "random"}},
        "uniform|temperature",
    ),
    "NaN bound": (
        {"space": {"method.temperature": {"uniform": [_NAN, 1]}}, "search": {"name": "random"}},
        "uniform|temperature",
    ),
    "reversed bounds": ({"space": {"method.temperature": {"uniform": [2, 1]}}, "search": {"name": "random"}}, "uniform"),
    "tiny step": ({"space": {"method.temperature": {"uniform": [0, 1], "step": 1e-12}}}, "step|temperature|settings"),
    "a seed of 2^70": ({"seeds": [2**70]}, "seed"),
    "a negative seed": ({"seeds": [-1]}, "seeds"),
    "override unreadable": ({"overrides": ["optim.lr"]}, "optim.lr"),
    "override out of range": ({"overrides": ["optim.lr=nan"]}, "optim.lr"),
    "no cpus": ({"cpus_per_trial": 0}, "cpus_per_trial"),
    "infinite hours": ({"hours": float("inf")}, "hours"),
    "markup": ({"title": "[/red]", "metric": "[/x]"}, "metric"),
    "when unknown": ({"space": {"method.temperature": {"grid": [1], "when": {"x": 1}}}}, "when"),
}
_TABLE = {
    "title": "t",
    "source": "s",
    "rows": [{"label": "a", "recipe": "han", "view": "joint", "overrides": ["model.width=8"]}],
}
TABLES: Mapping[str, tuple[dict[str, Any], str]] = {
    "no rows": ({"rows": []}, "rows"),
    "duplicate row": ({"rows": [_TABLE["rows"][0]] * 2}, "twice|duplicate"),
    "unknown recipe": ({"rows": [{**_TABLE["rows"][0], "recipe": "nosuch"}]}, "nosuch"),
    "unknown view": ({"rows": [{**_TABLE["rows"][0], "view": "nosuch"}]}, "nosuch"),
    "bad override": ({"rows": [{**_TABLE["rows"][0], "overrides": ["optim.lr=inf"]}]}, "optim.lr"),
    "unknown metric": ({"rows": [{**_TABLE["rows"][0], "published": {"segment": {"tpye": 1}}}]}, "segment.tpye"),
    "noise of 2": ({"rows": [{**_TABLE["rows"][0], "oracle_noise": 2}]}, "oracle_noise"),
}


def _yaml(content: Mapping[str, Any]) -> Callable[[Path, Fixtures], None]:
    text = json.dumps(content).replace("Infinity", ".inf").replace("NaN", ".nan")  # JSON is YAML, except for these
    return lambda here, _: replace(here / "file.yaml", text)


def cases() -> Iterator[BadInput]:
    """Yield all cases of this module."""
    for name, (more, expects) in SWEEPS.items():
        words = "sweep {here}/file.yaml data={tiny} --dry-run --output {here}/out"
        yield BadInput("contents, sweeps", words, expects, (_yaml({**_SWEEP, **more}),), note=name)
    for name, (more, expects) in TABLES.items():
        words = "table {here}/file.yaml --data {tiny} --output {here}/out --seeds 1 --epochs 1"
        yield BadInput("contents, tables", words, expects, (_yaml({**_TABLE, **more}),), note=name)
