"""Tables of papers: their rows as recipes with overrides, beside the figures the paper prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, model_validator

from avvp_dist.config import KeyValue, Section, Text, parse_yaml, validate
from avvp_dist.errors import ConfigError
from avvp_dist.experiments.recipe import RunConfig, differences, load
from avvp_dist.experiments.shipped import read_yaml, shipped
from avvp_dist.metrics.names import Level, Metric, Protocol
from avvp_dist.report.published import Figures

_FOLDER = "tables"  # of the shipped ones

# keys that `avvp table` gives each run itself -> how to choose them
_RESERVED = {
    "output": "use --output",
    "seed": "use --seeds",
    "data": "use --data",
    "data.url": "use --data",
    "data.dataset": "use --data",
    "train.epochs": "use --epochs",
    "recipe": "the table's rows name their recipes",
}


class Published(Section):
    """Published figures of one row."""

    segment: Figures = Figures()
    event: Figures = Figures()


class PaperRow(Section):
    """One row: a recipe with overrides, and what the paper prints for it."""

    label: Text = Field(min_length=1)
    """What the paper calls it; unique in the table."""
    recipe: str
    """Name of a recipe."""
    overrides: tuple[KeyValue, ...] = ()
    """``key=value``, on top of the recipe."""
    protocol: Protocol
    """Evaluation protocol of the published figures."""
    published: Published = Published()
    """Test scores on LLP in percent."""
    oracle_noise: float | None = Field(None, ge=0, le=1)
    """For a row trained on labels of segments: on made-up data they are the truth with this share of them turned over, in
    place of the paper's own; on real data they come with ``--set data.refined=FILE``. null for weak labels."""
    reconstructed: bool = False
    """Whether no public text or code pins this row's method down."""


class PaperTable(Section):
    """A table of a paper."""

    title: Text
    """What is compared, in one line."""
    source: Text
    """Paper and number of the table."""
    note: Text = ""
    """What a reader has to know to compare: protocol, settings that the paper does not give."""
    columns: dict[Level, tuple[Metric, ...]]
    """What the paper's table shows at each level."""
    rows: tuple[PaperRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _coherent(self) -> PaperTable:
        labels = [row.label for row in self.rows]
        problems = [f"rows: {label!r} comes twice" for label in dict.fromkeys(labels) if labels.count(label) > 1]
        shown = {(level, metric) for level, metrics in self.columns.items() for metric in metrics}
        problems += [
            f"row {row.label!r}: {level}.{metric} is published but not in columns"
            for row in self.rows
            for level, figures in row.published.model_dump(exclude_none=True).items()
            for metric in figures
            if (level, metric) not in shown
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def tables() -> dict[str, PaperTable]:
    """The shipped tables by name."""
    return {name: _parse(text, f"table {name}") for name, text in shipped(_FOLDER).items()}


def read(table: str) -> tuple[str, PaperTable]:
    """A table and its short name.

    Args:
        table: name of a shipped table, or the path or URL of a YAML file.

    Raises:
        ConfigError: there is no such table, or everything that is wrong with it.
    """
    name, text = read_yaml(table, "table", _FOLDER)
    return name, _parse(text, table)


def configs(table: PaperTable, settings: Sequence[str] = ()) -> list[RunConfig]:
    """The config of every row, with ``settings`` (``key=value``) applied to all of them and all paths absolute.

    ``data.refined`` is for the rows with an ``oracle_noise``, where there are any: the others train on weak labels.

    Raises:
        ConfigError: rows that cannot be run, or settings that a row fixes itself; every problem of every row.
    """
    found, problems = [], []
    for row in table.rows:
        mine = [setting for setting in settings if row.oracle_noise is not None or not only_for_oracles(table, setting)]
        try:
            config = load(row.recipe, [*row.overrides, *mine]).absolute()
            again = load(row.recipe, [*mine, *row.overrides]).absolute()  # where the order matters, one undoes the other
        except ConfigError as error:
            problems += [f"row {row.label!r}: {problem}" for problem in error.problems]
            continue
        undone = differences(again.model_dump(), config.model_dump())
        problems += [f"row {row.label!r} (there) sets this itself: {line}" for line in undone]
        found.append(config)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), f"{table.title}: cannot be run")
    return found


def only_for_oracles(table: PaperTable, setting: str) -> bool:
    """Whether a ``key=value`` goes to the rows with an ``oracle_noise`` alone."""
    return setting.partition("=")[0].strip() == "data.refined" and any(row.oracle_noise is not None for row in table.rows)


def refuse_reserved(settings: Sequence[str]) -> None:
    """Refuses settings that `avvp table` has options for.

    Raises:
        ConfigError: every one of them, with the option to use.
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
        raise ConfigError(problems, f"{source}: its rows cannot be used")
    return validate(PaperTable, content, source)


def _row_problems(row: Any, number: int) -> list[str]:
    """What is wrong with one row, told with the names that are valid in a row."""
    if not isinstance(row, Mapping):
        return [f"row {number}: expected keys with values, got {type(row).__name__}"]
    try:
        validate(PaperRow, row, f"row {number}")
    except ConfigError as error:
        return [f"row {number}: {problem}" for problem in error.problems]
    return []
