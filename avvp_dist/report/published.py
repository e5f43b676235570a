"""Scores that papers report for LLP, shown beside a comparison but never mixed with its scores."""

from __future__ import annotations

from importlib import resources
from typing import Annotated

from pydantic import Field

from avvp_dist.config import Section, parse_yaml, validate
from avvp_dist.metrics.names import Protocol

Percent = Annotated[float, Field(ge=0, le=100)]


class Figures(Section):
    """Published F-scores in percent; null if the paper does not report the score."""

    audio: Percent | None = None
    visual: Percent | None = None
    audio_visual: Percent | None = None
    type: Percent | None = None
    event: Percent | None = None

    @property
    def coherent(self) -> bool:
        """Whether Type is the mean of audio, visual and audio-visual, as defined, apart from rounding."""
        if None in (self.audio, self.visual, self.audio_visual, self.type):
            return True
        return abs((self.audio + self.visual + self.audio_visual) / 3 - self.type) < 0.11  # type: ignore[operator]


class PublishedRow(Section):
    """The scores of one method in one source."""

    method: str
    """Name used by the paper."""
    venue: str = ""
    """Venue of the paper."""
    features: str
    """Input features, then labels from other networks that it was trained on."""
    protocol: Protocol | None = None
    """Evaluation protocol of the authors' code; null if it is unknown or not one of `PROTOCOLS`."""
    rule: str = ""
    """How predictions were made, if the protocol is not one of `PROTOCOLS`."""
    source: str
    """Source of the scores."""
    note: str = ""
    """Note about this row."""
    segment: Figures
    event: Figures


class PublishedScores(Section):
    """Scores on the test split of the real LLP."""

    note: str
    """Note about all rows."""
    sources: dict[str, str]
    """Short name of a source -> its description."""
    rows: tuple[PublishedRow, ...]


def published_scores() -> PublishedScores:
    """Return the published scores that come with the package."""
    text = (resources.files(__package__) / "published.yaml").read_text(encoding="utf-8")
    return validate(PublishedScores, parse_yaml(text, "published figures"), "published figures")
