"""LR: temporal label refinement, for event localization on AVE (the paper's task) and for parsing on LLP (HAN+LR).

Three stages. Base training mixes each video with a partner: a window of the video replaces that of the partner, and the
label is the union. Relabeling inserts each window of a video into its partner and keeps the labels that the base network
then predicts. The last stage trains from scratch on these labels of windows.

The paper gives every constant for localization. For LLP it reports results only, so that this is a reconstruction there:
N = 4 and s = 2 as for localization; probabilities of each modality, thresholded at tau; pooling weights renormalized inside
the window; binary cross-entropy throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.errors import ConfigError
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods.base import CollectStage, Method, MethodSection, SplitTable, TrainStage
from avvp_dist.methods.heads import han_targets, heads_loss
from avvp_dist.methods.losses import LOSSES, with_background
from avvp_dist.types import MODALITIES, Batch, Outputs, Targets, TrainPosition

Windows = tuple[tuple[int, int], ...]
_OF_BASE = frozenset({"refine", "tau", "partner_seed"})  # keys that base training does not depend on


class LrConfig(MethodSection):
    """Temporal label refinement and its ablations."""

    tracks: ClassVar[tuple[str, ...] | None] = None
    stage_epochs: ClassVar[tuple[str, ...]] = ("base_epochs",)

    name: Literal["lr"] = "lr"
    refine: Literal["windows", "segments", "dummy", "none"] = "windows"
    """Labels of the last stage: of windows (LR); of single segments, the base network's predictions (the paper's PL); the
    video's label for every window (LR dummy); or none, which trains the base network only."""
    window: int = Field(4, ge=1)
    """Segments N in a window; fewer than (T + 1) / 2 for videos of T segments."""
    stride: int = Field(2, ge=1)
    """Segments s between the starts of two windows; must divide the number of segments outside a window."""
    tau: float = Field(0.5, ge=0, le=1)
    """A window keeps a label of the video if its probability reaches this; to be tuned on val."""
    mixing_weight: float = Field(1.0, ge=0)
    """Weight of the base network's loss on mixed videos (the paper's A); 0 trains it on whole videos only."""
    mixing: Literal["each", "together"] = "each"
    """Loss on the mixed videos of a video: of each, averaged; or of all together, pooled as if they were one (the paper)."""
    partners: Literal["disjoint", "background"] = "disjoint"
    """Partner of a video: one without a common label; or, for videos with events, one of the background videos (AVE)."""
    partner_seed: int = Field(2, ge=0)
    """Seed of the draw of partners for relabeling."""
    loss: Literal["bce", "soft_margin"] = "bce"
    """Loss of probabilities: binary cross-entropy; or the multi-label soft margin loss with probabilities in place of
    logits, as AVE's and the paper's code computes it."""
    guided: bool = True
    """Whether base training adds HAN's losses of each modality; only for networks with a head for each."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target of base training, as in HAN; only with ``guided``."""
    base_epochs: int | None = Field(None, ge=1)
    """Epochs of base training; null for train.epochs, which the last stage has."""

    def build(self, classes: Sequence[str], segments: int, tracks: Sequence[str] = MODALITIES) -> Method:
        """Base training with mixed videos, relabeling, training on the new labels; or the part that ``refine`` needs.

        Raises:
            ConfigError: the windows do not fit the data set's segments.
        """
        spans = windows(segments, self.window, self.stride)
        if self.refine == "none":
            return Method((_Base(self, spans),))
        if self.refine == "dummy":
            return Method((_Dummy(self, spans, tracks),))
        base = _Base(self, spans)
        if self.refine == "segments":
            return Method((base, _LabelSegments(self, classes, tracks, segments), _Refine(self, "segments")))
        return Method((base, _Relabel(self, classes, tracks, spans), _Refine(self, "relabel")))


def windows(segments: int, length: int, stride: int) -> Windows:
    """Return the segments [start, stop) of all windows of a video.

    Raises:
        ConfigError: the windows do not cover the video, or a window is too long; lists both problems.
    """
    problems = []
    if (segments - length) % stride:
        problems.append(
            f"method.stride: {stride} does not divide the {segments - length} segments outside a window of {length}"
        )
    if 2 * length >= segments + 1:
        problems.append(f"method.window: {length} of {segments} segments; it must be less than {(segments + 1) / 2}")
    if problems:
        raise ConfigError(problems, "windows do not fit the videos")
    return tuple((start, start + length) for start in range(0, segments - length + 1, stride))


class _Base(TrainStage):
    """Trains with the loss on whole videos and the video loss on videos mixed with a partner."""

    name = "base"
    irrelevant = _OF_BASE

    def __init__(self, config: LrConfig, spans: Windows) -> None:
        self.config = config
        self.epochs = config.base_epochs
        self.partners = 1 if config.mixing_weight else 0
        self.partner_rule = config.partners
        self.mixed_windows = spans if config.mixing_weight else ()

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        if self.config.guided:
            return han_targets(batch, visual_smoothing=self.config.visual_smoothing)
        labels = with_background(batch.video_labels, outputs)
        return Targets(labels, labels, labels)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        loss = LOSSES[self.config.loss]
        if self.config.guided:
            losses = heads_loss(outputs, targets)
        else:
            video = loss(outputs.video, targets.video)
            losses = {"total": video, "video": video}
        if not outputs.extra:
            return losses
        (other,) = batch.partners
        union = torch.maximum(targets.video, with_background(other.video_labels, outputs))
        if self.config.mixing == "together":
            together = replace(outputs.extra[0], segments=torch.cat([output.segments for output in outputs.extra], dim=1))
            mixed = loss(together.pooled_within(0, together.segments.shape[1])[:, 0], union)
        else:
            mixed = torch.stack([loss(output.video, union) for output in outputs.extra]).mean(dim=0)
        return {**losses, "total": losses["total"] + self.config.mixing_weight * mixed, "mixed": mixed}


