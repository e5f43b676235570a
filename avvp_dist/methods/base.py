"""Interfaces of a method: an ordered tuple of stages, each of which trains a network or collects an artifact.

Stages work with tensors, a `TrainPosition` and a `Collective`. They never use a model class, torch.distributed or a tracker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from avvp_dist.config import Section
from avvp_dist.dist.collective import Collective
from avvp_dist.dist.partition import split_sizes
from avvp_dist.loading.partners import PartnerRule
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.types import MODALITIES, Batch, ForwardOptions, Outputs, Targets, TrainPosition


class Stage(ABC):
    """One stage of a method.

    Attributes:
        name: unique within the method; names logs, metrics and artifacts.
        cross_modal: whether the network exchanges information between modalities, in training and in evaluation.
        irrelevant: keys of the method's config that do not affect this stage's artifact. All other keys are part of the
            artifact's cache key. A key that is omitted by mistake costs a recomputation; one included by mistake reuses a
            wrong artifact.
        external_inputs: what the stage uses besides the config, such as the content of a file that the config names; part
            of the artifact's cache key.
    """

    name: str
    cross_modal: bool = True
    irrelevant: frozenset[str] = frozenset()
    external_inputs: Mapping[str, Any] = MappingProxyType({})

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Names of the earlier stages whose artifacts this stage uses; their cache keys are part of its own."""


