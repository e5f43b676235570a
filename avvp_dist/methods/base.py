"""What a method is: an ordered tuple of stages, each of which trains a network or collects an artifact.

Stages see tensors, a TrainPosition and a Collective; never a model class, torch.distributed or a tracker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.dist.partition import split_sizes
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.types import Batch, ForwardOptions, Outputs, Targets, TrainPosition


class Stage(ABC):
    """One stage of a method.

    Attributes:
        name: unique within the method; names logs, metrics and artifacts.
        cross_modal: forward option of the network, in training and in evaluation.
        irrelevant: keys of the method's config that change nothing in this stage's artifact. All other keys are part of the
            artifact's key: one that is missing here costs a computation, one too many lets a wrong artifact be reused.
        given: what the stage was given besides the config, such as the content of a file that the config names; part of the
            artifact's key.
    """

    name: str
    cross_modal: bool = True
    irrelevant: frozenset[str] = frozenset()
    given: Mapping[str, Any] = MappingProxyType({})

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Earlier stages whose artifacts this one is made of; their keys are part of its own."""


class TrainStage(Stage):
    """Trains a network from fresh weights; its artifact is the best epoch's weights.

    Attributes:
        scoring_pass: second pass without gradient, whose outputs `targets` finds in ``outputs.scoring``.
        starts_from: earlier collect stages whose artifacts `start` takes.
        labels_from: earlier collect stage whose `RefinedLabels` it is trained on.
        partners: videos without a common label to be drawn anew each epoch for each video; in ``batch.partners``.
        networks: networks of one kind, each with fresh weights of its own, that are trained side by side; `targets` and
            `losses` find what the others say in ``outputs.co_trained``. The first one is validated and kept.
    """

    scoring_pass: ForwardOptions | None = None
    starts_from: tuple[str, ...] = ()
    labels_from: str | None = None
    partners: int = 0
    networks: int = 1

    @property
    @final
    def needs(self) -> tuple[str, ...]:
        """See `Stage`."""
        return tuple(dict.fromkeys([*self.starts_from, *([self.labels_from] if self.labels_from else [])]))

    def also(self, batch: Batch) -> Sequence[Batch]:
        """Further batches, made of ``batch`` and its partners, that the network is trained on; see ``Outputs.others``."""
        return ()

    def start(self, artifacts: Mapping[str, Any], device: torch.device) -> None:
        """Takes the artifacts of the stages it starts from, once, before the first step."""

    @abstractmethod
    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        """What the losses aim at; called without gradient. This is where labels are denoised."""

    @abstractmethod
    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        """Losses of each video, [B] each: ``total`` is minimised, the others are reported.

        The step sums over the global batch and divides by its count, so every rank's split of a batch gives one result.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What the stage carries from step to step; goes into checkpoints."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state_dict` gave."""


class CollectStage(Stage):
    """Runs a trained network once over the training split, in eval mode, and makes an artifact of what it says.

    Attributes:
        source: the train stage whose best network is run.
        partners: videos without a common label to be drawn for each video; found in ``batch.partners``.
        partner_seed: root of that choice.
    """

    source: str
    partners: int = 0
    partner_seed: int = 0

    @property
    @final
    def needs(self) -> tuple[str, ...]:
        """See `Stage`."""
        return (self.source,)

    def inputs(self, batch: Batch) -> Sequence[Batch]:
        """The batches the network is run over, made of one batch of the split and its partners."""
        return (batch,)

    @abstractmethod
    def collect(self, outputs: Sequence[Outputs], batch: Batch) -> None:
        """Takes in one batch of this rank and what the network says of each of its `inputs`."""

    @abstractmethod
    def finish(self, collective: Collective, ids: Sequence[str]) -> dict[str, Any] | RefinedLabels:
        """The artifact, JSON-able or refined labels, the same on all ranks; called once, after the last batch.

        Args:
            collective: to gather what the other ranks collected.
            ids: the split's videos by number.
        """


def local_rows(gathered: Tensor, collective: Collective) -> Tensor:
    """This rank's rows of what `Collective.all_gather` put together of a global batch, or was decided from that."""
    sizes = split_sizes(len(gathered), collective.world_size)
    start = sum(sizes[: collective.rank])
    return gathered[start : start + sizes[collective.rank]]


class SplitTable:
    """Rows of a split that ranks collect and gather in the split's order, so that sums over them do not depend on W."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, batch: Batch, *columns: Tensor) -> None:
        """Takes in columns [B,C] of this rank's ``batch``."""
        self._rows.append(
            torch.stack([column.double() for column in (batch.index[:, None].expand_as(columns[0]), *columns)], 1)
        )

    def gather(self, collective: Collective) -> tuple[Tensor, ...]:
        """Each column of all ranks, float64 [N,C] by number of the video; empties the table."""
        rows = collective.all_gather(torch.cat(self._rows))  # [N,1+columns,C]
        self._rows.clear()
        return rows[rows[:, 0, 0].argsort(), 1:].unbind(dim=1)


class Method(ABC):
    """A training method: `methods.METHODS` maps its config's ``name`` to it, made of (config, classes, segments).

    Attributes:
        segment_labels: whether it can only train on labels of segments, [B,T,C] in ``batch.refined``, given by the run.
    """

    segment_labels: bool = False

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order they run; the last one trains the network that is evaluated."""
