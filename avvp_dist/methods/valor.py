"""VALOR (NeurIPS 2023): trains on the video's weak label and on segment-level labels of each modality.

The paper obtains these with CLIP and CLAP; here they are read from a file of refined labels (``data.refined``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import Method, MethodSection, TrainStage
from avvp_dist.methods.heads import total_of_heads
from avvp_dist.methods.losses import bce, elementwise_bce
from avvp_dist.types import MODALITIES, Batch, Outputs, Targets, TrainPosition


class ValorConfig(MethodSection):
    """VALOR's training; it has no settings of its own."""

    name: Literal["valor"] = "valor"
    segment_labels: ClassVar[bool] = True

    def build(self, classes: Sequence[str], segments: int, tracks: Sequence[str] = MODALITIES) -> Method:
        """One stage: cross-entropy of the video and of each modality's segments, without smoothing or guided losses."""
        return Method((_Train(),))


class _Train(TrainStage):
    name = "train"

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        assert batch.refined is not None  # a run without refined labels is refused (MethodSection.segment_labels)
        return Targets(batch.video_labels, batch.refined.audio, batch.refined.visual)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        audio, visual = outputs.segments.unbind(dim=2)  # [B,T,C] each
        return total_of_heads(
            video=bce(outputs.video, targets.video),
            audio=elementwise_bce(audio, targets.audio).mean(dim=(1, 2)),
            visual=elementwise_bce(visual, targets.visual).mean(dim=(1, 2)),
        )
