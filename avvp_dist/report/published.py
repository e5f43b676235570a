"""Scores that papers report for a task, shown beside a comparison but never mixed with its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from avvp_dist.config import Section

Percent = Annotated[float, Field(ge=0, le=100)]


def _flat(scores: Any) -> Any:
    """Return nested figures by dotted name, without those that are null."""
    if not isinstance(scores, Mapping):
        return scores
    found: dict[str, Any] = {}
    for key, value in scores.items():
        nested = {f"{key}.{name}": figure for name, figure in value.items()} if isinstance(value, Mapping) else {key: value}
        found |= {name: figure for name, figure in nested.items() if figure is not None}
    return found


Figures = Annotated[dict[str, Percent], BeforeValidator(_flat)]
"""Published figures in percent by metric; in YAML, metrics of a group can be nested: ``{segment: {type: 54.0}}``."""


class PublishedRow(Section):
    """The scores of one method in one source."""

    method: str
    """Name used by the paper."""
    venue: str = ""
    """Venue of the paper."""
    features: str = ""
    """Input features, then labels from other networks that it was trained on."""
    view: str | None = None
    """View of the task that corresponds to the authors' code; null if it is unknown or not one of them."""
    rule: str = ""
    """How predictions were made, if no view of the task corresponds to it."""
    source: str
    """Source of the scores."""
    note: str = ""
    """Note about this row."""
    scores: Figures
    """Scores by metric."""


class PublishedScores(Section):
    """Published scores of one task."""

    data: str
    """Split and data set of the scores."""
    note: str
    """Note about all rows."""
    sources: dict[str, str]
    """Short name of a source -> its description."""
    rows: tuple[PublishedRow, ...]
