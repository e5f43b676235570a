"""Co-teaching+ (ICML 2019) on HAN: two networks, each trained on the labels that the other one selects.

Reconstruction, see `methods.small_loss`. Published rule: among the examples of a batch on which the two networks disagree,
each network selects those with the smallest losses, and the other network is trained on them. Here, a prediction is that of
one label in one modality, thresholded at 0.5; the rule is applied to each modality separately.

Few disagreements: a single one is kept, and the selected labels represent all positives (see `small_loss`). Otherwise the
networks lose nearly all positives once they agree, because absent labels are always trained on (observed on synthetic data,
mostly for audio). For a batch without disagreement, the published code trains on the whole batch including its noise, and
after 5000 steps on nothing; here such a batch is treated as in plain Co-teaching: each network selects among all positives.

Labels that the first network is not trained on count as removed. This includes labels on which the networks agree, although
the rule does not rank them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import Method, TrainStage
from avvp_dist.methods.heads import heads_loss
from avvp_dist.methods.losses import elementwise_bce
from avvp_dist.methods.small_loss import GatheredBatch, SmallLossConfig, keep_selected, smallest_losses
from avvp_dist.types import MODALITIES, Batch, Outputs, Targets, TrainPosition


class CoTeachingConfig(SmallLossConfig):
    """Co-teaching+ on HAN."""

    name: Literal["coteaching"] = "coteaching"
    plain_epochs: int = Field(5, ge=0)
    """Epochs of plain Co-teaching before disagreement is required (published: 0, 5, 20 or 100 of 200, by data set)."""

    def build(self, classes: Sequence[str], segments: int, tracks: Sequence[str] = MODALITIES) -> Method:
        """One stage: two networks that select each other's labels."""
        return Method((_Train(self),))


def select_trusted(
    probability: Tensor, targets: Tensor, positives: Tensor, forget: Sequence[float], *, disagree: bool
) -> Tensor:
    """Select the positives with small losses, among those on which the networks disagree.

    Args:
        probability: [2,2,B,C] of both networks, by modality, over the global batch.
        targets: [2,B,C], by modality.
        positives: bool [2,B,C].
        forget: share of each modality to leave out.
        disagree: False for plain Co-teaching, which selects among all positives.

    Returns:
        bool [2,2,B,C]: what each network selects, for the other one to be trained on.
    """
    candidates = positives
    if disagree:
        first, second = probability >= 0.5
        disputed = positives & (first != second)
        any_disputed = disputed.flatten(1).any(dim=1)[:, None, None]  # in that modality
        candidates = torch.where(any_disputed, disputed, positives)
    return smallest_losses(elementwise_bce(probability, targets), candidates, forget)


class _Train(TrainStage):
    name = "train"
    networks = 2

    def __init__(self, config: CoTeachingConfig) -> None:
        self.config = config

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        targets = self.config.targets(batch)
        gathered = GatheredBatch.gather(targets, (outputs, *outputs.co_trained), batch, collective)
        disagree = position.epoch >= self.config.plain_epochs
        by_first, by_second = select_trusted(
            gathered.probability, gathered.targets, gathered.positives, self.config.forget(position), disagree=disagree
        )
        of_first = keep_selected(targets, gathered.positives, by_second, collective)
        of_second = keep_selected(targets, gathered.positives, by_first, collective)
        return replace(of_first, co_trained=(of_second,))

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        losses = heads_loss(outputs, targets)
        second = heads_loss(outputs.co_trained[0], targets.co_trained[0])["total"]
        return {**losses, "total": losses["total"] + second, "second_network": second}
