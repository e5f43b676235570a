"""JoCoR (CVPR 2020) on HAN: two networks trained with one joint loss for correctness and agreement.

Reconstruction, see `methods.small_loss`. The joint loss of one probability is ``(1 - lambda) (BCE1 + BCE2) + lambda (KL12 +
KL21)``, binary here; it replaces the cross-entropy in each of HAN's three losses. In the guided losses, both networks are
trained on the positives of a modality with the smallest joint losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import Method, TrainStage
from avvp_dist.methods.heads import heads_loss
from avvp_dist.methods.losses import elementwise_bce, symmetric_kl
from avvp_dist.methods.small_loss import GatheredBatch, SmallLossConfig, keep_selected, smallest_losses
from avvp_dist.types import MODALITIES, Batch, Outputs, Targets, TrainPosition


class JocorConfig(SmallLossConfig):
    """JoCoR on HAN."""

    name: Literal["jocor"] = "jocor"
    co_lambda: float = Field(0.1, ge=0, le=1)
    """Share lambda of the agreement term in the joint loss (published code: 0.1; its authors suggest trying 0.5 to 0.9)."""

    def build(self, classes: Sequence[str], segments: int, tracks: Sequence[str] = MODALITIES) -> Method:
        """One stage: two networks under a joint loss."""
        return Method((_Train(self),))


def joint_loss(first: Tensor, second: Tensor, target: Tensor, co_lambda: float) -> Tensor:
    """Return the joint loss of two networks' probabilities, elementwise."""
    cross_entropy = elementwise_bce(first, target) + elementwise_bce(second, target)
    return (1 - co_lambda) * cross_entropy + co_lambda * symmetric_kl(first, second)


class _Train(TrainStage):
    name = "train"
    networks = 2

    def __init__(self, config: JocorConfig) -> None:
        self.config = config

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        targets = self.config.targets(batch)
        gathered = GatheredBatch.gather(targets, (outputs, *outputs.co_trained), batch, collective)
        first, second = gathered.probability
        losses = joint_loss(first, second, gathered.targets, self.config.co_lambda)
        selected = smallest_losses(losses, gathered.positives, self.config.forget(position))
        return keep_selected(targets, gathered.positives, selected, collective)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        elementwise = partial(joint_loss, co_lambda=self.config.co_lambda)
        return heads_loss(outputs, targets, co_trained=outputs.co_trained, elementwise=elementwise)
