"""Co-teaching+ (ICML 2019) on HAN: two networks, each of which is trained on the labels that the other one trusts.

Reconstruction, see `methods.small_loss`. Published rule: among the examples of a batch on which the two predictions differ,
each network picks those with the smallest losses, and the other one is trained on them. A prediction is here that of one
label in one modality, thresholded at 0.5; the rule is applied to each modality by itself.

Few disagreements: a single one is kept, and what is kept stands for all positives (see there). Otherwise the networks starve
once they agree, since absent labels are always trained on (seen on synthetic data: audio suffers most). Where nothing is
disagreed on, the published code trains on the whole batch, noise and all, and after 5000 steps on nothing; here such a batch
is one of plain Co-teaching: each network picks among all positives.

What the first network is not trained on counts as removed; that includes labels the networks agree on, which nobody judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.methods.base import Method, Stage, TrainStage
from avvp_dist.methods.losses import bce, elementwise_bce
from avvp_dist.methods.small_loss import GatheredBatch, SmallLossConfig, han_targets, keep, small_loss
from avvp_dist.types import Batch, Outputs, Targets, TrainPosition


class CoTeachingConfig(SmallLossConfig):
    """Co-teaching+ on HAN."""

    name: Literal["coteaching"] = "coteaching"
    plain_epochs: int = Field(5, ge=0)
    """Epochs of plain Co-teaching, before disagreement counts (published: 0, 5, 20 or 100 of 200, by data set)."""


class CoTeaching(Method):
    """One stage: two networks that choose each other's labels."""

    def __init__(self, config: CoTeachingConfig, classes: Sequence[str], segments: int) -> None:
        self.config = config

    def stages(self) -> tuple[Stage, ...]:
        """See `Method`."""
        return (_Train(self.config),)


def trusted(probability: Tensor, targets: Tensor, positives: Tensor, forget: Sequence[float], *, disagree: bool) -> Tensor:
    """The positives whose losses are small, of those that the networks disagree on.

    Args:
        probability: [2,2,B,C] of both networks, by modality, over the global batch.
        targets: [2,B,C], by modality.
        positives: bool [2,B,C].
        forget: share of each modality to leave out.
        disagree: False for plain Co-teaching, which chooses among all positives.

    Returns:
        bool [2,2,B,C]: what each network trusts, for the other one to be trained on.
    """
    candidates = positives
    if disagree:
        first, second = probability >= 0.5
        disputed = positives & (first != second)
        any_disputed = disputed.flatten(1).any(dim=1)[:, None, None]  # in that modality
        candidates = torch.where(any_disputed, disputed, positives)
    return small_loss(elementwise_bce(probability, targets), candidates, forget)


class _Train(TrainStage):
    name = "train"
    networks = 2

    def __init__(self, config: CoTeachingConfig) -> None:
        self.config = config

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        plain = han_targets(batch, self.config)
        gathered = GatheredBatch.gather(plain, (outputs, *outputs.co_trained), batch, collective)
        disagree = position.epoch >= self.config.plain_epochs
        by_first, by_second = trusted(
            gathered.probability, gathered.targets, gathered.positives, self.config.forget(position), disagree=disagree
        )
        mine = keep(plain, gathered.positives, by_second, collective)
        return replace(mine, co_trained=(keep(plain, gathered.positives, by_first, collective),))

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        (other,), (aims,) = outputs.co_trained, targets.co_trained
        parts = _han_losses(outputs, targets)
        second = sum(_han_losses(other, aims).values(), torch.zeros_like(parts["video"]))
        return {"total": parts["video"] + parts["audio"] + parts["visual"] + second, **parts, "second_network": second}


def _han_losses(outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
    return {
        "video": bce(outputs.video, targets.video),
        "audio": bce(outputs.audio, targets.audio, targets.audio_weights),
        "visual": bce(outputs.visual, targets.visual, targets.visual_weights),
    }
