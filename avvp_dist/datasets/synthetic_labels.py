"""Content of synthetic LLP videos: their weak labels, and the seconds of each event in each modality.

With annotation files, the videos are taken from them, and only the training videos, which are not densely annotated, need
synthetic events: each weak label copies its seconds from a random annotated video with the same label. Without annotation
files, everything is drawn from ``llp_statistics.json``, which counts the label sets of LLP and, for each class, the seconds
annotated as audible and visible (validation and test split). The counts of these second patterns jointly contain what
the literature reports separately: how often a class is only audible, only visible, both or neither, how long it lasts,
where it starts, how often it is interrupted, and how well both modalities agree.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from avvp_dist.datasets import llp
from avvp_dist.datasets.catalog import LLP
from avvp_dist.errors import ConfigError
from avvp_dist.types import Event, VideoRecord

SPLITS = ("train", "val", "test")
LLP_VIDEOS = (10_000, 649, 1_200)

# Weight, in videos, of second patterns borrowed from all classes, since a class may have only few patterns of some presence
# (such as visible but not audible).
_BORROWED = 5.0
_ID_LETTERS = string.ascii_letters + string.digits + "_-"
_ID_LENGTH = 11

Pattern = tuple[int, int]
"""Seconds of one class in one video, audio and visual: bit t of a number is set if the event is active in second t."""


def generator(seed: int, *key: object) -> np.random.Generator:
    """A random generator that depends only on ``seed`` and ``key``, not on earlier draws or the process."""
    digest = hashlib.blake2b(json.dumps([seed, *map(str, key)]).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


@dataclass(frozen=True)
class Distribution:
    """A discrete probability distribution."""

    values: tuple
    cumulative: np.ndarray

    @classmethod
    def from_weights(cls, weights: Mapping) -> Distribution:
        """Create a distribution in which the probability of each key is its share of the weights."""
        shares = np.cumsum(np.fromiter(weights.values(), dtype=np.float64))
        return cls(tuple(weights), shares / shares[-1])

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw one of the values."""
        return self.values[int(np.searchsorted(self.cumulative, rng.random(), side="right"))]


@dataclass(frozen=True)
class Statistics:
    """LLP's statistics as distributions.

    Attributes:
        labels: of the weak labels by split; each value is a tuple of class numbers.
        seconds: for each class, of the `Pattern` in annotated videos with that weak label.
    """

    labels: Mapping[str, Distribution]
    seconds: tuple[Distribution, ...]


@lru_cache(maxsize=1)
def statistics() -> Statistics:
    """The statistics shipped with the package."""
    content = json.loads(resources.files("avvp_dist.datasets").joinpath("llp_statistics.json").read_text("utf-8"))
    number = {name: index for index, name in enumerate(LLP.classes)}
    train, annotated = (
        Distribution.from_weights(
            {tuple(number[name] for name in key.split(",")): count for key, count in content["labels"][part].items()}
        )
        for part in ("train", "annotated")
    )
    patterns = [{read_pattern(key): float(count) for key, count in content["seconds"][name].items()} for name in LLP.classes]
    return Statistics(
        labels={"train": train, "val": annotated, "test": annotated},
        seconds=tuple(Distribution.from_weights(weights) for weights in _smooth(patterns)),
    )


def read_pattern(key: str) -> Pattern:
    """Parse a key of ``seconds`` in llp_statistics.json."""
    audio, visual = key.split(".")
    return int(audio, 16), int(visual, 16)


def _presence(pattern: Pattern) -> tuple[bool, bool]:
    return pattern[0] > 0, pattern[1] > 0


def _smooth(patterns: Sequence[Mapping[Pattern, float]]) -> list[dict[Pattern, float]]:
    """Mix patterns of all classes into those of each class, keeping its counts of (audible, visible, both, neither)."""
    overall: dict[tuple[bool, bool], dict[Pattern, float]] = {}
    for counts in patterns:
        for pattern, count in counts.items():
            group = overall.setdefault(_presence(pattern), {})
            group[pattern] = group.get(pattern, 0.0) + count
    smoothed = []
    for counts in patterns:
        mixed: dict[Pattern, float] = {}
        for presence, group in overall.items():
            own = {pattern: count for pattern, count in counts.items() if _presence(pattern) == presence}
            total = sum(own.values())
            if not total:
                continue
            keep = total / (total + _BORROWED)
            lend = total * (1 - keep) / sum(group.values())
            mixed |= {pattern: lend * count + keep * own.get(pattern, 0.0) for pattern, count in group.items()}
        smoothed.append(mixed)
    return smoothed


def pattern_of(record: VideoRecord, label: int) -> Pattern:
    """The seconds of class ``label`` in a densely annotated video; overlapping rows are merged."""
    return _seconds(record.events_of("audio"), label), _seconds(record.events_of("visual"), label)


def _seconds(events: Iterable[Event] | None, label: int) -> int:
    mask = 0
    for event in events or ():
        if event.label == label:
            for second in range(max(int(event.onset), 0), min(int(event.offset), LLP.segments)):
                mask |= 1 << second
    return mask


def _runs(label: int, mask: int) -> list[Event]:
    """Convert maximal runs of set bits to events."""
    events: list[Event] = []
    onset = None
    for second in range(LLP.segments + 1):
        active = mask >> second & 1
        if active and onset is None:
            onset = second
        elif not active and onset is not None:
            events.append(Event(label, float(onset), float(second)))
            onset = None
    return events


