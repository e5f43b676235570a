"""The core knows no data set, class, metric or view by name: such names are in the packages that define them."""

import re
import tokenize
from pathlib import Path

import pytest

from avvp_dist.datasets.catalog import DATASETS, FEATURE_SETS
from avvp_dist.tasks import TASKS

PACKAGE = Path(__file__).parents[2] / "avvp_dist"
DEFINE_NAMES = {"datasets", "tasks", "metrics", "models", "methods"}
OFFICIAL_FILES = {"data.py", "labels.py", "ratios.py"}  # commands that read files of the authors of one data set
CORE = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] not in DEFINE_NAMES
    and not (path.parent.name == "cli" and (path.name in OFFICIAL_FILES or path.name.startswith("data_")))
)
CLASSES = {name for dataset in (*DATASETS.values(), *FEATURE_SETS.values()) for name in dataset.classes}
METRICS = {metric.name for task in TASKS.values() for metric in task.metrics}
ORDINARY_WORDS = {"none", "modality", "segments"}
VIEWS = {view.name for task in TASKS.values() for view in task().build(sorted(CLASSES)).views} - ORDINARY_WORDS
DATA_SETS = {"LLP", "AVE", "THUMOS14"} | {dataset.name for dataset in (*DATASETS.values(), *FEATURE_SETS.values())}


def strings_and_names(path):
    """Identifiers, string literals and comments of a file with their lines."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in (tokenize.STRING, tokenize.NAME, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                yield token.start[0], token.string


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_core_module_names_no_data_set_class_metric_or_view(path):
    words = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in sorted(DATA_SETS | CLASSES, key=len, reverse=True)))
    quoted = {f'"{name}"' for name in METRICS | VIEWS} | {f"'{name}'" for name in METRICS | VIEWS}
    found = []
    for line, text in strings_and_names(path):
        found += [f"line {line}: {word}" for word in words.findall(text)]
        found += [f"line {line}: {text}"] if text in quoted else []
    assert not found
