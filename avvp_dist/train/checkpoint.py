"""A training checkpoint: one blob behind a header with its checksum, so that it is whole and unchanged, or not used."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from avvp_dist.errors import DataError
from avvp_dist.storage import integrity

_MAGIC = b"AVVPCKPT"
_FORMAT = 2  # of the container; 1 was a bare file of torch.save
_STATE = 1  # of what is inside
_ZIP = b"PK\x03\x04"  # how files of torch.save begin


def pack(state: dict[str, Any]) -> bytes:
    """Tensors, numbers, strings, lists and dicts as bytes."""
    buffer = io.BytesIO()
    torch.save({"format": _STATE, **state}, buffer)
    return integrity.wrap(buffer.getvalue(), _MAGIC, _FORMAT)


def rekeyed(blob: bytes, key: str) -> bytes:
    """The same checkpoint as one of the stage ``key``: weights that another run hands over."""
    return pack({**unpack(blob), "key": key})


def unpack(blob: bytes, what: str = "the checkpoint") -> dict[str, Any]:
    """What `pack` was given, tensors on the CPU. Runs no code from the blob.

    Args:
        blob: what `pack` returned.
        what: names it in messages, best by its file.

    Raises:
        DataError: not a checkpoint of this version, or a damaged one.
    """
    if blob.startswith(_ZIP):
        raise DataError(f"{what}: a checkpoint of an earlier version, which has no checksum and is not used")
    payload = integrity.unwrap(blob, _MAGIC, _FORMAT, what)
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{what}: cannot be read ({type(error).__name__})") from None
    if not isinstance(state, dict) or state.get("format") != _STATE:
        raise DataError(f"{what}: of another version of this package")
    return state


def misfit(state: Mapping[str, Any], model: Mapping[str, Tensor], epochs: int, steps: Callable[[int], int]) -> str | None:
    """Why a stage cannot go on from ``state``; None when it can.

    Args:
        state: what `unpack` returned.
        model: state dict of the network to be trained.
        epochs: of the stage.
        steps: number of steps of an epoch.
    """
    epoch, step = state.get("epoch"), state.get("step")
    if not isinstance(epoch, int) or not 0 <= epoch <= epochs:
        return f"epoch {epoch!r} of a stage of {epochs} epochs"
    length = steps(epoch) if epoch < epochs else 1
    if not isinstance(step, int) or not 0 <= step < length:
        return f"step {step!r} of an epoch of {length} steps"
    trained = state.get("trained")
    if not isinstance(trained, Mapping) or len(trained.get("history", ())) != epoch:
        return f"its history is not one of {epoch} epochs"
    return weights_misfit(state.get("model"), model)


def weights_misfit(weights: Any, model: Mapping[str, Tensor]) -> str | None:
    """Why ``weights`` cannot be those of ``model``: other names or shapes, or values that are not finite; else None."""
    if not isinstance(weights, Mapping):
        return "no weights in it"
    if weights.keys() != model.keys():
        names = sorted(weights.keys() ^ model.keys())
        return f"weights do not fit the network: {len(names)} names differ, such as {names[0]}"
    for name, value in weights.items():
        if value.shape != model[name].shape:
            return f"weights do not fit the network: {name} is {list(value.shape)}, expected {list(model[name].shape)}"
    return not_finite(weights)


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Names a tensor with NaN or infinite values; None without any."""
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            return f"weights are not finite: {name} holds NaN or infinite values"
    return None
