"""Types shared by all packages: videos, batches, network outputs, targets, training position.

Shape letters used across the package:
    N videos of a split, B videos of a (local) batch, T segments of a video (usually of one second),
    C event classes, D feature width, M modalities of the outputs (audio first), K scores (see `Outputs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

MODALITIES = ("audio", "visual")


class Event(NamedTuple):
    """One annotated event: class number, and its interval [onset, offset) in seconds."""

    label: int
    onset: float
    offset: float


@dataclass(frozen=True)
class VideoRecord:
    """Annotations of one video, without its features.

    Attributes:
        id: unique key of the video such as its YouTube id.
        name: name of the video in the annotation files such as ``<id>_<start>_<end>``.
        split: ``train``, ``val`` or ``test``.
        weak: class numbers of the weak label, ascending, without duplicates.
        events: annotated events by track ; None if the video is not annotated, as is common for training
            videos. A track without events has an empty tuple.
    """

    id: str
    name: str
    split: str
    weak: tuple[int, ...]
    events: Mapping[str, tuple[Event, ...]] | None = None

    def events_of(self, track: str) -> tuple[Event, ...] | None:
        """Return the events of one track; None if it is not annotated."""
        return None if self.events is None else self.events.get(track)


@dataclass(frozen=True)
class Refined:
    """Labels from a refiner that replace the weak labels of one batch or one split; float32.

    Attributes:
        video: [B,C], or None if the refiner does not change the video's label.
        tracks: labels by track: [B,C] of the video, [B,T,C] of its segments, or [B,S,C] of its windows.
        windows: segments [start, stop) of each of the S windows, if labels are of windows.
    """

    video: Tensor | None
    tracks: Mapping[str, Tensor]
    windows: tuple[tuple[int, int], ...] | None = None

    @property
    def audio(self) -> Tensor:
        return self.tracks["audio"]

    @property
    def visual(self) -> Tensor:
        return self.tracks["visual"]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Attributes:
        streams: features by stream name, each [B,T,*shape of a segment], float32 (or the training precision).
        weak: weak labels, float32 [B,C], 0 or 1.
        index: number of each video in its split, int64 [B].
        total: number of videos in the global batch, over all ranks.
        refined: labels that replace the weak ones, if the run or the stage has them.
        partners: one batch of B partner videos for each of K draws, if the stage requests them.
        composition: for N videos made of segments of other videos, the row of the streams from which each of their segments
            is taken, int64 [N,T]; None if the rows of the streams are the videos. See `with_mixtures`.
    """

    streams: Mapping[str, Tensor]
    weak: Tensor
    index: Tensor
    total: int
    refined: Refined | None = None
    partners: tuple[Batch, ...] = ()
    composition: Tensor | None = None

    @property
    def audio(self) -> Tensor:
        return self.streams["audio"]

    @property
    def visual(self) -> Tensor:
        return self.streams["visual"]

    @property
    def motion(self) -> Tensor:
        return self.streams["motion"]

    @property
    def video_labels(self) -> Tensor:
        """[B,C] labels of the video: refined if available, else weak."""
        return self.weak if self.refined is None or self.refined.video is None else self.refined.video

    @property
    def audio_labels(self) -> Tensor:
        """[B,C] audio labels of the video: refined if available, else weak."""
        return self.weak if self.refined is None else _video_level(self.refined.audio)

    @property
    def visual_labels(self) -> Tensor:
        """[B,C] visual labels of the video: refined if available, else weak."""
        return self.weak if self.refined is None else _video_level(self.refined.visual)

    def with_segments_of(self, other: Batch, start: int, stop: int) -> Batch:
        """Replace all segments outside [start, stop) with those of ``other``, in all streams."""
        streams = {}
        for name, features in self.streams.items():
            streams[name] = torch.cat(
                [other.streams[name][:, :start], features[:, start:stop], other.streams[name][:, stop:]], dim=1
            )
        return replace(self, streams=streams, partners=())

    def with_audio_of(self, other: Batch) -> Batch:
        """Replace the audio stream with that of ``other``."""
        return replace(self, streams={**self.streams, "audio": other.audio}, partners=())

    def with_mixtures(self, windows: Sequence[tuple[int, int]]) -> Batch:
        """Append, for each partner and each window, the partners' videos with the videos' segments [start, stop) in them.

        The streams contain every video once, also if it is in several mixtures, so that networks can compute what depends on
        single segments once per video (`composed`). Labels stay this batch's.
        """
        videos, segments = self.audio.shape[:2]
        rows = torch.arange(videos, device=self.audio.device)[:, None].expand(-1, segments)  # [B,T]
        parts = [rows]
        for number in range(1, len(self.partners) + 1):
            for start, stop in windows:
                mixed = rows + number * videos
                mixed[:, start:stop] = rows[:, start:stop]
                parts.append(mixed)
        batches = (self, *self.partners)
        streams = {name: torch.cat([batch.streams[name] for batch in batches]) for name in self.streams}
        return replace(self, streams=streams, partners=(), composition=torch.cat(parts))

    def composed(self, features: Tensor) -> Tensor:
        """Return the features of the N videos, [N,T,...], from those of the rows of the streams, [B,T,...].

        Both can have k frames per segment, [.,kT,...].
        """
        if self.composition is None:
            return features
        segments = self.composition.shape[1]
        by_segment = features.unflatten(1, (segments, -1))  # [B,T,k,...]
        places = torch.arange(segments, device=features.device)
        return by_segment[self.composition, places].flatten(1, 2)

    def materialized(self) -> Batch:
        """Return the same videos with streams of their own."""
        if self.composition is None:
            return self
        streams = {name: self.composed(features) for name, features in self.streams.items()}
        return replace(self, streams=streams, composition=None)


