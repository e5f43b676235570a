"""Content of synthetic AVE videos: class, interval of the event, and what is audible and visible in each second.

With annotation files, the videos are taken from them. Without, they are drawn from ``ave_statistics.json``, which counts the
intervals of each class in AVE.

The class of a video is audible and visible in the seconds of its event. Any other second contains evidence of at most one
modality, which is what makes background difficult for video-level labels: the sounding object is out of the picture, the
visible object is silent, or one modality shows another class. Background videos contain no evidence of any class.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avvp_dist.datasets import ave
from avvp_dist.datasets.ave import Row
from avvp_dist.datasets.catalog import AVE
from avvp_dist.datasets.flaws import Annotations
from avvp_dist.datasets.synthetic_labels import SPLITS, Distribution, count_problems, divided, generator
from avvp_dist.errors import ConfigError
from avvp_dist.types import VideoRecord

AVE_VIDEOS, AVE_BACKGROUND = (3339, 402, 402), 178
DEFAULT_VIDEOS = (400, 60, 60)

NOTHING = -1
_ONE_SIDED = {  # share of the runs of background seconds, by modality with evidence and class of it
    ("visual", "own"): 0.20,
    ("audio", "own"): 0.12,
    ("visual", "other"): 0.08,
    ("audio", "other"): 0.05,
    ("", ""): 0.55,
}
_LONGEST_RUN = 5  # seconds of background with the same evidence
_ID_LETTERS = string.ascii_letters + string.digits + "_-"


class Counts(NamedTuple):
    """Numbers of videos to create, besides those of background."""

    train: int
    val: int
    test: int
    background: int


class Evidence(NamedTuple):
    """Class that is audible and class that is visible in each second, int [T]; `NOTHING` for none."""

    audio: NDArray[np.int64]
    visual: NDArray[np.int64]


def counts(videos: int | None, splits: Sequence[int] | None, background: int | None) -> Counts:
    """Numbers of videos to create.

    Args:
        videos: total number without background, divided as in AVE (3,339 : 402 : 402).
        splits: numbers of train, val and test videos; without either argument, 400, 60 and 60.
        background: number of background videos; by default as many for each training video as in AVE.

    Raises:
        ConfigError: lists all invalid numbers.
    """
    problems = count_problems(videos, splits)
    if background is not None and background < 0:
        problems.append(f"background: must be at least 0, got {background}")
    if problems:
        raise ConfigError(problems, "a synthetic AVE cannot be made from these numbers")
    train, val, test = divided(videos, splits, AVE_VIDEOS, DEFAULT_VIDEOS)
    if background is None:
        background = max(1, round(train * AVE_BACKGROUND / AVE_VIDEOS[0]))
    return Counts(train, val, test, background)


def rows_and_orders(
    annotations: str | None, wanted: Counts, seed: int
) -> tuple[list[Row], dict[str, NDArray[np.int64]], int]:
    """Create the lines of Annotations.txt, the order of each split (sorted by class, as in AVE), and the background videos.

    Args:
        annotations: folder of AVE's annotation files, from whose videos a random selection is made; None draws all from
            AVE's statistics.
        wanted: numbers of videos; all if the annotation files have fewer.
        seed: of everything random.

    Raises:
        DataError: annotation files that cannot be read.
    """
    if annotations is None:
        return *_draw(wanted, seed), wanted.background
    found = ave.read_annotations(annotations)
    background = min(wanted.background, found.array_rows[1])
    chosen: dict[str, list[int]] = {}
    by_row: dict[int, VideoRecord] = {}
    for split, count in zip(SPLITS, wanted, strict=False):
        of_split = [record for record in found.records if record.split == split and record.weak]
        pick = generator(seed, "subset", split).choice(len(of_split), min(count, len(of_split)), replace=False)
        selected = [of_split[number] for number in sorted(pick)]
        by_row |= {found.rows[record.id]: record for record in selected}
        chosen[split] = [found.rows[record.id] for record in selected]
    number = {row: position for position, row in enumerate(sorted(by_row))}
    rows = [_row(position, by_row[row]) for row, position in number.items()]
    return rows, {split: np.array([number[row] for row in of_split]) for split, of_split in chosen.items()}, background


def _row(position: int, record: VideoRecord) -> Row:
    (label,) = record.weak
    events = record.events_of(ave.TRACK)
    onset, offset = (events[0].onset, events[0].offset) if events else (0.0, 0.0)
    return Row(position + 1, label, record.name, onset, offset)


def _draw(wanted: Counts, seed: int) -> tuple[list[Row], dict[str, NDArray[np.int64]]]:
    classes, intervals = statistics()
    drawn: dict[str, tuple[str, int, tuple[float, float]]] = {}
    for split, count in zip(SPLITS, wanted, strict=False):
        for number in range(count):
            rng = generator(seed, "video", split, number)
            key = _draw_id(rng)
            while key in drawn:
                key = _draw_id(rng)
            label = classes.draw(rng)
            drawn[key] = (split, label, intervals[label].draw(rng))
    in_order = sorted(drawn, key=lambda key: (drawn[key][1], key))  # one class after the other, as in AVE
    rows = [Row(position + 1, drawn[key][1], key, *drawn[key][2]) for position, key in enumerate(in_order)]
    return rows, {
        split: np.array([position for position, key in enumerate(in_order) if drawn[key][0] == split]) for split in SPLITS
    }


def _draw_id(rng: np.random.Generator) -> str:
    return "".join(_ID_LETTERS[letter] for letter in rng.integers(0, len(_ID_LETTERS), 11))


@lru_cache(maxsize=1)
def statistics() -> tuple[Distribution, tuple[Distribution, ...]]:
    """Distribution of AVE's classes, and of the interval of the event in each class."""
    content = json.loads(resources.files("avvp_dist.datasets").joinpath("ave_statistics.json").read_text("utf-8"))["videos"]
    intervals = [_intervals(content[name]) for name in AVE.classes]
    totals = {label: sum(content[name].values()) for label, name in enumerate(AVE.classes)}
    return Distribution.from_weights(totals), tuple(intervals)


