"""The layers of the package: who may import whom. (ruff's banned-api holds the outer walls: ray, mlflow, fsspec, ...)"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "avvp_dist"
LAYERS = [
    {"text", "messages", "failures", "urls", "devices", "yaml_text", "json_files", "storage_probe", "folders", "signals"}
    | {"errors", "types", "config", "storage", "storage_config", "credentials", "storage_errors", "ray_job"}
    | {"integrity", "locks", "processes"},
    {"data", "models", "dist", "metrics"},
    {"methods"},
    {"train", "tracking", "report"},
    {"recipe"},
    {"outcome", "observer"},
    {"app"},
    {"comparison", "paper_tables", "search_space", "sweep"},
    {"launch"},
    {
        "cli_failure",
        "cli_output",
        "cli_data_view",
        "cli_cache",
        "cli_compare",
        "cli_data",
        "cli_doctor",
        "cli_findings",
        "cli_labels",
        "cli_storage",
        "cli_table",
        "cli_sweep",
        "cli",
    },
    {"__main__"},
]
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "avvp_dist":
            parts = node.module.split(".")[1:]
            yield from ([parts[0]] if parts else [alias.name for alias in node.names])


def test_imports_point_downwards():
    upward = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        upward += [
            f"{path.name} imports {other}"
            for other in imported_rooms(path)
            if other != room and HEIGHT[other] > HEIGHT[room]
        ]
    assert not upward


def test_models_know_no_method_and_methods_no_model():
    assert not [p for p in (PACKAGE / "models").glob("*.py") if "methods" in imported_rooms(p)]
    assert not [p for p in (PACKAGE / "methods").glob("*.py") if {"models", "train", "tracking"} & set(imported_rooms(p))]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("avvp_dist.app", {"ray", "mlflow"}),
        ("avvp_dist.cli", {"ray", "mlflow", "torch", "numpy"}),  # `avvp --help` answers at once
    ],
)
def test_what_importing_a_module_does_not_import(module, heavy):
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
