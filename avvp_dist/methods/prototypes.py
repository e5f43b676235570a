"""Prototypes of classes: spherical k-means over the key segments of a split, the same for any number of ranks.

A group is a class in one modality. Shapes: G groups, K prototypes of a group, n key segments, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.dist.collective import Collective


class KeySegments:
    """The key segments of one rank, at most ``capacity`` of each group: those of lowest priority over all ranks.

    Priorities are pseudo-random numbers of a segment, so that what is kept is a random sample of the split, independent of
    the order of the videos and of the number of ranks.
    """

    def __init__(self, groups: int, capacity: int, device: torch.device) -> None:
        self.groups = groups
        self.capacity = capacity
        self._device = device
        # largest priority that can still be kept, by group
        self._limit = torch.full((groups,), torch.iinfo(torch.int64).max, device=device)
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._count = 0

    def add(self, features: Tensor, group: Tensor, priority: Tensor) -> None:
        """Add segments, possibly none: features [n,D] of unit length, the group of each [n], its priority, int64 [n]."""
        candidates = priority <= self._limit[group]
        features, group, priority = features[candidates].float(), group[candidates], priority[candidates]
        self._parts.append((features, group, priority))
        self._count += len(group)
        if self._count > 2 * self.groups * self.capacity:
            self._compact()

    def _compact(self) -> None:
        _, group, priority = lowest = self._lowest()
        self._parts, self._count = [lowest], len(group)
        full = torch.bincount(group, minlength=self.groups) >= self.capacity
        largest = torch.zeros_like(self._limit).scatter_reduce_(0, group, priority, "amax")
        self._limit = torch.where(full, largest, self._limit)

    def prepare(self, collective: Collective) -> bool:
        """Return whether any rank has a segment; every rank must call it, before `gathered`."""
        width = self._parts[0][0].shape[1] if self._parts else 0
        of_ranks = collective.all_gather(torch.tensor([[self._count, width]], device=self._device))
        if not self._parts:  # a rank without videos
            none = torch.zeros(0, dtype=torch.int64, device=self._device)
            self._parts = [(torch.zeros(0, int(of_ranks[:, 1].max()), device=self._device), none, none)]
        return bool(of_ranks[:, 0].sum())

    def gathered(self, collective: Collective) -> tuple[Tensor, Tensor, Tensor]:
        """Return features, group and priority of this rank's segments among those that all ranks keep, sorted by group.

        Every rank must call it; the ranks together must have a segment.
        """
        features, group, priority = self._lowest()
        everywhere = collective.all_gather(torch.stack([group, priority], dim=1))
        group_of_all, priority_of_all = everywhere.unbind(dim=1)
        order = _by_group(group_of_all, priority_of_all)
        rank = _rank_in_group(group_of_all[order], self.groups)
        last = torch.full((self.groups,), torch.iinfo(torch.int64).min, device=group.device)
        inside = rank < self.capacity
        last.scatter_reduce_(0, group_of_all[order][inside], priority_of_all[order][inside], "amax")
        kept = priority <= last[group]
        return features[kept], group[kept], priority[kept]

    def _lowest(self) -> tuple[Tensor, Tensor, Tensor]:
        features, group, priority = (torch.cat(column) for column in zip(*self._parts, strict=True))
        order = _by_group(group, priority)
        order = order[_rank_in_group(group[order], self.groups) < self.capacity]
        return features[order], group[order], priority[order]


class Prototypes:
    """Up to K prototypes of each group, unit vectors found by spherical k-means; each fit starts from the previous one.

    Features of a modality share a large component, which makes all cosines large and their differences small. With
    ``centered``, the mean of its key segments is therefore subtracted from features, which are scaled to unit length again.

    Args:
        modalities: number of modalities M; the groups of a modality are consecutive.
        classes: number of classes C; G = M * C.
        count: K.
        centered: whether features are centered.

    Attributes:
        centers: [G,K,D].
        known: bool [G,K]; a group with fewer than K key segments has fewer prototypes.
        mean: [M,D], what is subtracted from features; zero if they are not centered.
    """

    def __init__(self, modalities: int, classes: int, count: int, *, centered: bool = False) -> None:
        self.modalities, self.classes, self.count, self.centered = modalities, classes, count, centered
        self.groups = modalities * classes
        self.centers: Tensor | None = None
        self.known: Tensor | None = None
        self.mean: Tensor | None = None

    def fit(self, keys: KeySegments, iterations: int, collective: Collective) -> None:
        """Run k-means on the key segments of all ranks.

        Assignments are computed on each rank and the sums of the segments of a prototype are added over ranks in float64. A
        prototype without segments is kept; a group's missing ones start as its segments of lowest priority. Without any
        segment, nothing changes.
        """
        if not keys.prepare(collective):
            return
        features, group, priority = keys.gathered(collective)
        features = self._center(features, group, collective)
        if self.centers is None or self.known is None:
            self.centers = features.new_zeros(self.groups, self.count, features.shape[1])
            self.known = torch.zeros(self.groups, self.count, dtype=torch.bool, device=features.device)
        self._start(features, group, priority, collective)
        for _ in range(iterations):
            nearest = self._assign(features, group)  # [n]
            slot = group * self.count + nearest
            sums = features.new_zeros(self.groups * self.count, features.shape[1], dtype=torch.float64)
            sums.index_add_(0, slot, features.double())
            sums = collective.all_reduce_sum(sums).view_as(self.centers)
            found = sums.norm(dim=-1, keepdim=True) > 0
            self.centers = torch.where(found, F.normalize(sums, dim=-1).float(), self.centers)

    def _center(self, features: Tensor, group: Tensor, collective: Collective) -> Tensor:
        """Set the mean of each modality's key segments; return the centered features of unit length, [n,D]."""
        modality = group // self.classes
        sums = features.new_zeros(self.modalities, features.shape[1] + 1, dtype=torch.float64)
        if self.centered:
            sums.index_add_(0, modality, F.pad(features.double(), (0, 1), value=1.0))  # the last column counts
            sums = collective.all_reduce_sum(sums)
        self.mean = (sums[:, :-1] / sums[:, -1:].clamp(min=1)).float()
        return F.normalize(features - self.mean[modality], dim=-1)

    def _start(self, features: Tensor, group: Tensor, priority: Tensor, collective: Collective) -> None:
        """Fill the missing prototypes of groups that have segments."""
        assert self.centers is not None
        assert self.known is not None
        order = _by_group(group, priority)
        order = order[_rank_in_group(group[order], self.groups) < self.count]
        features, group = collective.all_gather(features[order]), collective.all_gather(group[order])
        priority = collective.all_gather(priority[order])
        order = _by_group(group, priority)
        rank = _rank_in_group(group[order], self.groups)
        order, rank = order[rank < self.count], rank[rank < self.count]
        group, features = group[order], features[order]
        missing = ~self.known[group, rank]
        self.centers = self.centers.clone()
        self.centers[group[missing], rank[missing]] = features[missing]
        self.known = self.known.clone()
        self.known[group[missing], rank[missing]] = True

    def _assign(self, features: Tensor, group: Tensor) -> Tensor:
        """Return the nearest prototype of each segment within its group, [n]; segments are sorted by group."""
        assert self.centers is not None
        assert self.known is not None
        nearest = torch.empty_like(group)
        start = 0
        for number, size in enumerate(torch.bincount(group, minlength=self.groups).tolist()):
            if size:
                similarity = features[start : start + size] @ self.centers[number].T
                similarity.masked_fill_(~self.known[number], -torch.inf)
                nearest[start : start + size] = similarity.argmax(dim=1)
            start += size
        return nearest

    def centered_features(self, features: Tensor) -> Tensor:
        """Return features [M,B,T,D] of unit length as they are compared with prototypes: centered, if so configured."""
        assert self.mean is not None
        return F.normalize(features - self.mean[:, None, None], dim=-1)

    def similarity(self, features: Tensor) -> Tensor:
        """Return the cosine of each segment and the nearest prototype of each class of its modality.

        Args:
            features: [M,B,T,D], a result of `centered_features`.

        Returns:
            [B,T,M,C]; -inf for a class without prototypes.
        """
        assert self.centers is not None
        assert self.known is not None
        centers = self.centers.view(self.modalities, self.classes * self.count, -1)
        cosine = torch.einsum("mbtd,mkd->btmk", features, centers).unflatten(-1, (self.classes, self.count))
        return cosine.masked_fill(~self.known.view(self.modalities, self.classes, self.count), -torch.inf).amax(dim=-1)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the prototypes; empty before the first fit."""
        if self.centers is None or self.known is None or self.mean is None:
            return {}
        return {"centers": self.centers, "known": self.known, "mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.centers, self.known, self.mean = state.get("centers"), state.get("known"), state.get("mean")


def priorities(*numbers: Tensor) -> Tensor:
    """Return a pseudo-random, non-negative int64 for each row of the given integers, all of one shape.

    Multiply-xorshift hashing; the same integers always give the same number, on any device.
    """
    mixed = torch.zeros_like(numbers[0], dtype=torch.int64)
    for number in numbers:
        mixed = mixed ^ (number.to(torch.int64) + 0x1E3779B97F4A7C15)
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return mixed & torch.iinfo(torch.int64).max


def _by_group(group: Tensor, priority: Tensor) -> Tensor:
    """Return the order by group, then by priority."""
    order = priority.argsort(stable=True)
    return order[group[order].argsort(stable=True)]


def _rank_in_group(group: Tensor, groups: int) -> Tensor:
    """Return the position of each element within its group, for elements sorted by group."""
    sizes = torch.bincount(group, minlength=groups)
    starts = sizes.cumsum(0) - sizes
    return torch.arange(len(group), device=group.device) - starts[group]
