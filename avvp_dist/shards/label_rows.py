"""Columns of labels.parquet, and the conversion of its event lists to segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from avvp_dist.types import Event, VideoRecord

_TOLERANCE = 1e-6  # of times in seconds, which are products of floats


def _list(element: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=False))


_REQUIRED = {
    "id": pa.string(),
    "name": pa.string(),
    "split": pa.string(),
    "shard": pa.int32(),
    "position": pa.int32(),
    "offset": pa.int64(),
    "nbytes": pa.int64(),
    "weak": _list(pa.int16()),
}


def schema(version: int, tracks: Sequence[str]) -> pa.Schema:
    """Columns of labels.parquet in a schema version of the index: one list of events per track."""
    time = pa.int16() if version == 1 else pa.float64()
    event = pa.struct(
        [pa.field(name, type_, nullable=False) for name, type_ in (("label", pa.int16()), ("onset", time), ("offset", time))]
    )
    return pa.schema(
        [pa.field(name, type_, nullable=False) for name, type_ in _REQUIRED.items()]
        + [pa.field(f"{track}_events", _list(event)) for track in tracks]
    )


def event_columns(record: VideoRecord, tracks: Iterable[str]) -> dict[str, list[dict[str, float]] | None]:
    """The event columns of a video's row; whole seconds are integers, which every schema version stores."""
    columns: dict[str, list[dict[str, float]] | None] = {}
    for track in tracks:
        events = record.events_of(track)
        columns[f"{track}_events"] = None if events is None else [plain(event)._asdict() for event in events]
    return columns


def plain(event: Event) -> Event:
    """The same event with whole seconds as integers: in JSON, ``3`` as earlier versions wrote it, instead of ``3.0``."""
    onset, offset = (int(time) if time == int(time) else time for time in (event.onset, event.offset))
    return Event(event.label, onset, offset)


class Timeline(NamedTuple):
    """Segments and classes to which events are converted.

    Attributes:
        segments: T.
        seconds: duration of a segment.
        classes: C.
    """

    segments: int
    seconds: float
    classes: int

    def contains(self, label: Any, onset: Any, offset: Any) -> Any:
        """Whether events (numbers or arrays) have a class and an interval within the video; False for NaN."""
        known = (label >= 0) & (label < self.classes)
        return known & (onset >= 0) & (onset < offset) & (offset <= self.segments * self.seconds + _TOLERANCE)


def flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], Any]:
    """Flatten a list column; return the row of each element, and the elements (numpy for numbers, else arrow)."""
    lists = column.combine_chunks()
    values = lists.flatten()
    parents = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lists)), parents)
    return rows, values if pa.types.is_struct(values.type) else values.to_numpy(zero_copy_only=False)


def dense(
    column: pa.ChunkedArray, what: str, timeline: Timeline, ids: Sequence[str], problems: list[str]
) -> NDArray[np.bool_] | None:
    """Events as bool [N,T,C], merging overlapping ones; None if no video is annotated.

    A segment is active if an event covers at least half of it.
    """
    if column.null_count == len(column):
        return None
    if column.null_count:
        problems.append(f"{what}: known only for some videos")
        return None
    rows, events = flat(column)
    label, onset, offset = (events.field(name).to_numpy(zero_copy_only=False) for name in ("label", "onset", "offset"))
    bad = ~timeline.contains(label, onset, offset)
    if bad.any():
        first = np.flatnonzero(bad)[0]
        problems.append(
            f"{what}: {bad.sum()} with labels or seconds out of range, the first in video {ids[rows[first]]}: class "
            f"{label[first]}, seconds {onset[first]:g} to {offset[first]:g}"
        )
        return None
    active = np.zeros((len(column), timeline.segments, timeline.classes), bool)
    for segment in range(timeline.segments):
        begin, end = segment * timeline.seconds, (segment + 1) * timeline.seconds
        covered = np.minimum(offset, end) - np.maximum(onset, begin)
        inside = covered >= timeline.seconds / 2 - _TOLERANCE
        active[rows[inside], segment, label[inside]] = True
    return active
