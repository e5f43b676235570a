"""EM-MIL (Luo et al., ECCV 2020) on HAN: a network of key segments and a network of classes, trained in turn.

A key segment is one that shows any event of the video. In E-steps, the key network learns which segments the class network
considers active; in M-steps, the class network learns the video's labels in the key segments, and their absence elsewhere.

Published code (two streams of action localization, RGB and flow): separate networks for keys and classes, the rules
`active_segments` and `key_segments`, and the phases. Reconstruction for parsing; PPL's supplement, which
reports results on LLP, does not describe the adaptation:

- The two streams are audio and visual segments, each with a key of its own.
- Keys and classes are two networks of the run's kind (`TrainStage.networks`), instead of two convolutions for each stream.
  The first is the class network, which is evaluated; each of the C outputs of the second learns whether a segment is a key,
  and their mean is the key score, which therefore does not depend on the class.
- The class network also learns the video's label, since scores need the video's probability.
- The margin of a key is negative. Most segments of LLP show an event (90 % audible, 80 % visible); the published one selects
  less than half of a video's segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import Method, MethodSection, TrainStage
from avvp_dist.methods.losses import bce, elementwise_bce
from avvp_dist.types import MODALITIES, Batch, Outputs, Targets, TrainPosition

_Length = Annotated[int, Field(ge=0)]
EmStep = Literal["whole", "keys", "classes"]
"""whole: M-step with every segment a key; keys: E-step; classes: M-step."""


class EmMilConfig(MethodSection):
    """EM-MIL on HAN."""

    name: Literal["em-mil"] = "em-mil"
    phases: tuple[_Length, _Length, _Length, _Length] = (10, 10, 10, 35)
    """Relative lengths of the phases, which are scaled to train.epochs (published: these of 65 epochs): M-steps with every
    segment a key, E-steps, M-steps, and E- and M-steps in turn, one epoch each."""
    key_margin: float = Field(-0.5, gt=-1, lt=1)
    """A segment is a key if its score exceeds the video's mean by this share of the scores' range. Published: 0.15, for long
    videos with few actions; negative values (reconstruction) also accept segments somewhat below the mean."""
    video_weight: float = Field(1.0, ge=0)
    """Weight of the class network's loss of the video in M-steps (reconstruction)."""

    @field_validator("phases")
    @classmethod
    def _check_phases(cls, phases: tuple[int, ...]) -> tuple[int, ...]:
        if not (phases[0] or phases[2] or phases[3]):
            raise ValueError("no M-step: the first, third or fourth length must be greater than 0")
        return phases

    def build(self, classes: Sequence[str], segments: int, tracks: Sequence[str] = MODALITIES) -> Method:
        """One stage: a class network and a key network."""
        return Method((_Train(self),))

    def step(self, epoch: int, epochs: int) -> EmStep:
        """Return what is trained in an epoch, counted from 0, of ``epochs``. Ends of phases are rounded up."""
        whole, keys, classes = (-(-epochs * sum(self.phases[:n]) // sum(self.phases)) for n in (1, 2, 3))
        if epoch < whole:
            return "whole"
        if epoch < keys:
            return "keys"
        if epoch < classes:
            return "classes"
        return "classes" if (epoch - classes) % 2 else "keys"


def active_segments(segments: Tensor, labels: Tensor) -> Tensor:
    """Return the E-step's targets: segments with a label whose probability exceeds its mean in the video (published code).

    Args:
        segments: [B,T,M,C] probabilities of the class network.
        labels: [B,M,C], positive for the labels of each modality.

    Returns:
        float32 [B,T,M].
    """
    above = segments > segments.mean(dim=1, keepdim=True)
    return (above & (labels > 0).unsqueeze(1)).any(dim=-1).float()


def key_segments(scores: Tensor, margin: float) -> Tensor:
    """Return where scores [B,T,M] exceed ``mean + margin * (max - min)`` of their video, bool (published code)."""
    spread = scores.amax(dim=1, keepdim=True) - scores.amin(dim=1, keepdim=True)
    return scores > scores.mean(dim=1, keepdim=True) + margin * spread


class _Train(TrainStage):
    name = "train"
    networks = 2

    def __init__(self, config: EmMilConfig) -> None:
        self.config = config

    def active_networks(self, position: TrainPosition) -> Sequence[int]:
        """See `TrainStage`: the key network in E-steps, the class network in M-steps."""
        return (1,) if self.config.step(position.epoch, position.epochs) == "keys" else (0,)

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        """Return targets of segments for the class network, [B,T,C], and for the key network, [B,T,1]."""
        labels = torch.stack([batch.audio_labels, batch.visual_labels], dim=1)  # [B,2,C]
        in_segments = labels.unsqueeze(1).expand_as(outputs.segments)  # [B,T,2,C]
        if self.config.step(position.epoch, position.epochs) != "whole":
            scores = outputs.co_trained[0].segments.mean(dim=-1)  # [B,T,2]
            in_segments = in_segments * key_segments(scores, self.config.key_margin).unsqueeze(-1)
        audio_keys, visual_keys = active_segments(outputs.segments, labels).unsqueeze(-1).unbind(dim=2)
        audio, visual = in_segments.unbind(dim=2)
        of_keys = Targets(batch.video_labels, audio_keys, visual_keys)
        return Targets(batch.video_labels, audio, visual, co_trained=(of_keys,))

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of both networks; only the active one is updated."""
        (keys,), (of_keys,) = outputs.co_trained, targets.co_trained
        video = bce(outputs.video, targets.video)
        audio, visual = _segment_losses(outputs, targets)
        # DDP waits for the gradient of every parameter, also of those that only pool segments
        key = sum(_segment_losses(keys, of_keys), start=0 * keys.video.sum(dim=1))
        total = self.config.video_weight * video + audio + visual + key
        return {"total": total, "video": video, "audio": audio, "visual": visual, "keys": key}


def _segment_losses(outputs: Outputs, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of audio and of visual segments, averaged over time and outputs, [B] each."""
    audio, visual = outputs.segments.unbind(dim=2)  # [B,T,C] each
    return (
        elementwise_bce(audio, targets.audio).mean(dim=(1, 2)),
        elementwise_bce(visual, targets.visual).mean(dim=(1, 2)),
    )
