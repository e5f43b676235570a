"""The words every room shares: videos, batches, network outputs, targets, progress.

Shape letters used across the package:
    N videos of a split, B videos of a (local) batch, T segments of a video (one second each on LLP),
    C event classes, D feature width. Modality axis of length 2: 0 = audio, 1 = visual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

MODALITIES = ("audio", "visual")


class Event(NamedTuple):
    """One annotated event: class number and its segments [onset, offset), end exclusive."""

    label: int
    onset: int
    offset: int


@dataclass(frozen=True)
class VideoRecord:
    """One video as the annotations tell it, without its features.

    Attributes:
        id: unique key of the video and of its feature files (LLP: the 11-character YouTube id).
        name: the annotation files' own name for it (LLP: ``<id>_<start>_<end>``).
        split: ``train``, ``val`` or ``test``.
        weak: class numbers of the weak label, ascending, each once.
        audio_events, visual_events: annotated events; None where nobody annotated them (LLP's train split), the empty
            tuple where annotators found none.
    """

    id: str
    name: str
    split: str
    weak: tuple[int, ...]
    audio_events: tuple[Event, ...] | None = None
    visual_events: tuple[Event, ...] | None = None


@dataclass(frozen=True)
class Refined:
    """Labels that a refiner puts in the place of the weak ones, of one batch or one split; float32.

    Attributes:
        video: [B,C], or None where the refiner leaves the video's label alone.
        audio, visual: [B,C] labels of a modality of the video, [B,T,C] of its segments, or [B,S,C] of its windows.
        windows: segments [start, stop) of each of the S windows, where labels are of windows.
    """

    video: Tensor | None
    audio: Tensor
    visual: Tensor
    windows: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class Batch:
    """What one rank sees of one global batch.

    Attributes:
        streams: features by stream name, each [B,T,D of the stream], float32 (or the training precision).
        weak: weak labels, float32 [B,C], 0 or 1.
        index: number of each video in its split, int64 [B].
        total: videos in the global batch, over all ranks.
        refined: labels in place of the weak ones, where the run or the stage has them.
        partners: for each of K draws a batch of B other videos, where the stage asks for them.
    """

    streams: Mapping[str, Tensor]
    weak: Tensor
    index: Tensor
    total: int
    refined: Refined | None = None
    partners: tuple[Batch, ...] = ()

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
        """[B,C] what is in the video, to the best of what is known."""
        return self.weak if self.refined is None or self.refined.video is None else self.refined.video

    @property
    def audio_labels(self) -> Tensor:
        """[B,C] what is heard in the video."""
        return self.weak if self.refined is None else _of_video(self.refined.audio)

    @property
    def visual_labels(self) -> Tensor:
        """[B,C] what is seen in the video."""
        return self.weak if self.refined is None else _of_video(self.refined.visual)

    def with_segments_of(self, other: Batch, start: int, stop: int) -> Batch:
        """Another's videos, but for segments [start, stop), which stay this one's; sound and picture."""
        streams = {}
        for name, mine in self.streams.items():
            streams[name] = torch.cat(
                [other.streams[name][:, :start], mine[:, start:stop], other.streams[name][:, stop:]], dim=1
            )
        return replace(self, streams=streams, partners=())

    def followed_by(self, others: Sequence[Batch]) -> Batch:
        """One batch of this one's videos and then each of ``others``', for one pass of a network over all."""
        everyone = (self, *others)
        streams = {name: torch.cat([batch.streams[name] for batch in everyone]) for name in self.streams}
        return replace(self, streams=streams, partners=())

    def with_audio_of(self, other: Batch) -> Batch:
        """This batch's pictures under another's sound."""
        return replace(self, streams={**self.streams, "audio": other.audio}, partners=())


def _of_video(labels: Tensor) -> Tensor:
    return labels.amax(dim=1) if labels.dim() == 3 else labels


@dataclass(frozen=True)
class ForwardOptions:
    """How a network is run over a batch.

    Attributes:
        cross_modal: whether the modalities exchange information.
        dropout: False switches dropout off although the network is in training mode.
    """

    cross_modal: bool = True
    dropout: bool = True


@dataclass(frozen=True)
class Outputs:
    """What a network says about a batch; all probabilities in [0, 1].

    Attributes:
        video: [B,C] event in the video, either modality.
        audio, visual: [B,C] event in that modality of the video.
        segments: [B,T,2,C] event in that second and modality.
        audio_features, visual_features: [B,T,D] segment features after temporal and cross-modal aggregation.
        audio_inputs, visual_inputs: [B,T,D] segment features before it.
        temporal_weights: [B,T,2,C] weights by which segments were pooled into a modality; None where the largest was taken.
        scoring: the same batch in the stage's second pass, without gradient, where labels are judged; None where the
            stage asks for none.
        others: what the network says of the further batches that the stage made of this one, in its order.
        co_trained: what the stage's other networks say of the same batch, in their order.
    """

    video: Tensor
    audio: Tensor
    visual: Tensor
    segments: Tensor
    audio_features: Tensor
    visual_features: Tensor
    audio_inputs: Tensor
    visual_inputs: Tensor
    temporal_weights: Tensor | None = None
    scoring: Outputs | None = None
    others: tuple[Outputs, ...] = ()
    co_trained: tuple[Outputs, ...] = ()

    def pooled_within(self, start: int, stop: int) -> Tensor:
        """[B,2,C] probabilities of both modalities from segments [start, stop) alone: weights renormalised inside it."""
        segments = self.segments[:, start:stop]
        if self.temporal_weights is None:
            return segments.amax(dim=1)
        weights = self.temporal_weights[:, start:stop]
        return (weights * segments).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-12)

    def parts(self, count: int) -> tuple[Outputs, ...]:
        """These outputs cut along B into ``count`` equal parts."""
        cut: dict[str, Any] = {
            name: value.tensor_split(count) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return tuple(Outputs(**{name: pieces[number] for name, pieces in cut.items()}) for number in range(count))


@dataclass(frozen=True)
class Targets:
    """What the losses of one step aim at; each [B,C].

    Attributes:
        video, audio, visual: targets in [0, 1] of the three heads; audio and visual are [B,T,C] where segments have labels.
        removed_audio, removed_visual: bool, labels taken away as noise; None where the stage does not denoise.
        audio_weights, visual_weights: [B,C] what a label's loss counts for, 0 where it is left out; None for 1 each.
        co_trained: what the stage's other networks aim at, where that is something else.
    """

    video: Tensor
    audio: Tensor
    visual: Tensor
    removed_audio: Tensor | None = None
    removed_visual: Tensor | None = None
    audio_weights: Tensor | None = None
    visual_weights: Tensor | None = None
    co_trained: tuple[Targets, ...] = ()


@dataclass(frozen=True)
class TrainPosition:
    """Where training stands. ``epoch`` and ``step`` (within the epoch) count from 0."""

    stage: str
    epoch: int
    step: int
    epochs: int
    steps_per_epoch: int

    @property
    def global_step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step
