"""Quality of pseudo-labels, counted on the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from avvp_dist.shards.index import Labels

_HARD = 0.5  # a soft label of at least this counts as present


class PseudoLabelCounts:
    """Counts correct, assigned and true labels of segments, by track.

    Args:
        labels: of the split; nothing is counted if its truth is not known.
        device: where the counts are kept.
    """

    def __init__(self, labels: Labels, device: torch.device) -> None:
        self._labels = labels
        self._device = device
        self._truth: Tensor | None = None  # [N,T,M,C], made when it is needed
        self.counts: Tensor | None = None  # int64 [M,3]

    def add(self, pseudo: Tensor, index: Tensor) -> None:
        """Count one batch; does not synchronize with the device.

        Args:
            pseudo: [B,T,M,C] labels in [0, 1], one M for each track of the truth.
            index: number of each video in the split, [B].
        """
        if self._labels.truth is None:
            return
        if self._truth is None:
            tracks = [torch.from_numpy(of_track) for of_track in self._labels.truth.values()]
            self._truth = torch.stack(tracks, dim=2).to(self._device)
        hard, true = pseudo >= _HARD, self._truth[index]
        counts = torch.stack([(hard & true), hard, true]).sum(dim=(1, 2, 4)).T  # [M,3]
        self.counts = counts if self.counts is None else self.counts + counts

    def scores(self, counts: Tensor, name: str) -> dict[str, float]:
        """Return precision, recall and F1 in percent, 0 where undefined, by ``<name>/<track>_<score>``.

        Args:
            counts: `counts`, summed over ranks.
            name: first part of the names.
        """
        truth: Mapping[str, object] = self._labels.truth or {}
        found = {}
        for track, (correct, assigned, true) in zip(truth, counts.tolist(), strict=True):
            found[f"{name}/{track}_precision"] = 100 * correct / assigned if assigned else 0.0
            found[f"{name}/{track}_recall"] = 100 * correct / true if true else 0.0
            found[f"{name}/{track}_f1"] = 200 * correct / (assigned + true) if assigned + true else 0.0
        return found
