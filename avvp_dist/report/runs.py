"""Finished runs, grouped: runs that differ only in their seed are one setting, trained several times."""

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
        per_video: scores of its videos; None if they are not available.
        per_video_problem: why they are not available; empty if they are.
    """

    url: str
    result: Mapping[str, Any]
    per_video: PerVideo | None = None
    per_video_problem: str = ""

    @property
    def name(self) -> str:
        """Last part of its folder."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, eq=False)
class RunGroup:
    """The runs of one setting, with one or several seeds.

    Attributes:
        label: short label of the setting, unique in a comparison.
        keys: config keys in which any two settings of the comparison differ -> value of this one.
        protocol: evaluation protocol that the runs were trained for.
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
        """Fingerprint of the data on which the runs were trained and scored."""
        return str(self.runs[0].result["data"]["fingerprint"])

    @property
    def synthetic(self) -> bool:
        """Whether those data are synthetic."""
        return bool(self.runs[0].result["data"]["synthetic"])

    def scored(self, split: str, protocol: str, without_speech: bool = False) -> list[Mapping[str, Any]]:
        """Return ``segment``, ``event`` and, unless ``without_speech``, ``per_class`` of each run that has them."""
        found = [run.result["scores"].get(split, {}).get(protocol, {}) for run in self.runs]
        if without_speech:
            found = [scores.get("without_speech", {}) for scores in found]
        return [scores for scores in found if scores]

    def values(self, split: str, protocol: str, level: str, metric: str, without_speech: bool = False) -> list[float]:
        """Return one official score of each seed, in percent."""
        return [scores[level][metric] for scores in self.scored(split, protocol, without_speech)]

    def video_scores(
        self, split: str, protocol: str, level: str, metric: str, without_speech: bool = False
    ) -> NDArray[np.float64] | None:
        """Return the same score of every video, [seeds, videos] in percent; None if any run lacks it."""
        available = [run.per_video for run in self.runs if run.per_video]
        rows = [per_video.scores(split, protocol, level, metric, without_speech) for per_video in available]
        found = [row for row in rows if row is not None]
        return np.stack(found) if len(found) == len(self.runs) else None
