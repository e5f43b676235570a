"""The layers of the package and the absence of import cycles. (ruff's banned-api restricts ray, mlflow, fsspec, ...)"""

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "avvp_dist"
LAYERS = [  # low to high; packages of one layer can import each other unless modules form a cycle
    {"text"},
    {"types", "errors", "config"},
    {"storage"},
    {"dist", "metrics"},
    {"shards"},
    {"datasets", "loading"},
    {"tasks"},
    {"models"},
    {"methods"},
    {"train", "tracking", "report"},
    {"experiments"},
    {"launch"},
    {"cli"},
    {"__main__"},
]
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages}
ROOT_FILES = {"__init__.py", "__main__.py", "config.py", "errors.py", "types.py", "py.typed"}


def is_module(parts: list[str]) -> bool:
    path = PACKAGE.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").exists()


def imports(path: Path) -> set[str]:
    """Dotted names, below avvp_dist, of the modules that a file imports anywhere: at its top, in functions, for types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "avvp_dist":
            continue
        base = node.module.split(".")[1:]
        for alias in node.names:
            found.add(".".join([*base, alias.name] if is_module([*base, alias.name]) else base))
    return found


@cache
def modules() -> dict[str, set[str]]:
    """What every module of the package imports."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): imports(path)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
    }


def package(module: str) -> str:
    return module.split(".")[0]


def test_the_package_root_contains_only_shared_modules():
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == ROOT_FILES
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} <= LAYER.keys()


def test_imports_point_downwards():
    upward = [
        f"{module} imports {other}"
        for module, imported in modules().items()
        for other in imported
        if LAYER[package(other)] > LAYER[package(module)]
    ]
    assert not upward


def test_there_are_no_import_cycles():
    graphlib.TopologicalSorter(modules()).prepare()  # raises CycleError, which names the modules


def imported_by(name: str) -> set[str]:
    """The packages that the modules of a package import."""
    return {package(other) for module, imported in modules().items() if package(module) == name for other in imported}


@pytest.mark.parametrize(
    ("name", "others"),
    [("loading", {"datasets"}), ("models", {"methods"}), ("methods", {"models", "train", "tracking"})],
)
def test_packages_that_a_package_must_not_import(name, others):
    assert not imported_by(name) & others


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("avvp_dist.experiments.run", {"ray", "mlflow", "scipy"}),
        ("avvp_dist.cli.main", {"ray", "mlflow", "torch", "numpy", "scipy"}),  # `avvp --help` must start quickly
        ("avvp_dist.loading.reader_process", {"ray", "mlflow", "torch"}),  # readers must start in tenths of a second
    ],
)
def test_modules_that_an_import_must_not_load(module, heavy):
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
