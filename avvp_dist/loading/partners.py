"""Draws partner videos for methods that mix two: a seeded choice that does not depend on rank or world size.

If the split is in memory, the choice is over the whole split; if it is streamed, over the videos that are close in a second
shard order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import DataError
from avvp_dist.loading.plan import PartnerCandidates, StreamPlan

PartnerRule = Literal["disjoint", "background"]
"""Which videos can be partners: those without a common label; or, of these, a background video and one with labels."""

_TRIES = 32  # draws before all candidates are checked one by one


def labels_to_match(weak: NDArray[np.bool_], rule: PartnerRule) -> NDArray[np.bool_]:
    """Return labels, bool [N,C'], of which partners by the rule have none in common.

    Args:
        weak: bool [N,C] weak labels; a background video has none.
        rule: see `PartnerRule`.
    """
    if rule == "disjoint":
        return weak
    labeled = weak.any(axis=1)
    return np.stack([labeled, ~labeled], axis=1)


def check_partners(weak: NDArray[np.bool_], rule: PartnerRule) -> None:
    """Check that a training split has videos of both kinds that the rule ``background`` mixes.

    Args:
        weak: bool [N,C] weak labels.
        rule: see `PartnerRule`.

    Raises:
        DataError: there is no background video, or no other one.
    """
    labeled = weak.any(axis=1)
    if rule == "background" and (labeled.all() or not labeled.any()):
        missing = "background videos" if labeled.all() else "videos with events"
        raise DataError(
            f"split train: has no {missing}, which method.partners=background mixes with the others; use "
            "method.partners=disjoint, or pack the data set with its background videos"
        )


def draw_partners(
    ids: Sequence[str], weak: NDArray[np.bool_], seed: int, draws: int = 1, epoch: int = 0
) -> NDArray[np.int64]:
    """Draw partners that share no weak label, uniformly over all such videos, with replacement between draws.

    The choice for a video depends only on (seed, epoch, its id) and the split, not on the order of processing.

    Args:
        ids: ids of the N videos.
        weak: bool [N,C] weak labels.
        seed, epoch: seeds of the choice.
        draws: K, number of partners per video.

    Returns:
        int64 [N,K], numbers of the partners.

    Raises:
        DataError: lists the videos that have a label in common with every other video.
    """
    partners = np.empty((len(ids), draws), np.int64)
    labels = weak.astype(np.float32)
    unmatched = []
    for row, name in enumerate(ids):
        candidates = np.flatnonzero(labels @ labels[row] == 0)
        if not len(candidates):
            unmatched.append(name)
            continue
        rng = np.random.default_rng([seed, epoch, _id_seed(name)])
        partners[row] = candidates[rng.integers(len(candidates), size=draws)]
    if unmatched:
        raise DataError([f"{name}: no other video can be its partner" for name in unmatched], "no partners can be drawn")
    return partners


def draw_nearby_partners(
    ids: Sequence[str], weak: NDArray[np.bool_], plan: StreamPlan, places: NDArray[np.int64], draws: int
) -> NDArray[np.int64]:
    """Draw partners that share no weak label among the videos that are close in a second shard order, with replacement.

    The choice is uniform over such videos within half of ``plan.window``. If there is none, the range is doubled until one
    is found or the stream ends. It depends only on the plan's (seed, epoch), the video's id and the videos in range.

    Args:
        ids: ids of the N videos.
        weak: bool [N,C] weak labels.
        plan: of the epoch.
        places: positions in ``plan.order()`` of the videos to draw partners for, [R].
        draws: K, number of partners per video.

    Returns:
        int64 [R,K], numbers of the partners.

    Raises:
        DataError: lists the videos that have a label in common with every other video of their stream.
    """
    near, videos = plan.partner_candidates(), plan.order()[places]
    bits = np.packbits(weak, axis=1)
    root = np.random.SeedSequence([plan.seed, plan.epoch]).generate_state(1, np.uint64)
    own = np.array([_id_seed(ids[number]) for number in videos], np.uint64) ^ root
    partners = np.empty((len(places), draws), np.int64)
    unmatched = set()
    for draw in range(draws):
        left, reach = np.arange(len(places)), plan.window // 2
        first, stop = near.within(reach, places)
        for attempt in range(_TRIES):
            picked = near.line[first[left] + _random_numbers(own[left], draw * _TRIES + attempt) % (stop - first)[left]]
            fits = ~(bits[videos[left]] & bits[picked]).any(axis=1)
            partners[left[fits], draw] = picked[fits]
            left = left[~fits]
        for row in left:
            found = _search(near, bits, int(videos[row]), int(places[row]), reach)
            if len(found):
                partners[row, draw] = found[_random_numbers(own[row : row + 1], draw * _TRIES)[0] % len(found)]
            else:
                unmatched.add(ids[videos[row]])
    if unmatched:
        raise DataError(
            [f"{name}: no other video of its stream can be its partner" for name in sorted(unmatched)],
            "no partners can be drawn; use fewer data.streams, or data.mode=resident",
        )
    return partners


def _search(near: PartnerCandidates, bits: NDArray[np.uint8], video: int, place: int, reach: int) -> NDArray[np.int64]:
    """All matching videos within ``reach``, which is doubled until there is one."""
    while True:
        first, stop = (int(end[0]) for end in near.within(reach, np.array([place])))
        around = near.line[first:stop]
        found = around[~(bits[video] & bits[around]).any(axis=1)]
        if len(found) or (first == near.begin[place] and stop == near.end[place]):
            return found
        reach = 2 * reach + 1


def _id_seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _random_numbers(values: NDArray[np.uint64], number: int) -> NDArray[np.int64]:
    """The ``number``-th of a sequence of random numbers seeded by each of ``values`` (splitmix64), in 0..2^62."""
    mixed = values + np.uint64((number + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(2)).astype(np.int64)