class _Collect(CollectStage):
    """Makes labels of windows from the base network's outputs."""

    source = "base"

    def __init__(self, config: LrConfig, classes: Sequence[str], tracks: Sequence[str], spans: Windows) -> None:
        self.classes = tuple(classes)
        self.tracks = tuple(tracks)
        self.windows = spans
        self.tau = config.tau
        self.partner_seed = config.partner_seed
        self.partner_rule = config.partners
        self._table = SplitTable()

    def labels(self, kept: Sequence[Tensor], ids: Sequence[str], provenance: dict[str, object]) -> RefinedLabels:
        """Return refined labels from S * M tensors [N,C]: for each window, those of each track."""
        count = len(self.tracks)
        return RefinedLabels(
            ids=tuple(ids),
            classes=self.classes,
            video=None,
            tracks={
                track: torch.stack(list(kept[number::count]), dim=1).float().cpu().numpy()  # [N,S,C]
                for number, track in enumerate(self.tracks)
            },
            provenance={"refiner": "lr", **provenance},
            windows=self.windows,
        )


class _Relabel(_Collect):
    """Labels every window in each track, using partner videos into which the window is inserted."""

    name = "relabel"
    partners = 1

    def inputs(self, batch: Batch) -> Sequence[Batch]:
        """For each window, the partner's video with this video's window in it."""
        (other,) = batch.partners
        return [batch.with_segments_of(other, *window) for window in self.windows]

    def collect(self, outputs: Sequence[Outputs], batch: Batch) -> None:
        classes = batch.weak.shape[1]
        columns = [of_track[:, :classes] for output in outputs for of_track in output.modalities.unbind(dim=1)]
        self._table.add(batch, batch.weak, *columns)

    def finish(self, collective: Collective, ids: Sequence[str]) -> RefinedLabels:
        weak, *probabilities = self._table.gather(collective)
        # the partner shares no label with the video, so any of the video's labels that is predicted is in the window
        kept = [(weak > 0) & (probability >= self.tau) for probability in probabilities]
        about = {"window": self.windows[0][1], "stride": self.windows[1][0] if len(self.windows) > 1 else None}
        return self.labels(kept, ids, {**about, "tau": self.tau, "partner_seed": self.partner_seed})


class _LabelSegments(_Collect):
    """Labels every segment by the base network's prediction, if it is one of the video's labels (the paper's PL)."""

    name = "segments"
    irrelevant = frozenset({"tau", "partner_seed"})

    def __init__(self, config: LrConfig, classes: Sequence[str], tracks: Sequence[str], segments: int) -> None:
        super().__init__(config, classes, tracks, tuple((start, start + 1) for start in range(segments)))

    def collect(self, outputs: Sequence[Outputs], batch: Batch) -> None:
        (output,) = outputs
        predicted = output.head.predict(output.segments)[..., : batch.weak.shape[1]]  # [B,T,M,C]
        self._table.add(batch, batch.weak, *predicted.flatten(1, 2).float().unbind(dim=1))

    def finish(self, collective: Collective, ids: Sequence[str]) -> RefinedLabels:
        weak, *predicted = self._table.gather(collective)
        return self.labels([(weak > 0) & (of_segment > 0) for of_segment in predicted], ids, {"labels": "segments"})


class _Refine(TrainStage):
    """Trains from scratch on the video's weak label and the windows' refined labels, which replace the guided losses."""

    name = "refine"

    def __init__(self, config: LrConfig, labels_from: str) -> None:
        self.config = config
        self.labels_from = labels_from

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        labels = with_background(batch.video_labels, outputs)
        return Targets(labels, labels, labels)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        refined = batch.refined
        assert refined is not None
        assert refined.windows is not None
        return self._of_windows(outputs, targets, refined.windows, refined.tracks)

    def _of_windows(
        self, outputs: Outputs, targets: Targets, spans: Windows, labels: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Loss of the video and, for each track, the mean loss of its windows with labels [B,S,C]."""
        loss = LOSSES[self.config.loss]
        pooled = torch.stack([outputs.pooled_within(*window) for window in spans], dim=1)  # [B,S,M,K]
        losses = {"video": loss(outputs.video, targets.video)}
        for number, (track, of_track) in enumerate(labels.items()):
            losses[track] = loss(pooled[:, :, number], with_background(of_track, outputs)).mean(dim=1)
        return {"total": sum(losses.values(), start=torch.zeros_like(losses["video"])), **losses}


class _Dummy(_Refine):
    """Trains on the video's label for every window, without base training (the paper's LR dummy)."""

    irrelevant = frozenset({"tau", "partner_seed", "base_epochs", "mixing_weight", "mixing", "partners"})

    def __init__(self, config: LrConfig, spans: Windows, tracks: Sequence[str]) -> None:
        self.config = config
        self.windows = spans
        self.tracks = tuple(tracks)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        repeated = batch.video_labels[:, None].expand(-1, len(self.windows), -1)
        return self._of_windows(outputs, targets, self.windows, dict.fromkeys(self.tracks, repeated))
