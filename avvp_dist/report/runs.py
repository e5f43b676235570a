"""Finished runs as settings: runs that differ in nothing but their seed are one setting, seen several times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.metrics.per_video import PerVideo


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Attributes:
        url: its folder.
        result: content of its result.json.
        per_video: the scores of its videos, or None where they cannot be had.
        without: why they cannot.
    """

    url: str
    result: Mapping[str, Any]
    per_video: PerVideo | None = None
    without: str = ""

    @property
    def name(self) -> str:
        """Last part of its folder."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, eq=False)
class Setting:
    """What was run, with one seed or several.

    Attributes:
        label: short, and different from those of the other settings.
        keys: keys of the config in which any two settings of the comparison differ -> this one's value.
        protocol: evaluation protocol it was trained for.
        runs: one for each seed.
    """

    label: str
    keys: Mapping[str, Any]
    protocol: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [run.result["seed"] for run in self.runs]

    @property
    def fingerprint(self) -> str:
        """Of the data it was trained and scored on."""
        return str(self.runs[0].result["data"]["fingerprint"])

    @property
    def synthetic(self) -> bool:
        """Whether those data are made up."""
        return bool(self.runs[0].result["data"]["synthetic"])

    def scored(self, split: str, protocol: str, without_speech: bool = False) -> list[Mapping[str, Any]]:
        """``segment``, ``event`` (and with Speech ``per_class``) of each run that has them."""
        found = [run.result["scores"].get(split, {}).get(protocol, {}) for run in self.runs]
        if without_speech:
            found = [scores.get("without_speech", {}) for scores in found]
        return [scores for scores in found if scores]

    def values(self, split: str, protocol: str, level: str, metric: str, without_speech: bool = False) -> list[float]:
        """One official score in percent of each seed."""
        return [scores[level][metric] for scores in self.scored(split, protocol, without_speech)]

    def of_videos(
        self, split: str, protocol: str, level: str, metric: str, without_speech: bool = False
    ) -> NDArray[np.float64] | None:
        """The same of every video, [seeds, videos]; None where a run lacks them."""
        kept = [run.per_video for run in self.runs if run.per_video]
        rows = [each.scores(split, protocol, level, metric, without_speech) for each in kept]
        found = [row for row in rows if row is not None]
        return np.stack(found) if len(found) == len(self.runs) else None