class TrainStage(Stage):
    """Trains a network from fresh weights; its artifact is the weights of the best epoch.

    Attributes:
        scoring_pass: options of a second forward pass without gradient, whose outputs are in ``outputs.scoring``; None for
            no such pass.
        starts_from: names of the earlier collect stages whose artifacts `start` receives.
        labels_from: name of the earlier collect stage whose `RefinedLabels` the network is trained on, if any.
        partners: number of partner videos to draw for each video in each epoch, without a common label; they are in
            ``batch.partners``.
        partner_rule: ``disjoint``: partners have no label in common with the video; ``background``: in addition, exactly one
            of the two is a background video, which has no label at all.
        mixed_windows: segments [start, stop) of each video that replace those of its partners, one window at a time; the
            outputs for these mixtures are in ``outputs.extra``, see `Batch.with_mixtures`.
        epochs: number of epochs; None for ``train.epochs``.
        networks: number of networks of the same kind, each with its own initial weights, that are trained side by side. The
            outputs of the others are in ``outputs.co_trained``. The first network is validated and kept.
        makes_pseudo_labels: whether `pseudo_labels` returns any, so that their quality is reported.
        teacher_momentum: momentum of the stage's teacher, an exponential moving average of the network that is never trained
            itself, see `train.teacher.Teacher`; its outputs are in ``outputs.teacher``. None for no teacher.
    """

    scoring_pass: ForwardOptions | None = None
    starts_from: tuple[str, ...] = ()
    labels_from: str | None = None
    partners: int = 0
    partner_rule: PartnerRule = "disjoint"
    mixed_windows: tuple[tuple[int, int], ...] = ()
    epochs: int | None = None
    networks: int = 1
    makes_pseudo_labels: bool = False
    teacher_momentum: float | None = None

    @property
    @final
    def needs(self) -> tuple[str, ...]:
        """See `Stage`."""
        return tuple(dict.fromkeys([*self.starts_from, *([self.labels_from] if self.labels_from else [])]))

    def start(self, artifacts: Mapping[str, Any], device: torch.device) -> None:
        """Receive the artifacts of the stages in ``starts_from``; called once, before the first step."""

    @abstractmethod
    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        """Return the targets of the losses; called without gradient. Label denoising happens here."""

    @abstractmethod
    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        """Return named losses of each video, [B] each. ``total`` is minimized, the others are reported.

        The training step sums over the global batch and divides by its size, so that the result does not depend on how the
        batch is divided among ranks.
        """

    def active_networks(self, position: TrainPosition) -> Sequence[int]:
        """Return the numbers of the networks to update in this step, of those of ``networks``; all by default.

        The others keep their weights and the state of their optimizer. Their losses are computed and reported all the same.
        """
        return range(self.networks)

    def scans(self, epoch: int, epochs: int) -> bool:
        """Return whether an epoch, counted from 0, of ``epochs`` starts with a pass over the training split, see `scan`."""
        return False

    def selectable(self, epoch: int, epochs: int) -> bool:
        """Return whether an epoch, counted from 0, of ``epochs`` can be the best; if none can be, all can."""
        return True

    def scan(self, outputs: Outputs, batch: Batch) -> None:
        """Process one batch of this rank in the pass at the start of an epoch.

        Args:
            outputs: of the teacher, or of the network if there is none; in eval mode, without gradient.
            batch: a part of the training split, in its order.
        """

    def finish_scan(self, collective: Collective) -> None:
        """Process what `scan` collected, after the last batch. The result belongs to `state_dict`."""

    def pseudo_labels(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """Return pseudo-labels [B,T,M,C] of segments, as in ``Targets.pseudo``; None if there are none (yet).

        Args:
            outputs: as for `scan`.
            batch: of any split.
        """
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that the stage keeps from step to step; it is saved in checkpoints and, of the best epoch, with
        the weights.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""


class CollectStage(Stage):
    """Runs a trained network once over the training split, in eval mode, and makes an artifact of its outputs.

    Attributes:
        source: name of the train stage whose best network is run.
        use_teacher: whether its teacher of the best epoch is run instead.
        partners: number of partner videos to draw for each video, without a common label; they are in ``batch.partners``.
        partner_rule: see `TrainStage`.
        partner_seed: seed of that draw.
    """

    source: str
    use_teacher: bool = False
    partners: int = 0
    partner_rule: PartnerRule = "disjoint"
    partner_seed: int = 0

    @property
    @final
    def needs(self) -> tuple[str, ...]:
        """See `Stage`."""
        return (self.source,)

    def start(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Receive the source's `TrainStage.state_dict` of the best epoch; called once, before the first batch."""

    def inputs(self, batch: Batch) -> Sequence[Batch]:
        """Return the batches to run the network on, made of one batch of the split and its partners."""
        return (batch,)

    @abstractmethod
    def collect(self, outputs: Sequence[Outputs], batch: Batch) -> None:
        """Process one batch of this rank; ``outputs`` holds the network's outputs for each of its `inputs`."""

    @abstractmethod
    def finish(self, collective: Collective, ids: Sequence[str]) -> dict[str, Any] | RefinedLabels:
        """Return the artifact: a JSON-serializable dict or refined labels, the same on all ranks.

        Called once, after the last batch.

        Args:
            collective: gathers what the other ranks collected.
            ids: ids of the split's videos, in the order of ``batch.index``.
        """


@final
@dataclass(frozen=True)
class Method:
    """A training method of one run.

    Attributes:
        stages: in the order they run.
    """

    stages: tuple[Stage, ...]

    @property
    def final(self) -> TrainStage:
        """The stage whose network is evaluated: the last one that trains."""
        return [stage for stage in self.stages if isinstance(stage, TrainStage)][-1]


class MethodSection(Section, ABC):
    """Base of the methods' config sections.

    Attributes:
        name: selects the method in a recipe; the key of `methods.METHODS`.
        segment_labels: whether the method needs segment-level labels, [B,T,C] in ``batch.refined``, from ``data.refined``.
        tracks: whose labels the method trains on, see `tasks.base.TaskSection`; None for those of any task.
        stage_epochs: names of the settings that give a stage another number of epochs than ``train.epochs``, unless null.
    """

    name: str
    segment_labels: ClassVar[bool] = False
    tracks: ClassVar[tuple[str, ...] | None] = MODALITIES
    stage_epochs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, classes: Sequence[str], segments: int, tracks: Sequence[str] = MODALITIES) -> Method:
        """Return the method for a data set.

        Args:
            classes: names of the event classes.
            segments: number of segments T of a video.
            tracks: tracks of the data set's task.

        Raises:
            ConfigError: the settings do not fit the data set, or a file that they name cannot be used.
        """


def local_rows(gathered: Tensor, collective: Collective) -> Tensor:
    """Return this rank's rows of a tensor over the global batch, in the order of `Collective.all_gather`."""
    sizes = split_sizes(len(gathered), collective.world_size)
    start = sum(sizes[: collective.rank])
    return gathered[start : start + sizes[collective.rank]]


class SplitTable:
    """Values of every video of a split, collected by all ranks.

    They are gathered in the split's order, so that sums over them do not depend on the number of ranks.
    """

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, batch: Batch, *columns: Tensor) -> None:
        """Add columns [B,C] of this rank's ``batch``."""
        self._rows.append(
            torch.stack([column.double() for column in (batch.index[:, None].expand_as(columns[0]), *columns)], 1)
        )

    def gather(self, collective: Collective) -> tuple[Tensor, ...]:
        """Return each column of all ranks, float64 [N,C] in the split's order, and empty the table."""
        rows = collective.all_gather(torch.cat(self._rows))  # [N,1+columns,C]
        self._rows.clear()
        return rows[rows[:, 0, 0].argsort(), 1:].unbind(dim=1)
