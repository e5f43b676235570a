"""PPL (CVPR 2024): pseudo-labels of segments from prototypes of classes, re-estimated in every epoch.

The main paper is not public in full. Certain, from its abstract and supplement: several prototypes per modality and class,
found by clustering key segments; features of a momentum encoder; pseudo-labels by similarity to the prototypes with a
temperature (eq. 10), or hard ones (PPL_H); training on weak and pseudo-labels; a contrastive loss driven by the
pseudo-labels; labels re-estimated in turn with training (EM). Everything else is a reconstruction: every number in this
config except ``tau``, what a key segment is, spherical k-means, the normalization of pseudo-labels, and the form of the
contrastive loss.

An epoch starts with a pass of the momentum encoder (the teacher) over the training split, which collects key segments and
fits the prototypes (`methods.prototypes`). In each step, the teacher's features of the batch give the pseudo-labels.

Shapes: B videos, T segments, M = 2 modalities, C classes, K prototypes of a class, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods.base import CollectStage, Method, MethodSection, SplitTable, TrainStage
from avvp_dist.methods.heads import han_targets, heads_loss
from avvp_dist.methods.losses import bce, elementwise_bce
from avvp_dist.methods.prototypes import KeySegments, Prototypes, priorities
from avvp_dist.types import MODALITIES, Batch, Outputs, Targets, TrainPosition

LOGGER = logging.getLogger(__name__)
_HARD = 0.5  # a segment has the hard label of its largest soft label, if this is at least as large


class PplMethodConfig(MethodSection):
    """Prototype-based pseudo-labels."""

    name: Literal["ppl"] = "ppl"
    tau: float = Field(0.1, gt=0)
    """Temperature of the similarities that make soft pseudo-labels (published)."""
    similarity_scale: float = Field(5.0, gt=0)
    """Factor of the cosines before ``tau`` divides them. The paper's similarity is not known; with this factor the published
    ``tau`` was the best on val of the synthetic LLP."""
    hard: bool = False
    """Whether a segment's pseudo-label is its most similar class only, if the video has it (PPL_H); else soft (PPL)."""
    normalized: Literal["classes", "absent", "video"] = "classes"
    """How similarities become soft labels. classes: a softmax over all classes; absent: over the label and classes that
    the video does not have; video: over all, divided by the label's largest value in the video, so a segment keeps it."""
    warmup_epochs: int = Field(5, ge=0)
    """Epochs on the weak labels before the first prototypes, at most half of train.epochs. They cannot be the best epoch."""
    momentum: float | None = Field(0.999, ge=0, lt=1)
    """Momentum of the teacher, whose features give prototypes and pseudo-labels; null uses the network itself."""
    features: Literal["aggregated", "projected"] = "aggregated"
    """Features that prototypes, pseudo-labels and the contrastive loss use: after the network's aggregation over time and
    modalities, or before it, where a modality's features are its own."""
    key_segments: int = Field(3, ge=1)
    """Segments of a video that can be key segments of one of its classes: those of largest probability."""
    key_probability: float = Field(0.5, ge=0, le=1)
    """A video has key segments of a class in a modality if its probability there reaches this."""
    capacity: int = Field(1024, ge=1)
    """Largest number of key segments of a modality and class that are clustered: a random sample if there are more."""
    prototypes: int = Field(5, ge=1)
    """Number of prototypes per modality and class; fewer for a class with fewer key segments."""
    centered: bool = True
    """Whether the mean of a modality's key segments is subtracted from features before they are compared."""
    iterations: int = Field(10, ge=1)
    """Iterations of k-means in an epoch, starting from the prototypes of the previous one."""
    segment_weight: float = Field(1.0, ge=0)
    """Weight of the cross-entropy of segments with their pseudo-labels."""
    contrast_weight: float = Field(0.1, ge=0)
    """Weight of the contrastive loss."""
    contrast_temperature: float = Field(0.1, gt=0)
    """Temperature of the contrastive loss."""
    guided: bool = False
    """Whether HAN's losses of each modality are added; the supplement mentions none."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target of these losses, as in HAN; only with ``guided``."""
    write_labels: bool = True
    """Whether the run also writes the pseudo-labels of all training videos, as refined labels for other methods."""

    def build(self, classes: Sequence[str], segments: int, tracks: Sequence[str] = MODALITIES) -> Method:
        """Training with pseudo-labels and, optionally, the pseudo-labels of the best epoch."""
        train = _Train(self, len(classes))
        if not self.write_labels:
            return Method((train,))
        return Method((train, _Label(self, classes, segments)))


