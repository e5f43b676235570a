"""HAN (ECCV 2020): multimodal multiple-instance learning with individual-guided losses and label smoothing.

The paper's ablations (table 2) are settings of this method and of `models.han.HanConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import Method, MethodSection, TrainStage
from avvp_dist.methods.heads import han_targets, heads_loss
from avvp_dist.types import MODALITIES, Batch, Outputs, Targets, TrainPosition


class HanMethodConfig(MethodSection):
    """HAN's training."""

    name: Literal["han"] = "han"
    loss: Literal["both", "weak", "guided"] = "both"
    """Loss terms to minimize. weak: the video's only; guided: those of the modalities only. All terms are reported."""
    audio_smoothing: float = Field(0.0, ge=0, le=1)
    """Smoothing of the audio target; the paper's epsilon_a, 0 in the published code."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target; the paper's epsilon_v, 0.1 in the published code. 0 does not model label noise."""
    bootstrap: float | None = Field(None, ge=0, le=1)
    """Beta of bootstrapping, which replaces smoothing: a modality's target is beta * label + (1 - beta) * its own
    probability. 0.95 reconstructs the paper's ablation (Reed et al. 2015, soft targets; not in the published code)."""

    def build(self, classes: Sequence[str], segments: int, tracks: Sequence[str] = MODALITIES) -> Method:
        """One stage: the video loss plus the guided loss of each modality (paper section 4.3)."""
        return Method((_Train(self),))


class _Train(TrainStage):
    name = "train"

    def __init__(self, config: HanMethodConfig) -> None:
        self.config = config

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        beta = self.config.bootstrap
        if beta is None:
            return han_targets(
                batch, audio_smoothing=self.config.audio_smoothing, visual_smoothing=self.config.visual_smoothing
            )
        audio = _bootstrap(batch.audio_labels, outputs.audio, beta)
        return Targets(batch.video_labels, audio, _bootstrap(batch.visual_labels, outputs.visual, beta))

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        losses = heads_loss(outputs, targets)
        if self.config.loss == "weak":
            losses["total"] = losses["video"]
        if self.config.loss == "guided":
            losses["total"] = losses["audio"] + losses["visual"]
        return losses


def _bootstrap(labels: Tensor, probability: Tensor, beta: float) -> Tensor:
    return beta * labels + (1 - beta) * probability.detach()
