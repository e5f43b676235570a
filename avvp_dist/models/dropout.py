"""Dropout that does not dominate a training step on CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 1 << 16


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zeros each element with probability ``rate`` and scales the rest so that the mean stays.

    torch's own on accelerators. On CPUs it draws 16 random bits an element (a rate exact to 1/65536); torch's draw took a
    quarter of a bfloat16 step.
    """
    if not rate or x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = round(rate * _LEVELS)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    scale = torch.tensor(_LEVELS / (_LEVELS - dropped), dtype=x.dtype)
    return x * torch.where(bits >= dropped - _LEVELS // 2, scale, torch.zeros_like(scale))
