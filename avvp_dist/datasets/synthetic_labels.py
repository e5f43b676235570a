"""What happens in a made-up LLP video: its weak label, and which modality shows each event in which seconds.

With annotation files at hand the videos are theirs, and only the training videos, which nobody annotated densely, need a
made-up truth: each weak label copies its seconds from a random annotated video that carries it. Without annotation files
everything is drawn from ``llp_statistics.json``, which counts the label sets of LLP and, for each class, in which seconds
annotators heard and saw it (validation and test split). The count of those second patterns holds at once what the
literature publishes apart: how often a class is only heard, only seen, both or neither, how long it lasts, where it
starts, how often it is interrupted and how well both modalities agree.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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

# A class that annotators met only twice in a presence (say, seen but not heard) borrows second patterns of that presence
# from all classes; their weight is that of this many videos.
_BORROWED = 5.0
_ID_LETTERS = string.ascii_letters + string.digits + "_-"
_ID_LENGTH = 11

Pattern = tuple[int, int]
"""Seconds of one class in one video, audio and visual: bit t of a number is set where the event is there in second t."""


def generator(seed: int, *key: object) -> np.random.Generator:
    """Random numbers that depend on ``seed`` and ``key`` alone, whatever was drawn before and in whichever process."""
    digest = hashlib.blake2b(json.dumps([seed, *map(str, key)]).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


@dataclass(frozen=True)
class Distribution:
    """Things to draw and how often each is drawn."""

    values: tuple
    cumulative: np.ndarray

    @classmethod
    def from_weights(cls, weights: Mapping) -> Distribution:
        """A table that draws each key with its share of the weights."""
        shares = np.cumsum(np.fromiter(weights.values(), dtype=np.float64))
        return cls(tuple(weights), shares / shares[-1])

    def draw(self, rng: np.random.Generator) -> Any:
        """One of the values."""
        return self.values[int(np.searchsorted(self.cumulative, rng.random(), side="right"))]


@dataclass(frozen=True)
class Statistics:
    """LLP's counts, ready to draw from.

    Attributes:
        labels: weak labels by split, each value a tuple of class numbers.
        seconds: for each class, the `Pattern` of an annotated video that carries it.
    """

    labels: Mapping[str, Distribution]
    seconds: tuple[Distribution, ...]


@lru_cache(maxsize=1)
def statistics() -> Statistics:
    """The counts shipped with the package."""
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
    """A key of ``seconds`` in llp_statistics.json."""
    audio, visual = key.split(".")
    return int(audio, 16), int(visual, 16)


def _presence(pattern: Pattern) -> tuple[bool, bool]:
    return pattern[0] > 0, pattern[1] > 0


def _smooth(patterns: Sequence[Mapping[Pattern, float]]) -> list[dict[Pattern, float]]:
    """Each class's patterns with some of all classes mixed in, its presence (heard, seen, both, neither) left as counted."""
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
    """The seconds of class ``label`` in a densely annotated video; overlapping rows are united."""
    return _seconds(record.audio_events, label), _seconds(record.visual_events, label)


def _seconds(events: Iterable[Event] | None, label: int) -> int:
    mask = 0
    for event in events or ():
        if event.label == label:
            for second in range(max(event.onset, 0), min(event.offset, LLP.segments)):
                mask |= 1 << second
    return mask


def _runs(label: int, mask: int) -> list[Event]:
    """The maximal runs of set bits as events."""
    events, onset = [], None
    for second in range(LLP.segments + 1):
        active = mask >> second & 1
        if active and onset is None:
            onset = second
        elif not active and onset is not None:
            events.append(Event(label, onset, second))
            onset = None
    return events


def split_counts(videos: int | None, splits: Sequence[int] | None) -> tuple[int, int, int]:
    """Videos of train, val and test.

    Args:
        videos: how many in all, shared out as in LLP (10,000 : 649 : 1,200), at least one a split.
        splits: the three numbers themselves. Without either, LLP's own.

    Raises:
        ConfigError: every number that cannot be, together.
    """
    problems = []
    if videos is not None and splits is not None:
        problems.append("videos and splits: give one of them, not both")
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
    if problems:
        raise ConfigError(problems, "a synthetic LLP cannot be made from these numbers")
    if splits is not None:
        train, val, test = splits
        return train, val, test
    if videos is None:
        return LLP_VIDEOS
    val, test = (max(1, round(videos * count / sum(LLP_VIDEOS))) for count in LLP_VIDEOS[1:])
    return videos - val - test, val, test


def records(annotations: str | None, splits: Sequence[int] | None, seed: int) -> tuple[VideoRecord, ...]:
    """The videos of a synthetic LLP with their complete truth, training videos included; train, then val, then test.

    Args:
        annotations: folder of LLP's annotation files; None draws everything from LLP's statistics.
        splits: videos of train, val, test. With annotations a random choice of that many (all where there are no more), in
            the files' order; None takes all of them, without annotations as many as LLP has.
        seed: what a video holds depends on this and on its id (made-up videos: their number in the split) alone.

    Raises:
        ConfigError: a split without videos or a seed that is not a whole number from 0 on.
        DataError: annotation files that cannot be read.
    """
    if seed < 0:
        raise ConfigError(f"seed: a whole number from 0 on, got {seed}")
    if annotations is None:
        return _drawn(split_counts(None, splits), seed)
    return _annotated(annotations, None if splits is None else split_counts(None, splits), seed)


def _drawn(counts: tuple[int, int, int], seed: int) -> tuple[VideoRecord, ...]:
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
    return VideoRecord(video.id, video.name, video.split, video.weak, audio, visual)


def _annotated(folder: str, counts: tuple[int, int, int] | None, seed: int) -> tuple[VideoRecord, ...]:
    everything = llp.read_annotations(folder).records
    donors: dict[int, list[Pattern]] = {}
    for record in everything:
        if record.audio_events is not None:
            for label in record.weak:
                donors.setdefault(label, []).append(pattern_of(record, label))
    chosen = []
    for number, split in enumerate(SPLITS):
        videos = [record for record in everything if record.split == split]
        if counts is not None and counts[number] < len(videos):
            pick = generator(seed, "subset", split).choice(len(videos), counts[number], replace=False)
            videos = [videos[position] for position in sorted(pick)]
        chosen += [record if record.audio_events is not None else _copied(record, donors, seed) for record in videos]
    return tuple(chosen)


def _copied(record: VideoRecord, donors: Mapping[int, Sequence[Pattern]], seed: int) -> VideoRecord:
    """A video nobody annotated, each of its weak labels timed as in a random annotated video that carries it."""
    rng = generator(seed, "truth", record.id)
    patterns = {}
    for label in record.weak:
        of_class = donors.get(label)
        patterns[label] = of_class[int(rng.integers(len(of_class)))] if of_class else statistics().seconds[label].draw(rng)
    return _record(record, patterns)