def _video_level(labels: Tensor) -> Tensor:
    return labels.amax(dim=1) if labels.dim() == 3 else labels


@dataclass(frozen=True)
class ForwardOptions:
    """Options of a forward pass.

    Attributes:
        cross_modal: whether the modalities exchange information.
        dropout: False disables dropout even if the network is in training mode.
    """

    cross_modal: bool = True
    dropout: bool = True


class Head(Protocol):
    """What a network's scores mean, and how those of several segments are pooled; implemented in `models.pooling`."""

    @property
    def background(self) -> bool:
        """Whether the last of the K scores is the background: K = C + 1; otherwise K = C."""

    def pool(self, outputs: Outputs, start: int, stop: int) -> Tensor:
        """Return the probabilities [B,M,K] of segments [start, stop)."""

    def predict(self, segments: Tensor) -> Tensor:
        """Return the predicted classes, bool [B,T,M,K], of scores [B,T,M,K]."""


@dataclass(frozen=True)
class Outputs:
    """A network's outputs for a batch.

    M is the number of modalities with scores of their own: 2 (audio first) if each has a head, 1 if one head serves both
    together. K is the number of scores: C classes, and the background if the head has one.

    Attributes:
        video: [B,K] probabilities of the video, over all modalities.
        modalities: [B,M,K] probabilities of the video in each modality.
        segments: [B,T,M,K] scores of each segment: probabilities if the head is a sigmoid; the values before the softmax if
            it is a softmax.
        head: what the scores mean.
        features: [M,B,T,D] segment features after temporal and cross-modal aggregation; None if the modalities have no
            features in one common space.
        inputs: [M,B,T,D] segment features before it; None as ``features``.
        temporal_weights: [B,T,M,K] weights by which segments were pooled into a modality; None for max pooling and for
            softmax heads.
        scoring: outputs of the scoring pass over the same batch, without gradient; None if the stage has no such pass.
        extra: outputs for the stage's mixtures (`TrainStage.mixed_windows`), in the order of `Batch.with_mixtures`.
        co_trained: outputs of the stage's other networks for the same batch.
        teacher: outputs of the stage's teacher for the same batch, in eval mode and without gradient; None if it has none.
    """

    video: Tensor
    modalities: Tensor
    segments: Tensor
    head: Head
    features: Tensor | None = None
    inputs: Tensor | None = None
    temporal_weights: Tensor | None = None
    scoring: Outputs | None = None
    extra: tuple[Outputs, ...] = ()
    co_trained: tuple[Outputs, ...] = ()
    teacher: Outputs | None = None

    @property
    def audio(self) -> Tensor:
        """[B,K] probabilities of the video's audio, of networks with two heads."""
        return self.modalities[:, 0]

    @property
    def visual(self) -> Tensor:
        """[B,K] probabilities of the video's visual half, of networks with two heads."""
        return self.modalities[:, 1]

    @property
    def audio_features(self) -> Tensor:
        """[B,T,D] audio features after aggregation."""
        return _of_modality(self.features, 0)

    @property
    def visual_features(self) -> Tensor:
        """[B,T,D] visual features after aggregation."""
        return _of_modality(self.features, 1)

    @property
    def audio_inputs(self) -> Tensor:
        """[B,T,D] audio features before aggregation."""
        return _of_modality(self.inputs, 0)

    @property
    def visual_inputs(self) -> Tensor:
        """[B,T,D] visual features before aggregation."""
        return _of_modality(self.inputs, 1)

    def pooled_within(self, start: int, stop: int) -> Tensor:
        """Pool segments [start, stop) only: [B,M,K] probabilities of each modality, as the network pools all segments."""
        return self.head.pool(self, start, stop)

    def map(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """Apply a function to every tensor of these outputs; those of other passes and networks stay."""
        mapped: dict[str, Any] = {name: function(value) for name, value in self._tensors().items()}
        return replace(self, **mapped)

    def split(self, count: int) -> tuple[Outputs, ...]:
        """Split along B into ``count`` equal parts, without the outputs of other passes and networks."""
        parts: dict[str, Any] = {
            name: value.tensor_split(count, dim=1 if name in _MODALITY_FIRST else 0)
            for name, value in self._tensors().items()
        }
        return tuple(
            Outputs(head=self.head, **{name: split[number] for name, split in parts.items()}) for number in range(count)
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


_MODALITY_FIRST = ("features", "inputs")  # their axis of videos is the second


def _of_modality(features: Tensor | None, number: int) -> Tensor:
    assert features is not None, "the network has no features of each modality"
    return features[number]


@dataclass(frozen=True)
class Targets:
    """Targets of the losses of one step; each [B,C].

    Attributes:
        video, audio, visual: targets in [0, 1] of the three heads; audio and visual are [B,T,C] for segment-level labels.
        removed_audio, removed_visual: bool, labels removed as noise; None if the stage does not denoise.
        audio_weights, visual_weights: weight of each label's loss, 0 to leave it out; None for equal weights of 1.
        co_trained: targets of the stage's other networks, if they differ.
        pseudo: [B,T,M,C] pseudo-labels of segments in [0, 1], whose quality is reported; None if the stage makes none.
        auxiliary: further tensors that only the stage's own losses use.
    """

    video: Tensor
    audio: Tensor
    visual: Tensor
    removed_audio: Tensor | None = None
    removed_visual: Tensor | None = None
    audio_weights: Tensor | None = None
    visual_weights: Tensor | None = None
    co_trained: tuple[Targets, ...] = ()
    pseudo: Tensor | None = None
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainPosition:
    """Position in the training of a stage. ``epoch`` and ``step`` (within the epoch) are counted from 0."""

    stage: str
    epoch: int
    step: int
    epochs: int
    steps_per_epoch: int

    @property
    def global_step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step