def _intervals(videos: Mapping[str, int]) -> Distribution:
    return Distribution.from_weights({tuple(map(float, key.split("-"))): count for key, count in videos.items()})


def videos(annotations: str | None, wanted: Counts, seed: int) -> Annotations:
    """The videos of a synthetic AVE as `ave.read_annotations` returns them."""
    return ave.assemble(*rows_and_orders(annotations, wanted, seed))


def evidence(seed: int, record: VideoRecord) -> Evidence:
    """Draw what is audible and visible in each second of a video, by (seed, its id).

    Both modalities agree in the seconds of the event, and only there.
    """
    rng = generator(seed, "evidence", record.id)
    audio, visual = (np.full(AVE.segments, NOTHING) for _ in range(2))
    if not record.weak:
        return Evidence(audio, visual)
    (own,) = record.weak
    for event in record.events_of(ave.TRACK) or ():
        audio[int(event.onset) : int(event.offset)] = visual[int(event.onset) : int(event.offset)] = event.label
    kinds = list(_ONE_SIDED)
    background = audio == NOTHING
    second = 0
    while second < AVE.segments:
        stop = second + int(rng.integers(2, _LONGEST_RUN + 1))
        modality, which = kinds[int(rng.choice(len(kinds), p=list(_ONE_SIDED.values())))]
        other = (own + 1 + int(rng.integers(len(AVE.classes) - 1))) % len(AVE.classes)
        if background[second]:
            ends = np.flatnonzero(~background[second:stop])
            stop = second + int(ends[0]) if len(ends) else stop
            target = {"audio": audio, "visual": visual}.get(modality)
            if target is not None:
                target[second:stop] = own if which == "own" else other
            second = stop
        else:
            second += 1
    return Evidence(audio, visual)
