"""HAN (ECCV 2020): multimodal MIL with individual-guided losses and label smoothing against modality noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from avvp_dist.config import Section
from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import Method, Stage, TrainStage
from avvp_dist.methods.losses import bce, smooth
from avvp_dist.types import Batch, Outputs, Progress, Targets


class HanMethodConfig(Section):
    """HAN's training."""

    name: Literal["han"] = "han"
    audio_smoothing: float = Field(0.0, ge=0, le=1)
    """Smoothing of the audio target; the paper's epsilon_a, 0 in the published code."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target; the paper's epsilon_v, 0.1 in the published code."""


class Han(Method):
    """One stage: video loss plus guided losses of each modality (paper section 4.3)."""

    def __init__(self, config: HanMethodConfig, classes: Sequence[str]) -> None:
        self.config = config

    def stages(self) -> tuple[Stage, ...]:
        """See `Method`."""
        return (_Train(self.config),)


class _Train(TrainStage):
    name = "train"

    def __init__(self, config: HanMethodConfig) -> None:
        self.config = config
        self.settings = config.model_dump()

    def targets(self, outputs: Outputs, batch: Batch, progress: Progress, collective: Collective) -> Targets:
        weak = batch.weak
        return Targets(weak, smooth(weak, self.config.audio_smoothing), smooth(weak, self.config.visual_smoothing))

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        video = bce(outputs.video, targets.video)
        audio = bce(outputs.audio, targets.audio)
        visual = bce(outputs.visual, targets.visual)
        return {"total": video + audio + visual, "video": video, "audio": audio, "visual": visual}
