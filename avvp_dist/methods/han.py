"""HAN (ECCV 2020): multimodal MIL with individual-guided losses and label smoothing against modality noise.

The paper's ablations (table 2) are settings of this method and of `models.han.HanConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from avvp_dist.config import Section
from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import Method, Stage, TrainStage
from avvp_dist.methods.losses import bce, modality_targets
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition


class HanMethodConfig(Section):
    """HAN's training."""

    name: Literal["han"] = "han"
    loss: Literal["both", "weak", "guided"] = "both"
    """Terms that are minimised. weak: the video's alone; guided: those of the modalities alone. All are reported."""
    audio_smoothing: float = Field(0.0, ge=0, le=1)
    """Smoothing of the audio target; the paper's epsilon_a, 0 in the published code."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target; the paper's epsilon_v, 0.1 in the published code. 0 leaves noise alone."""
    bootstrap: float | None = Field(None, ge=0, le=1)
    """Beta of bootstrapping, which takes the place of smoothing: a modality's target is beta * label + (1 - beta) * its own
    probability. 0.95 reconstructs the paper's ablation (Reed et al. 2015, soft targets; not in the published code)."""


class Han(Method):
    """One stage: video loss plus guided losses of each modality (paper section 4.3)."""

    def __init__(self, config: HanMethodConfig, classes: Sequence[str], segments: int) -> None:
        self.config = config

    def stages(self) -> tuple[Stage, ...]:
        """See `Method`."""
        return (_Train(self.config),)


class _Train(TrainStage):
    name = "train"

    def __init__(self, config: HanMethodConfig) -> None:
        self.config = config

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        audio, visual = batch.audio_labels, batch.visual_labels
        if self.config.bootstrap is not None:
            audio = _bootstrap(audio, outputs.audio, self.config.bootstrap)
            return Targets(batch.video_labels, audio, _bootstrap(visual, outputs.visual, self.config.bootstrap))
        audio = modality_targets(audio, batch.weak, self.config.audio_smoothing)
        return Targets(batch.video_labels, audio, modality_targets(visual, batch.weak, self.config.visual_smoothing))

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        video = bce(outputs.video, targets.video)
        audio = bce(outputs.audio, targets.audio)
        visual = bce(outputs.visual, targets.visual)
        total = {"both": video + audio + visual, "weak": video, "guided": audio + visual}[self.config.loss]
        return {"total": total, "video": video, "audio": audio, "visual": visual}


def _bootstrap(labels: Tensor, probability: Tensor, beta: float) -> Tensor:
    return beta * labels + (1 - beta) * probability.detach()
