"""A training checkpoint: one blob, so that it is either there or not."""

from __future__ import annotations

import io
from typing import Any

import torch

from avvp_dist.errors import DataError

_FORMAT = 1


def pack(state: dict[str, Any]) -> bytes:
    """Tensors, numbers, strings, lists and dicts as bytes."""
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **state}, buffer)
    return buffer.getvalue()


def rekeyed(blob: bytes, key: str) -> bytes:
    """The same checkpoint as one of the stage ``key``: weights that another run hands over."""
    return pack({**unpack(blob), "key": key})


def unpack(blob: bytes) -> dict[str, Any]:
    """What `pack` was given, tensors on the CPU. Runs no code from the blob.

    Raises:
        DataError: not a checkpoint of this version.
    """
    try:
        state = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"the checkpoint cannot be read ({type(error).__name__}); delete the checkpoints folder") from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise DataError("the checkpoint is of another version of this package; delete the checkpoints folder")
    return state
