"""Distribution of the number of positive segments among independent ones, each with its own probability."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST = 1e-12  # probabilities are clamped from here to the largest value below 1, so that logarithms stay finite
_IMPOSSIBLE = -1e30  # log-probability of a count that cannot occur; minus infinity would make gradients NaN


def log_count_probability(probability: Tensor, counts: Tensor, largest: int | None = None) -> Tensor:
    """Return the log-probability that exactly ``counts`` of T independent segments are positive (Poisson-binomial).

    With f_0(0) = 1, the recursion over segments ``f_t(n) = f_{t-1}(n) (1 - p_t) + f_{t-1}(n-1) p_t`` is computed in log
    space, for all leading dimensions at once. Time and memory are proportional to T * (largest + 1).

    Args:
        probability: [...,T], of each segment, in [0, 1]. Its gradient is 0 where clamping changes it: below 1e-12, and at 1.
        counts: int64 [...], from 0 to min(T, ``largest``).
        largest: largest value of ``counts``; None for T. Probabilities of larger counts are not computed.

    Returns:
        [...], with the type of ``probability``; finite for every count that `counts` can have.

    Raises:
        ValueError: a count on the CPU is out of this range.
    """
    segments = probability.shape[-1]
    possible = segments if largest is None else min(largest, segments)
    on_cpu = counts.device.type == "cpu"  # on a GPU, the check would wait for every step
    if on_cpu and counts.numel() and not 0 <= int(counts.min()) <= int(counts.max()) <= possible:
        raise ValueError(f"counts from {int(counts.min())} to {int(counts.max())}, expected 0 to {possible}")
    width = 1 + possible
    p = probability.clamp(_SMALLEST, 1 - torch.finfo(probability.dtype).eps / 2)
    state = F.pad(p.new_zeros(*p.shape[:-1], 1), (0, width - 1), value=_IMPOSSIBLE)  # [...,n]: log f_0(n)
    for present, absent in zip(p.log().unbind(-1), torch.log1p(-p).unbind(-1), strict=True):
        one_fewer = F.pad(state[..., :-1], (1, 0), value=_IMPOSSIBLE)  # log f_{t-1}(n-1)
        state = torch.logaddexp(state + absent.unsqueeze(-1), one_fewer + present.unsqueeze(-1))
    return state.gather(-1, counts.unsqueeze(-1)).squeeze(-1)
