"""LR: temporal label refinement on HAN (HAN+LR on LLP).

Three stages. Base training mixes each video with a partner that shares no label with it: a window of the video replaces that
of the partner, and the label is the union. Relabeling inserts each window of a video into its partner and keeps the labels
that the base network then predicts, in each modality. The last stage trains from scratch on these labels of windows.

Reconstruction: the paper describes the procedure for event localization and reports results on LLP, but neither the window,
stride and threshold used there nor how MMIL pools slices. Chosen here: N = 4 and s = 2 as for localization; probabilities of
each modality, thresholded at tau; pooling weights renormalized inside the window; binary cross-entropy throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.errors import ConfigError
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods.base import CollectStage, Method, MethodSection, SplitTable, TrainStage
from avvp_dist.methods.heads import han_targets, heads_loss, total_of_heads
from avvp_dist.methods.losses import bce
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition


class LrConfig(MethodSection):
    """Temporal label refinement; all constants are a reconstruction."""

    name: Literal["lr"] = "lr"
    window: int = Field(4, ge=1)
    """Segments N in a window; fewer than (T + 1) / 2 for videos of T segments."""
    stride: int = Field(2, ge=1)
    """Segments s between the starts of two windows; must divide the number of segments outside a window."""
    tau: float = Field(0.5, ge=0, le=1)
    """A window keeps a label in a modality if the label's probability there reaches this; to be tuned on val."""
    mixing_weight: float = Field(1.0, ge=0)
    """Weight of the base network's loss on mixed videos (the paper's A); 0 trains it on whole videos only."""
    partner_seed: int = Field(2, ge=0)
    """Seed of the draw of partners for relabeling."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target of base training, as in HAN."""

    def build(self, classes: Sequence[str], segments: int) -> Method:
        """Base training with mixed videos, relabeling of windows, training on windows.

        Raises:
            ConfigError: the windows do not fit the data set's segments.
        """
        spans = windows(segments, self.window, self.stride)
        return Method((_Base(self, spans), _Relabel(self, classes, spans), _Refine()))


def windows(segments: int, length: int, stride: int) -> tuple[tuple[int, int], ...]:
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
    """Trains with HAN's losses on whole videos and the video loss on videos mixed with a partner."""

    name = "base"
    irrelevant = frozenset({"tau", "partner_seed"})

    def __init__(self, config: LrConfig, spans: Sequence[tuple[int, int]]) -> None:
        self.config = config
        self.windows = tuple(spans)
        self.partners = 1 if config.mixing_weight else 0

    def extra_batches(self, batch: Batch) -> Sequence[Batch]:
        """For each window, the partner's video with this video's window in it."""
        return [batch.with_segments_of(other, *window) for other in batch.partners for window in self.windows]

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        return han_targets(batch, visual_smoothing=self.config.visual_smoothing)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        losses = heads_loss(outputs, targets)
        if not outputs.extra:
            return losses
        (other,) = batch.partners
        union = torch.maximum(targets.video, other.video_labels)
        mixed = torch.stack([bce(output.video, union) for output in outputs.extra]).mean(dim=0)
        return {**losses, "total": losses["total"] + self.config.mixing_weight * mixed, "mixed": mixed}


class _Relabel(CollectStage):
    """Labels every window in each modality, using partner videos into which the window is inserted."""

    name = "relabel"
    source = "base"
    partners = 1

    def __init__(self, config: LrConfig, classes: Sequence[str], spans: Sequence[tuple[int, int]]) -> None:
        self.classes = tuple(classes)
        self.windows = tuple(spans)
        self.tau = config.tau
        self.partner_seed = config.partner_seed
        self._provenance = {"refiner": "lr", **config.model_dump(include={"window", "stride", "tau", "partner_seed"})}
        self._table = SplitTable()

    def inputs(self, batch: Batch) -> Sequence[Batch]:
        """For each window, the partner's video with this video's window in it."""
        (other,) = batch.partners
        return [batch.with_segments_of(other, *window) for window in self.windows]

    def collect(self, outputs: Sequence[Outputs], batch: Batch) -> None:
        columns = [column for output in outputs for column in (output.audio, output.visual)]
        self._table.add(batch, batch.weak, *columns)

    def finish(self, collective: Collective, ids: Sequence[str]) -> RefinedLabels:
        weak, *probabilities = self._table.gather(collective)
        # the partner shares no label with the video, so any of the video's labels that is predicted is in the window
        kept = [((weak > 0) & (probability >= self.tau)).float().cpu() for probability in probabilities]
        return RefinedLabels(
            ids=tuple(ids),
            classes=self.classes,
            video=None,
            audio=torch.stack(kept[0::2], dim=1).numpy(),  # [N,S,C]
            visual=torch.stack(kept[1::2], dim=1).numpy(),
            provenance=self._provenance,
            windows=self.windows,
        )


class _Refine(TrainStage):
    """Trains from scratch on the video's weak label and the windows' refined labels, which replace the guided losses."""

    name = "refine"
    labels_from = "relabel"

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        return Targets(batch.video_labels, batch.audio_labels, batch.visual_labels)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        refined = batch.refined
        assert refined is not None
        assert refined.windows is not None
        pooled = torch.stack([outputs.pooled_within(*window) for window in refined.windows], dim=1)  # [B,S,2,C]
        return total_of_heads(
            video=bce(outputs.video, targets.video),
            audio=bce(pooled[:, :, 0], refined.audio).mean(dim=1),
            visual=bce(pooled[:, :, 1], refined.visual).mean(dim=1),
        )
