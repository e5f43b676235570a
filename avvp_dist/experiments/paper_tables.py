"""Tables of papers: rows as recipes with overrides, and the published figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field, model_validator

from avvp_dist.config import KeyValue, Section, Text, parse_yaml, validate
from avvp_dist.errors import ConfigError
from avvp_dist.experiments.recipe import RunConfig, describe_changes, load
from avvp_dist.experiments.shipped import read_yaml, shipped
from avvp_dist.report.published import Figures
from avvp_dist.text.suggest import did_you_mean

_FOLDER = "tables"  # of the shipped tables

# keys that `avvp table` sets for each run -> what to use instead
_RESERVED = {
    "output": "use --output",
    "seed": "use --seeds",
    "data": "use --data",
    "data.url": "use --data",
    "data.dataset": "use --data",
    "train.epochs": "use --epochs",
    "recipe": "the rows of the table name their recipes",
}


class PaperRow(Section):
    """One row of a paper's table: a recipe with overrides, and its published figures."""

    label: Text = Field(min_length=1)
    """The paper's name of the row; unique in the table."""
    recipe: str
    """Name of a recipe."""
    overrides: tuple[KeyValue, ...] = ()
    """``key=value`` overrides of the recipe."""
    view: str | None = None
    """View of the task that corresponds to the published figures; null if it is unknown."""
    published: Figures = Field(default_factory=dict)
    """Test scores in percent by metric."""
    oracle_noise: float | None = Field(None, ge=0, le=1)
    """For a row trained on segment-level labels: on synthetic data these are the ground truth with this fraction of labels
    flipped, instead of the paper's labels; on real data they are given by ``--set data.refined=FILE``. null: weak labels."""
    reconstructed: bool = False
    """Whether the row's method is a reconstruction, because no public text or code fully specifies it."""


class PaperTable(Section):
    """Config of a paper's table."""

    title: Text
    """Subject of the comparison, in one line."""
    source: Text
    """Paper and number of the table."""
    note: Text = ""
    """What a reader must know to compare the figures, e.g. protocol, or settings that the paper does not state."""
    rows: tuple[PaperRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _coherent(self) -> PaperTable:
        labels = [row.label for row in self.rows]
        problems = [f"rows: label {label!r} is duplicated" for label in dict.fromkeys(labels) if labels.count(label) > 1]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def tables() -> dict[str, PaperTable]:
    """Return the shipped tables: name -> table."""
    return {name: _parse(text, f"table {name}") for name, text in shipped(_FOLDER).items()}


def read(table: str) -> tuple[str, PaperTable]:
    """Read a table; returns its short name and its config.

    Args:
        table: name of a shipped table, or the path or URL of a YAML file.

    Raises:
        ConfigError: there is no such table, or all problems with it.
    """
    name, text = read_yaml(table, "table", _FOLDER)
    return name, _parse(text, table)


def configs(table: PaperTable, settings: Sequence[str] = ()) -> list[RunConfig]:
    """Return the config of each row with the overrides ``settings`` (``key=value``) applied and all paths absolute.

    If any row has an ``oracle_noise``, ``data.refined`` applies only to such rows: the others train on weak labels. A number
    of epochs among the settings is that of every stage, also of stages for which recipes have another.

    Raises:
        ConfigError: all problems of all rows, including settings that a row sets itself.
    """
    found, problems = [], []
    for row in table.rows:
        applicable = [
            setting for setting in settings if row.oracle_noise is not None or not only_for_oracles(table, setting)
        ]
        try:
            reset = _stage_epochs(row) if any(_key(setting) == "train.epochs" for setting in applicable) else []
            config = load(row.recipe, [*reset, *row.overrides, *applicable]).absolute()
            # if the order matters, both set the same key
            reordered = load(row.recipe, [*reset, *applicable, *row.overrides]).absolute()
        except ConfigError as error:
            problems += [f"row {row.label!r}: {problem}" for problem in error.problems]
            continue
        problems += [f"row {row.label!r}: {problem}" for problem in _unknown_names(row, config)]
        conflicts = describe_changes(reordered.model_dump(), config.model_dump())
        problems += [f"row {row.label!r} (there) sets this key itself: {line}" for line in conflicts]
        found.append(config)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), f"{table.title}: cannot be run")
    return found


def _stage_epochs(row: PaperRow) -> list[str]:
    """Overrides with which every stage of a row has ``train.epochs`` epochs."""
    return [f"method.{name}=null" for name in load(row.recipe, row.overrides).method.stage_epochs]


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _unknown_names(row: PaperRow, config: RunConfig) -> Iterator[str]:
    """Yield what the row names and its task does not have."""
    metrics = [metric.name for metric in config.task.metrics]
    views = [view.name for view in config.task.build(()).views]  # those of all classes do not depend on them
    for name in row.published:
        if name not in metrics:
            yield f"published: unknown metric {name!r}{did_you_mean(name, metrics)} Valid names: {', '.join(metrics)}"
    if row.view is not None and row.view not in views:
        yield f"view: unknown view {row.view!r}{did_you_mean(row.view, views)} Valid names: {', '.join(views)}"


def only_for_oracles(table: PaperTable, setting: str) -> bool:
    """Whether a ``key=value`` applies only to rows with an ``oracle_noise``."""
    return _key(setting) == "data.refined" and any(row.oracle_noise is not None for row in table.rows)


def refuse_reserved(settings: Sequence[str]) -> None:
    """Refuse settings for which `avvp table` has options.

    Raises:
        ConfigError: all of them, with the option to use.
    """
    keys = [setting.partition("=")[0].strip() for setting in settings]
    problems = [f"{key}: {_RESERVED[key]}" for key in keys if key in _RESERVED]
    if problems:
        raise ConfigError(problems, "--set cannot change these")


def _parse(text: str, source: str) -> PaperTable:
    content = parse_yaml(text, source)
    problems: list[str] = []
    rows = content.get("rows")
    for number, row in enumerate(rows if isinstance(rows, list) else [], start=1):
        problems += _row_problems(row, number)
    if problems:
        raise ConfigError(problems, f"{source}: invalid rows")
    return validate(PaperTable, content, source)


def _row_problems(row: Any, number: int) -> list[str]:
    """Return the problems of one row, with the names that are valid in a row."""
    if not isinstance(row, Mapping):
        return [f"row {number}: expected keys with values, got {type(row).__name__}"]
    try:
        validate(PaperRow, row, f"row {number}")
    except ConfigError as error:
        return [f"row {number}: {problem}" for problem in error.problems]
    return []