def split_counts(videos: int | None, splits: Sequence[int] | None) -> tuple[int, int, int]:
    """Numbers of train, val and test videos.

    Args:
        videos: total number, divided as in LLP (10,000 : 649 : 1,200), at least one per split.
        splits: the three numbers. Without either argument, LLP's numbers are used.

    Raises:
        ConfigError: lists all invalid numbers.
    """
    problems = count_problems(videos, splits)
    if problems:
        raise ConfigError(problems, "a synthetic LLP cannot be made from these numbers")
    return divided(videos, splits, LLP_VIDEOS, LLP_VIDEOS)


def count_problems(videos: int | None, splits: Sequence[int] | None) -> list[str]:
    """Return what is wrong with a total number of videos, or with the numbers of train, val and test."""
    problems = []
    if videos is not None and splits is not None:
        problems.append("videos and splits: give only one of them")
    if videos is not None and videos < len(SPLITS):
        problems.append(f"videos: at least {len(SPLITS)}, one for each of {', '.join(SPLITS)}; got {videos}")
    if splits is not None and len(splits) != len(SPLITS):
        problems.append(f"splits: three numbers, for {', '.join(SPLITS)}; got {len(splits)}")
    elif splits is not None:
        problems += [
            f"splits: {name} needs at least 1 video, got {count}"
            for name, count in zip(SPLITS, splits, strict=True)
            if count < 1
        ]
    return problems


def divided(
    videos: int | None, splits: Sequence[int] | None, official: tuple[int, int, int], default: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Return the numbers of train, val and test videos.

    Args:
        videos: total number, divided in the proportion of ``official``, at least one per split.
        splits: the three numbers, instead of ``videos``.
        official: numbers of the real data set.
        default: numbers without either argument.
    """
    if videos is None:
        train, val, test = splits or default
        return train, val, test
    val, test = (max(1, round(videos * count / sum(official))) for count in official[1:])
    return videos - val - test, val, test


def records(annotations: str | None, splits: Sequence[int] | None, seed: int) -> tuple[VideoRecord, ...]:
    """Create the videos of a synthetic LLP, all of them with complete ground truth; train, then val, then test.

    Args:
        annotations: folder of LLP's annotation files; None draws everything from LLP's statistics.
        splits: numbers of train, val and test videos. With annotations, a random selection of that many (or all, if there
            are fewer) in the files' order; None selects all. Without annotations, None creates as many as LLP has.
        seed: together with the id of a video (without annotations: its number in the split), determines its content.

    Raises:
        ConfigError: a split without videos, or a negative seed.
        DataError: annotation files that cannot be read.
    """
    if seed < 0:
        raise ConfigError(f"seed: must be a whole number of at least 0, got {seed}")
    if annotations is None:
        return _draw_videos(split_counts(None, splits), seed)
    return _select_videos(annotations, None if splits is None else split_counts(None, splits), seed)


def _draw_videos(counts: tuple[int, int, int], seed: int) -> tuple[VideoRecord, ...]:
    found: dict[str, VideoRecord] = {}
    for split, count in zip(SPLITS, counts, strict=True):
        for number in range(count):
            rng = generator(seed, "video", split, number)
            key = _draw_id(rng)
            while key in found:
                key = _draw_id(rng)
            start = 10 * int(rng.integers(0, 40))
            weak = statistics().labels[split].draw(rng)
            patterns = {label: statistics().seconds[label].draw(rng) for label in weak}
            found[key] = _record(VideoRecord(key, f"{key}_{start}_{start + LLP.segments}", split, weak), patterns)
    return tuple(found.values())


def _draw_id(rng: np.random.Generator) -> str:
    return "".join(_ID_LETTERS[letter] for letter in rng.integers(0, len(_ID_LETTERS), _ID_LENGTH))


def _record(video: VideoRecord, patterns: Mapping[int, Pattern]) -> VideoRecord:
    """``video`` with the events that the patterns of its classes describe."""
    audio = tuple(event for label, (mask, _) in sorted(patterns.items()) for event in _runs(label, mask))
    visual = tuple(event for label, (_, mask) in sorted(patterns.items()) for event in _runs(label, mask))
    return replace(video, events={"audio": audio, "visual": visual})


def _select_videos(folder: str, counts: tuple[int, int, int] | None, seed: int) -> tuple[VideoRecord, ...]:
    everything = llp.read_annotations(folder).records
    patterns_by_class: dict[int, list[Pattern]] = {}
    for record in everything:
        if record.events is not None:
            for label in record.weak:
                patterns_by_class.setdefault(label, []).append(pattern_of(record, label))
    chosen = []
    for number, split in enumerate(SPLITS):
        videos = [record for record in everything if record.split == split]
        if counts is not None and counts[number] < len(videos):
            pick = generator(seed, "subset", split).choice(len(videos), counts[number], replace=False)
            videos = [videos[position] for position in sorted(pick)]
        chosen += [
            record if record.events is not None else _with_copied_seconds(record, patterns_by_class, seed)
            for record in videos
        ]
    return tuple(chosen)


def _with_copied_seconds(record: VideoRecord, patterns_by_class: Mapping[int, Sequence[Pattern]], seed: int) -> VideoRecord:
    """Complete a video without annotations: each weak label gets the seconds of a random annotated video with that label."""
    rng = generator(seed, "truth", record.id)
    patterns = {}
    for label in record.weak:
        of_class = patterns_by_class.get(label)
        patterns[label] = of_class[int(rng.integers(len(of_class)))] if of_class else statistics().seconds[label].draw(rng)
    return _record(record, patterns)
