"""LR: temporal label refinement on HAN (HAN+LR on LLP).

Three stages. Base training mixes each video with a partner that shares no label with it: a window of the one inside the
other, whose label is the union. Relabelling asks the base network, window by window, which of a video's labels are heard
and seen in a window when everything around it is someone else's. The last training, from scratch, learns windows from them.

Reconstruction: the paper gives the procedure for event localisation and results on LLP, but neither its window, stride and
threshold there nor how slices are pooled by MMIL. Chosen here: N = 4 and s = 2 as for localisation; probabilities of each
modality, thresholded at tau; pooling weights renormalised inside the window; binary cross-entropy throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from avvp_dist.config import Section
from avvp_dist.dist.collective import Collective
from avvp_dist.errors import ConfigError
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods.base import CollectStage, Method, SplitTable, Stage, TrainStage
from avvp_dist.methods.losses import bce, modality_targets
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition


class LrConfig(Section):
    """Temporal label refinement; all constants are a reconstruction."""

    name: Literal["lr"] = "lr"
    window: int = Field(4, ge=1)
    """Segments N in a window; less than half the video and one."""
    stride: int = Field(2, ge=1)
    """Segments s between the starts of two windows; divides what a window leaves of the video."""
    tau: float = Field(0.5, ge=0, le=1)
    """A label stays in a window, in a modality, when its probability there reaches this; to be tuned on val."""
    mixing_weight: float = Field(1.0, ge=0)
    """Weight of the base network's loss on mixed videos (the paper's A); 0 trains it on whole videos alone."""
    partner_seed: int = Field(2, ge=0)
    """Root of the choice of partners while relabelling."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target of base training, as in HAN."""


class Lr(Method):
    """Base training with mixed videos, relabelling of windows, training on windows."""

    def __init__(self, config: LrConfig, classes: Sequence[str], segments: int) -> None:
        self.config = config
        self.classes = tuple(classes)
        self.windows = windows(segments, config.window, config.stride)

    def stages(self) -> tuple[Stage, ...]:
        """See `Method`."""
        return _Base(self.config, self.windows), _Relabel(self.config, self.classes, self.windows), _Refine()


def windows(segments: int, length: int, stride: int) -> tuple[tuple[int, int], ...]:
    """Segments [start, stop) of all windows of a video.

    Raises:
        ConfigError: the windows do not cover the video, or a window is no minority of it; both reasons.
    """
    problems = []
    if (segments - length) % stride:
        problems.append(
            f"method.stride: {stride} does not divide the {segments - length} segments beside a window of {length}"
        )
    if 2 * length >= segments + 1:
        problems.append(f"method.window: {length} of {segments} segments; it must be less than {(segments + 1) / 2}")
    if problems:
        raise ConfigError(problems, "windows that cannot be laid over a video")
    return tuple((start, start + length) for start in range(0, segments - length + 1, stride))


class _Base(TrainStage):
    """HAN's losses on whole videos, and the video loss on videos mixed with a partner."""

    name = "base"
    irrelevant = frozenset({"tau", "partner_seed"})

    def __init__(self, config: LrConfig, spans: Sequence[tuple[int, int]]) -> None:
        self.config = config
        self.windows = tuple(spans)
        self.partners = 1 if config.mixing_weight else 0

    def also(self, batch: Batch) -> Sequence[Batch]:
        """For each window the partner's video with this one's window in it."""
        return [batch.with_segments_of(other, *window) for other in batch.partners for window in self.windows]

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        audio = modality_targets(batch.audio_labels, batch.weak, 0.0)
        return Targets(
            batch.video_labels, audio, modality_targets(batch.visual_labels, batch.weak, self.config.visual_smoothing)
        )

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        video = bce(outputs.video, targets.video)
        audio = bce(outputs.audio, targets.audio)
        visual = bce(outputs.visual, targets.visual)
        parts = {"video": video, "audio": audio, "visual": visual}
        if not outputs.others:
            return {"total": video + audio + visual, **parts}
        (other,) = batch.partners
        union = torch.maximum(targets.video, other.video_labels)
        mixed = torch.stack([bce(said.video, union) for said in outputs.others]).mean(dim=0)
        return {"total": video + audio + visual + self.config.mixing_weight * mixed, **parts, "mixed": mixed}


class _Relabel(CollectStage):
    """Labels of every window and modality, from videos in which only the window is the video's own."""

    name = "relabel"
    source = "base"
    partners = 1

    def __init__(self, config: LrConfig, classes: Sequence[str], spans: Sequence[tuple[int, int]]) -> None:
        self.classes = tuple(classes)
        self.windows = tuple(spans)
        self.tau = config.tau
        self.partner_seed = config.partner_seed
        self._about = {"refiner": "lr", **config.model_dump(include={"window", "stride", "tau", "partner_seed"})}
        self._table = SplitTable()

    def inputs(self, batch: Batch) -> Sequence[Batch]:
        """The partner's video with one window of this one's, window by window."""
        (other,) = batch.partners
        return [batch.with_segments_of(other, *window) for window in self.windows]

    def collect(self, outputs: Sequence[Outputs], batch: Batch) -> None:
        columns = [column for said in outputs for column in (said.audio, said.visual)]
        self._table.add(batch, batch.weak, *columns)

    def finish(self, collective: Collective, ids: Sequence[str]) -> RefinedLabels:
        weak, *probabilities = self._table.gather(collective)
        # the partner shares no label with the video: what is left of the video's labels is in the window
        kept = [((weak > 0) & (found >= self.tau)).float().cpu() for found in probabilities]
        return RefinedLabels(
            ids=tuple(ids),
            classes=self.classes,
            video=None,
            audio=torch.stack(kept[0::2], dim=1).numpy(),  # [N,S,C]
            visual=torch.stack(kept[1::2], dim=1).numpy(),
            provenance=self._about,
            windows=self.windows,
        )


class _Refine(TrainStage):
    """From scratch: the video's weak label, and the windows' refined ones in the place of guided losses."""

    name = "refine"
    labels_from = "relabel"

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        return Targets(batch.video_labels, batch.audio_labels, batch.visual_labels)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        refined = batch.refined
        assert refined is not None
        assert refined.windows is not None
        pooled = torch.stack([outputs.pooled_within(*window) for window in refined.windows], dim=1)  # [B,S,2,C]
        video = bce(outputs.video, targets.video)
        audio = bce(pooled[:, :, 0], refined.audio).mean(dim=1)
        visual = bce(pooled[:, :, 1], refined.visual).mean(dim=1)
        return {"total": video + audio + visual, "video": video, "audio": audio, "visual": visual}
