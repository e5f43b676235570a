"""Names of the parsing scores: levels, kinds, metrics and protocols, their order, and how tables and figures title them.

Every table, figure, option and file takes them from here, through `tasks.parsing`.
"""

from __future__ import annotations

from typing import Literal, get_args

Level = Literal["segment", "event"]
"""What is compared with the truth: single segments, or runs of segments without a gap."""
Kind = Literal["audio", "visual", "audio_visual"]
"""Where an event is: in one modality, or in both at the same time."""
Metric = Literal["audio", "visual", "audio_visual", "type", "event"]
"""F-score of a kind; ``type``: mean over the three kinds; ``event``: events of both modalities counted together."""
Protocol = Literal["joint", "modality", "none"]
"""Video-level filter of predictions: by the joint probability, by the modality's own, or none."""

LEVELS: tuple[Level, ...] = get_args(Level)
KINDS: tuple[Kind, ...] = get_args(Kind)
METRICS: tuple[Metric, ...] = get_args(Metric)
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

METRIC_HEADS: dict[str, str] = {"audio": "A", "visual": "V", "audio_visual": "AV", "type": "Type", "event": "Event"}
"""Column heads of metrics in tables, as papers print them."""
METRIC_TITLES: dict[str, str] = {
    "audio": "audio",
    "visual": "visual",
    "audio_visual": "audio-visual",
    "type": "type@AV",
    "event": "event@AV",
}
"""Names of metrics in figures."""
