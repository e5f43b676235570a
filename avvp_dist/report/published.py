"""What papers print for LLP, to stand beside a comparison; never among our own figures."""

from __future__ import annotations

from importlib import resources
from typing import Annotated

from pydantic import Field

from avvp_dist.config import Section, parse_yaml, validate
from avvp_dist.metrics.names import Protocol

Percent = Annotated[float, Field(ge=0, le=100)]


class Figures(Section):
    """Published F scores in percent; what the paper does not give stays null."""

    audio: Percent | None = None
    visual: Percent | None = None
    audio_visual: Percent | None = None
    type: Percent | None = None
    event: Percent | None = None

    @property
    def coherent(self) -> bool:
        """Whether Type is the mean of the other three, as it is defined, but for rounding."""
        if None in (self.audio, self.visual, self.audio_visual, self.type):
            return True
        return abs((self.audio + self.visual + self.audio_visual) / 3 - self.type) < 0.11  # type: ignore[operator]


class PublishedRow(Section):
    """One method as one source prints it."""

    method: str
    """What the paper calls it."""
    venue: str = ""
    """Where it appeared."""
    features: str
    """What the network sees, then labels of other networks that it was trained on."""
    protocol: Protocol | None = None
    """Evaluation protocol of the authors' code; null where it is not known or none of ours."""
    rule: str = ""
    """How predictions were made, where that is no protocol of ours."""
    source: str
    """Who prints the figures."""
    note: str = ""
    """What a reader has to know of this row."""
    segment: Figures
    event: Figures


class PublishedScores(Section):
    """Scores on the test split of the real LLP."""

    note: str
    """What a reader has to know of all rows."""
    sources: dict[str, str]
    """Short name of a source -> what it is."""
    rows: tuple[PublishedRow, ...]


def published_scores() -> PublishedScores:
    """The figures that come with the package."""
    text = (resources.files(__package__) / "published.yaml").read_text(encoding="utf-8")
    return validate(PublishedScores, parse_yaml(text, "published figures"), "published figures")
