"""The published scores that come with the package, by task."""

from __future__ import annotations

from avvp_dist.config import parse_yaml, validate
from avvp_dist.experiments.shipped import shipped
from avvp_dist.report.published import PublishedScores

_FOLDER = "published"


def published_scores(task: str) -> PublishedScores | None:
    """Return the published scores of a task; None if none come with the package."""
    text = shipped(_FOLDER).get(task)
    source = f"published scores of {task}"
    return None if text is None else validate(PublishedScores, parse_yaml(text, source), source)
