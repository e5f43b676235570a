"""What the features of a synthetic LLP contain: the evidence of its events, clutter and noise, in several versions.

Some classes are similar, each video has its own clutter, and the strength of a class varies. With v = video, t = second,
c = class, d = width of a stream:

    P[c]     direction of a class; confusable classes share half of it
    g[v,t,c] = active * lognormal(0, .35) of the video and class * lognormal(0, .3) of the second and class
    x[v,t]   = relu( s * sum_c g * (sqrt(d) * P[c] + .5 * normal(v,c,d)) + clutter(v) + normal(v,t,d) )

s is a constant of the stream; audio events determine the audio stream, visual events the visual and the motion stream. With
``latent`` dimensions, everything before the relu is made in a space of that many and then mapped to the d of the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from avvp_dist.datasets.catalog import LLP
from avvp_dist.datasets.synthetic_labels import generator
from avvp_dist.errors import ConfigError
from avvp_dist.shards.spec import Stream
from avvp_dist.types import Event, VideoRecord

_STRENGTH = (("vggish", 0.6), ("res152", 0.25), ("r2plus1d_18", 0.38), ("CLAP/features", 0.4), ("CLIP/features", 0.42))
_DEFAULT_STRENGTH = 0.4  # of any other stream: evidence about as strong as that of CLAP and CLIP features
_CONFUSABLE = (
    ("Speech", "Singing"),
    ("Cello", "Violin_fiddle"),
    ("Car", "Motorcycle"),
    ("Cheering", "Clapping"),
    ("Banjo", "Acoustic_guitar"),
    ("Vacuum_cleaner", "Lawn_mower"),
    ("Dog", "Cat"),
    ("Baby_laughter", "Baby_cry_infant_cry"),
    ("Chainsaw", "Lawn_mower"),
    ("Fire_alarm", "Telephone_bell_ringing"),
)
_SPEECH = LLP.classes.index("Speech")
_SHARE = 0.5**0.5
_VIDEO_SPREAD, _SECOND_SPREAD = 0.35, 0.3  # of the logarithm of the strength
_APPEARANCE = 0.5


@dataclass(frozen=True)
class Evidence:
    """Parameters of the features.

    Attributes:
        strength: s by folder of the stream.
        clutter: size of a video's own clutter, which is the same in all of its seconds.
        scenes: number of directions of a stream of which the clutter of all videos is composed; 0 for a direction of its own
            for each video.
        context: part of the strength that a class has in the other seconds of its video in the same modality.
        leak: part of the strength that an event of one modality has in the streams of the other, in the same seconds.
        speech: factor of the strength of Speech in the audio stream.
        latent: number of dimensions in which features vary, if less than d; 0 for all d.
    """

    strength: tuple[tuple[str, float], ...] = _STRENGTH
    clutter: float = 1.2
    scenes: int = 0
    context: float = 0.0
    leak: float = 0.0
    speech: float = 1.0
    latent: int = 0

    def width(self, stream: Stream) -> int:
        """Return the number of dimensions in which the features of a stream vary."""
        return min(self.latent or stream.dim, stream.dim)


_CALIBRATED = Evidence(
    strength=(
        ("vggish", 0.86),
        ("res152", 0.68),
        ("r2plus1d_18", 0.62),
        ("CLAP/features", 1.0),
        ("CLIP/features", 0.95),
    ),
    clutter=1.75,
    context=0.45,
    leak=0.06,
    speech=1.6,
    latent=96,
)
VERSIONS: Mapping[int, Evidence] = MappingProxyType({1: Evidence(), 2: _CALIBRATED})
"""Parameters of each version; a published version never changes. Version 2 was found by `benchmarks.calibrate`."""
DEFAULT_VERSION = max(VERSIONS)


def of_version(version: int | None) -> Evidence:
    """Return the parameters of a version; None for the newest.

    Raises:
        ConfigError: there is no such version.
    """
    if version is None:
        return VERSIONS[DEFAULT_VERSION]
    if version not in VERSIONS:
        raise ConfigError(f"version: {version} is not one of {', '.join(map(str, VERSIONS))}")
    return VERSIONS[version]


def stream_values(seed: int, record: VideoRecord, stream: Stream, evidence: Evidence) -> np.ndarray:
    """Return the features of one stream of a video, float16 [T,d].

    They depend only on the seed, the video's id and its events. A modality without annotations counts as empty.
    """
    rng = generator(seed, "features", record.id, stream.name)
    width = evidence.width(stream)
    values = rng.standard_normal((LLP.segments, width), dtype=np.float32)
    if evidence.scenes:
        shares = rng.standard_normal(evidence.scenes, dtype=np.float32)
        values += np.float32(evidence.clutter) * (shares @ _directions(seed, stream, "scenes", evidence.scenes, width))
    else:
        values += np.float32(evidence.clutter) * rng.standard_normal(width, dtype=np.float32)
    directions = _class_vectors(seed, stream, width)
    size = dict(evidence.strength).get(stream.folder, _DEFAULT_STRENGTH)
    for label, presence in _presence(record, stream, evidence).items():
        appearance = directions[label] + np.float32(_APPEARANCE) * rng.standard_normal(width, dtype=np.float32)
        strength = np.exp(_VIDEO_SPREAD * rng.standard_normal() + _SECOND_SPREAD * rng.standard_normal(LLP.segments))
        gain = (size * strength * presence).astype(np.float32)
        values += gain[:, None] * appearance
    if width < stream.dim:
        # einsum in float64: BLAS would use several threads for each tiny product, and add up differently on other machines
        mapping = _directions(seed, stream, "latent", width, stream.dim).astype(np.float64)
        values = np.einsum("tk,kd->td", values.astype(np.float64), mapping).astype(np.float32)
    np.maximum(values, 0, out=values)
    if stream.folder == "CLIP/features":
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(np.float16)


def _presence(record: VideoRecord, stream: Stream, evidence: Evidence) -> dict[int, np.ndarray]:
    """Return, for each class with evidence in a stream, in ascending order, its factor in each second, [T]."""
    audible = stream.name == "audio"
    own = _activity(record.events_of("audio" if audible else "visual") or ())
    found = {label: np.where(active, 1.0, evidence.context) for label, active in own.items()}
    if evidence.leak:
        for label, active in _activity(record.events_of("visual" if audible else "audio") or ()).items():
            found[label] = np.maximum(found.get(label, 0.0), evidence.leak * active)
    if audible and _SPEECH in found:
        found[_SPEECH] = found[_SPEECH] * evidence.speech
    return dict(sorted(found.items()))


def _activity(events: Iterable[Event]) -> dict[int, np.ndarray]:
    """Bool [T] for each class that occurs, in ascending order: whether it is active in each second."""
    active: dict[int, np.ndarray] = {}
    for event in events:
        active.setdefault(event.label, np.zeros(LLP.segments, bool))[int(event.onset) : int(event.offset)] = True
    return dict(sorted(active.items()))


@lru_cache(maxsize=16)
def _class_vectors(seed: int, stream: Stream, width: int) -> np.ndarray:
    """sqrt(d) * P of a stream: float32 [C,d] with rows of length sqrt(d)."""
    number = {name: index for index, name in enumerate(LLP.classes)}
    rng = generator(seed, "classes", stream.name)
    own = rng.standard_normal((len(LLP.classes), width))
    confusable = {number[name] for pair in _CONFUSABLE for name in pair}
    for label in confusable:
        own[label] *= _SHARE
    for pair in _CONFUSABLE:
        common = rng.standard_normal(width)
        for name in pair:
            own[number[name]] += _SHARE * common
    length = np.linalg.norm(own, axis=1, keepdims=True)
    return (own * (width**0.5 / length)).astype(np.float32)


@lru_cache(maxsize=16)
def _directions(seed: int, stream: Stream, purpose: str, count: int, width: int) -> np.ndarray:
    """Random directions, float32 [count,width]; a sum with normal weights has entries of variance 1."""
    rng = generator(seed, purpose, stream.name)
    return rng.standard_normal((count, width), dtype=np.float32) / np.float32(count**0.5)
