"""VALOR (NeurIPS 2023): the video's weak label, and labels of each modality's segments from elsewhere.

The paper takes them from CLIP and CLAP; here they come from a file of refined labels (``data.refined``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from avvp_dist.config import Section
from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import Method, Stage, TrainStage
from avvp_dist.methods.losses import bce, elementwise_bce
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition


class ValorConfig(Section):
    """VALOR's training; it has no settings of its own."""

    name: Literal["valor"] = "valor"


class Valor(Method):
    """One stage: cross-entropy of the video and of each modality's segments, no smoothing and no guided loss."""

    segment_labels = True

    def __init__(self, config: ValorConfig, classes: Sequence[str], segments: int) -> None:
        self.config = config

    def stages(self) -> tuple[Stage, ...]:
        """See `Method`."""
        return (_Train(),)


class _Train(TrainStage):
    name = "train"

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        assert batch.refined is not None  # app.run refuses to train without (Method.segment_labels)
        return Targets(batch.video_labels, batch.refined.audio, batch.refined.visual)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        video = bce(outputs.video, targets.video)
        heard, seen = outputs.segments.unbind(dim=2)  # [B,T,C] each
        audio = elementwise_bce(heard, targets.audio).mean(dim=(1, 2))
        visual = elementwise_bce(seen, targets.visual).mean(dim=(1, 2))
        return {"total": video + audio + visual, "video": video, "audio": audio, "visual": visual}
