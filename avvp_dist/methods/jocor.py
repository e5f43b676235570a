"""JoCoR (CVPR 2020) on HAN: two networks under one loss that wants them right and of one mind.

Reconstruction, see `methods.small_loss`. The joint loss of one probability is ``(1 - lambda) (BCE1 + BCE2) + lambda (KL12 +
KL21)``, binary here; it takes the place of the cross-entropy in each of HAN's three losses. In the guided ones the positives
of a modality with the smallest joint losses are kept, and both networks are trained on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import Method, Stage, TrainStage
from avvp_dist.methods.losses import elementwise_bce, per_video, symmetric_kl
from avvp_dist.methods.small_loss import GatheredBatch, SmallLossConfig, han_targets, keep, small_loss
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition


class JocorConfig(SmallLossConfig):
    """JoCoR on HAN."""

    name: Literal["jocor"] = "jocor"
    co_lambda: float = Field(0.1, ge=0, le=1)
    """Share lambda of agreement in the joint loss (published code: 0.1; its authors advise trying 0.5 to 0.9)."""


class Jocor(Method):
    """One stage: two networks under a joint loss."""

    def __init__(self, config: JocorConfig, classes: Sequence[str], segments: int) -> None:
        self.config = config

    def stages(self) -> tuple[Stage, ...]:
        """See `Method`."""
        return (_Train(self.config),)


def joint_loss(one: Tensor, other: Tensor, target: Tensor, co_lambda: float) -> Tensor:
    """The joint loss of two networks' probabilities, element by element, same shape as its arguments."""
    right = elementwise_bce(one, target) + elementwise_bce(other, target)
    return (1 - co_lambda) * right + co_lambda * symmetric_kl(one, other)


class _Train(TrainStage):
    name = "train"
    networks = 2

    def __init__(self, config: JocorConfig) -> None:
        self.config = config

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        plain = han_targets(batch, self.config)
        gathered = GatheredBatch.gather(plain, (outputs, *outputs.co_trained), batch, collective)
        one, other = gathered.probability
        losses = joint_loss(one, other, gathered.targets, self.config.co_lambda)
        kept = small_loss(losses, gathered.positives, self.config.forget(position))
        return keep(plain, gathered.positives, kept, collective)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        (other,) = outputs.co_trained

        def joint(one: Tensor, other: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
            return per_video(joint_loss(one, other, target, self.config.co_lambda), weights)

        video = joint(outputs.video, other.video, targets.video)
        audio = joint(outputs.audio, other.audio, targets.audio, targets.audio_weights)
        visual = joint(outputs.visual, other.visual, targets.visual, targets.visual_weights)
        return {"total": video + audio + visual, "video": video, "audio": audio, "visual": visual}