class _PseudoLabels:
    """Computes pseudo-labels from prototypes; shared by training and by the stage that writes them."""

    def __init__(self, config: PplMethodConfig, classes: int) -> None:
        self.config = config
        self.prototypes = Prototypes(len(MODALITIES), classes, config.prototypes, centered=config.centered)

    def features(self, outputs: Outputs) -> Tensor:
        """Return the features of segments, [M,B,T,D] of unit length."""
        features = outputs.features if self.config.features == "aggregated" else outputs.inputs
        assert features is not None  # the networks of tasks with two modalities have them
        return F.normalize(features.float(), dim=-1)

    def compared(self, outputs: Outputs) -> Tensor:
        """Return the features of segments that are compared with prototypes, [M,B,T,D] of unit length."""
        return self.prototypes.centered_features(self.features(outputs))

    def __call__(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return pseudo-labels [B,T,M,C] in [0, 1].

        Soft: a segment's similarities are normalized over classes, see ``normalized``.

        A label without prototypes in a modality is 0 there, see `decided`.

        Args:
            features: [M,B,T,D], a result of `compared`.
            labels: [B,T,M,C] or [B,1,M,C]: labels that the video or its segment can have.
        """
        similarity = self.prototypes.similarity(features)  # [B,T,M,C]
        possible = labels > 0
        if self.config.hard:
            largest = F.one_hot(similarity.argmax(dim=-1), similarity.shape[-1]) > 0
            return (largest & possible & similarity.isfinite()).to(similarity.dtype)
        logits = similarity * (self.config.similarity_scale / self.config.tau)
        if self.config.normalized == "absent":
            others = logits.masked_fill(possible, -torch.inf).logsumexp(dim=-1, keepdim=True)
            known = possible & logits.isfinite()
            return torch.where(known, torch.sigmoid(torch.where(known, logits - others, 0.0)), 0.0)
        soft = torch.where(possible, logits.softmax(dim=-1), 0.0)
        soft = soft.nan_to_num()  # no class of the modality has prototypes
        if self.config.normalized == "classes":
            return soft
        return soft / soft.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(soft.dtype).tiny)

    def decided(self, labels: Tensor) -> Tensor:
        """Return whether each label can be trained on, bool [B,T,M,C]: it is not the video's, or has prototypes."""
        prototypes = self.prototypes
        assert prototypes.known is not None
        return (labels == 0) | prototypes.known.any(dim=-1).view(prototypes.modalities, prototypes.classes)


class _Train(TrainStage):
    name = "train"
    irrelevant = frozenset({"write_labels"})
    makes_pseudo_labels = True

    def __init__(self, config: PplMethodConfig, classes: int) -> None:
        self.config = config
        self.teacher_momentum = config.momentum
        self._labels = _PseudoLabels(config, classes)
        self._keys: KeySegments | None = None
        self._device = torch.device("cpu")

    def start(self, artifacts: Mapping[str, Any], device: torch.device) -> None:
        self._device = device

    def scans(self, epoch: int, epochs: int) -> bool:
        return epoch >= min(self.config.warmup_epochs, epochs // 2)

    def selectable(self, epoch: int, epochs: int) -> bool:
        return self.scans(epoch, epochs)

    def scan(self, outputs: Outputs, batch: Batch) -> None:
        config = self.config
        possible = weak_by_segment(batch).amax(dim=1) > 0  # [B,M,C]
        chosen = possible & (outputs.modalities.float() >= config.key_probability)
        count = min(config.key_segments, outputs.segments.shape[1])
        seconds = outputs.segments.float().topk(count, dim=1).indices  # [B,k,M,C]
        video, number, modality, label = (chosen[:, None].expand_as(seconds)).nonzero(as_tuple=True)
        second = seconds[video, number, modality, label]
        features = self._labels.features(outputs)[modality, video, second]
        group = modality * self._labels.prototypes.classes + label
        self._collected().add(features, group, priorities(batch.index[video], second, group))

    def finish_scan(self, collective: Collective) -> None:
        self._labels.prototypes.fit(self._collected(), self.config.iterations, collective)
        self._keys = None
        if self._labels.prototypes.centers is None and collective.rank == 0:
            LOGGER.warning(
                "no class of any video reaches method.key_probability=%g: without key segments there are no pseudo-labels",
                self.config.key_probability,
            )

    def _collected(self) -> KeySegments:
        """The key segments of the pass so far."""
        if self._keys is None:
            self._keys = KeySegments(self._labels.prototypes.groups, self.config.capacity, self._device)
        return self._keys

    def pseudo_labels(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        if self._labels.prototypes.centers is None:
            return None
        return self._labels(self._labels.compared(outputs), weak_by_segment(batch))

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        targets = han_targets(batch, visual_smoothing=self.config.visual_smoothing)
        source = outputs.teacher or outputs
        pseudo = self.pseudo_labels(source, batch)
        if pseudo is None:
            return targets
        auxiliary = {"decided": self._labels.decided(weak_by_segment(batch))}
        if self.config.contrast_weight:
            hard = hard_labels(pseudo)  # [B,T,M]
            features = self._labels.compared(source).detach()
            keys = collective.all_gather(features.transpose(0, 1).contiguous(), batch.total)  # [G,M,T,D]
            auxiliary |= {
                "hard": hard,
                "keys": keys.transpose(0, 1),
                "key_labels": collective.all_gather(hard, batch.total),  # [G,T,M]
            }
        return Targets(targets.video, targets.audio, targets.visual, pseudo=pseudo, auxiliary=auxiliary)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        if self.config.guided:
            losses = heads_loss(outputs, targets)
        else:
            video = bce(outputs.video, targets.video)
            losses = {"total": video, "video": video}
        if targets.pseudo is None:
            zero = torch.zeros_like(losses["total"])
            return {**losses, "segments": zero, "contrast": zero}
        of_segments = elementwise_bce(outputs.segments, targets.pseudo) * targets.auxiliary["decided"]
        segments = of_segments.mean(dim=(1, 2, 3))
        contrast = self._contrast(outputs, targets) if "hard" in targets.auxiliary else torch.zeros_like(segments)
        total = losses["total"] + self.config.segment_weight * segments + self.config.contrast_weight * contrast
        return {**losses, "total": total, "segments": segments, "contrast": contrast}

    def _contrast(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Return the contrastive loss [B]: mean over a video's labeled segments, in both modalities; 0 if it has none.

        A segment is compared with the teacher's segments of the global batch and the prototypes, in its modality; those with
        its label are positives (supervised contrastive loss, NeurIPS 2020, with the sum outside the logarithm).
        """
        prototypes = self._labels.prototypes
        assert prototypes.centers is not None
        assert prototypes.known is not None
        modalities, classes = prototypes.modalities, prototypes.classes
        hard, keys, key_labels = (targets.auxiliary[name] for name in ("hard", "keys", "key_labels"))
        centers = prototypes.centers.view(modalities, classes * prototypes.count, -1)  # [M,CK,D]
        known = prototypes.known.view(modalities, -1)
        of_centers = torch.arange(classes, device=hard.device).repeat_interleave(prototypes.count)
        anchors = self._labels.compared(outputs).flatten(1, 2)  # [M,BT,D]
        others = torch.cat([keys.flatten(1, 2), centers], dim=1)  # [M,GT+CK,D]
        labels = torch.cat([key_labels.flatten(0, 1).T, torch.where(known, of_centers, -1)], dim=1)  # [M,GT+CK]
        of_anchors = hard.flatten(0, 1).T  # [M,BT]
        logits = anchors @ others.transpose(1, 2) / self.config.contrast_temperature
        logits = logits.masked_fill((labels < 0)[:, None], -1e4)  # segments without a label, and missing prototypes
        positive = (labels[:, None] == of_anchors[:, :, None]) & (of_anchors >= 0)[:, :, None]  # [M,BT,GT+CK]
        average = (logits * positive).sum(dim=-1) / positive.sum(dim=-1).clamp(min=1)
        labeled = of_anchors >= 0
        losses = torch.where(labeled, logits.logsumexp(dim=-1) - average, 0.0)
        videos, segments = hard.shape[:2]
        counts = labeled.unflatten(1, (videos, segments)).sum(dim=(0, 2)).clamp(min=1)
        return losses.unflatten(1, (videos, segments)).sum(dim=(0, 2)) / counts

    def state_dict(self) -> dict[str, Tensor]:
        return self._labels.prototypes.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._labels.prototypes.load_state_dict({name: value.to(self._device) for name, value in state.items()})


class _Label(CollectStage):
    """Makes the pseudo-labels of all training videos, with teacher and prototypes of the best epoch."""

    name = "labels"
    source = "train"
    use_teacher = True

    def __init__(self, config: PplMethodConfig, classes: Sequence[str], segments: int) -> None:
        self.classes = tuple(classes)
        self.segments = segments
        self._labels = _PseudoLabels(config, len(classes))
        self._table = SplitTable()

    def start(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        self._labels.prototypes.load_state_dict({name: value.to(device) for name, value in state.items()})

    def collect(self, outputs: Sequence[Outputs], batch: Batch) -> None:
        (output,) = outputs
        weak = weak_by_segment(batch)
        if self._labels.prototypes.centers is None:  # the best epoch is one of the warm-up
            labels = weak.expand_as(output.segments)
        else:
            pseudo = self._labels(self._labels.compared(output), weak)  # [B,T,M,C]
            labels = torch.where(self._labels.decided(weak), pseudo, weak)  # without prototypes, a weak label stays
        self._table.add(batch, *labels.flatten(1, 2).unbind(dim=1))

    def finish(self, collective: Collective, ids: Sequence[str]) -> RefinedLabels:
        columns = self._table.gather(collective)
        tracks = {
            track: torch.stack(columns[number :: len(MODALITIES)], dim=1).float().cpu().numpy()  # [N,T,C]
            for number, track in enumerate(MODALITIES)
        }
        about = {"refiner": "ppl", "prototypes": self._labels.prototypes.centers is not None}
        return RefinedLabels(tuple(ids), self.classes, None, tracks, about)


def weak_by_segment(batch: Batch) -> Tensor:
    """Return the labels that segments can have, [B,T,M,C] or [B,1,M,C]: refined ones of each modality, or the weak label."""
    if batch.refined is None:
        return batch.weak[:, None, None].expand(-1, 1, len(MODALITIES), -1)
    tracks = [labels if labels.dim() == 3 else labels[:, None] for labels in (batch.refined.audio, batch.refined.visual)]
    return torch.stack(tracks, dim=2)


def hard_labels(pseudo: Tensor) -> Tensor:
    """Return the class of each segment's largest pseudo-label, int64 [B,T,M] from [B,T,M,C]; -1 if it is less than 0.5."""
    largest, label = pseudo.max(dim=-1)
    return torch.where(largest >= _HARD, label, -1)
