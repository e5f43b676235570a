"""Sums over the steps of an epoch, kept on the device and read once at its end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from avvp_dist.dist.collective import Collective
from avvp_dist.errors import TrainingError
from avvp_dist.loading.plan import Plan
from avvp_dist.metrics.denoising import removal_row
from avvp_dist.shards.index import Labels
from avvp_dist.train.pseudo_labels import PseudoLabelCounts
from avvp_dist.types import MODALITIES, Batch, Targets, TrainPosition


class EpochMeter:
    """Sums of losses, the loss of every video, removed labels and the quality of pseudo-labels in one epoch, of one rank.

    Args:
        labels: the training split's.
        device: where the sums are kept.
    """

    def __init__(self, labels: Labels, device: torch.device) -> None:
        self._labels = labels
        self._device = device
        videos, classes = labels.weak.shape
        self._video_losses = torch.zeros(videos, device=device)
        self._removed = torch.zeros(videos, 2, classes, dtype=torch.bool, device=device)
        self._sums: dict[str, Tensor] = {}
        self._denoises = False
        self._pseudo = PseudoLabelCounts(labels, device)

    def add(self, batch: Batch, losses: Mapping[str, Tensor], targets: Targets) -> None:
        """Add one step; does not synchronize with the device."""
        for name, loss in losses.items():
            summed = loss.sum(dtype=torch.float64)
            self._sums[name] = self._sums[name] + summed if name in self._sums else summed
        self._video_losses[batch.index] = losses["total"]
        if targets.removed_audio is not None and targets.removed_visual is not None:
            self._denoises = True
            self._removed[batch.index] = torch.stack([targets.removed_audio, targets.removed_visual], dim=1)
        if targets.pseudo is not None:
            self._pseudo.add(targets.pseudo, batch.index)

    def gather(self, collective: Collective) -> dict[str, Tensor]:
        """Return the sums over all ranks, as stored in a checkpoint; every rank must call it."""
        # each video is on one rank and 0 elsewhere, so a sum over ranks combines the parts
        gathered = {f"sum/{name}": collective.all_reduce_sum(value) for name, value in self._sums.items()}
        gathered["video_losses"] = collective.all_reduce_sum(self._video_losses)
        if self._denoises:
            gathered["removed"] = collective.all_reduce_sum(self._removed.to(torch.uint8)).bool()
        if self._pseudo.counts is not None:
            gathered["pseudo"] = collective.all_reduce_sum(self._pseudo.counts)
        return gathered

    def restore(self, gathered: Mapping[str, Tensor], rank: int) -> None:
        """Restore the result of `gather`: rank 0 takes the sums, the other ranks start from zero."""
        self._denoises = "removed" in gathered
        if "pseudo" in gathered:
            counts = gathered["pseudo"].to(self._device)
            self._pseudo.counts = torch.zeros_like(counts) if rank else counts
        names = [name.removeprefix("sum/") for name in gathered if name.startswith("sum/")]
        if rank:
            self._sums = {name: torch.zeros((), dtype=torch.float64, device=self._device) for name in names}
            return
        self._sums = {name: gathered[f"sum/{name}"].to(self._device) for name in names}
        self._video_losses.copy_(gathered["video_losses"])
        if self._denoises:
            self._removed.copy_(gathered["removed"])

    def check_finite(self, plan: Plan, position: TrainPosition, collective: Collective) -> None:
        """Check that all losses of the epoch so far are finite; every rank must call it.

        Raises:
            TrainingError: names the first step with a loss that is not finite, and the videos.
        """
        not_finite = ~self._video_losses.isfinite()
        if not bool(collective.all_reduce_sum(not_finite.sum()).item()):
            return
        flags = collective.all_reduce_sum(not_finite.int())  # one value per video, so only after the check above
        flagged = flags.cpu().numpy().astype(bool)
        order = plan.order()
        for step in range(position.step + 1):
            in_step = order[step * plan.batch_size : step * plan.batch_size + plan.total(step)]
            videos = [self._labels.ids[number] for number in in_step if flagged[number]]
            if videos:
                listed = ", ".join(videos[:10]) + (f" and {len(videos) - 10} more" if len(videos) > 10 else "")
                raise TrainingError(
                    f"stage {position.stage}, epoch {position.epoch + 1}, step {step + 1}: the loss is not finite for "
                    f"{len(videos)} of {len(in_step)} videos: {listed}. Lower optim.lr, set optim.clip_norm, or check these "
                    "videos' features; the last checkpoint was saved before this step"
                )

    def metrics(self, gathered: Mapping[str, Tensor], videos: int) -> dict[str, float]:
        """Return mean losses over the epoch's videos, and figures of removed labels and of pseudo-labels, if any."""
        row = {
            f"loss/{key.removeprefix('sum/')}": float(v) / videos for key, v in gathered.items() if key.startswith("sum/")
        }
        removed = self.removed(gathered)
        if removed is not None:
            by_track = {track: removed[:, number] for number, track in enumerate(MODALITIES)}
            row |= removal_row(self._labels.weak, by_track, self._labels.truth)
        if "pseudo" in gathered:
            row |= self._pseudo.scores(gathered["pseudo"], "pseudo_labels/train")
        return row

    @staticmethod
    def removed(gathered: Mapping[str, Tensor]) -> np.ndarray | None:
        """Return the labels removed in the epoch, bool [N,2,C], or None for a stage that does not denoise."""
        return gathered["removed"].cpu().numpy() if "removed" in gathered else None
