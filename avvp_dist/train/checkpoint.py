"""Training checkpoints: one blob behind a header with its checksum, so that a damaged checkpoint is never used."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from avvp_dist.errors import DataError
from avvp_dist.storage import integrity
from avvp_dist.text.plural import plural

_MAGIC = b"AVVPCKPT"
_FORMAT = 2  # version of the container; 1 was a plain file of torch.save
_STATE = 1  # version of the content
_ZIP = b"PK\x03\x04"  # first bytes of a file of torch.save


def pack(state: dict[str, Any]) -> bytes:
    """Serialize tensors, numbers, strings, lists and dicts."""
    buffer = io.BytesIO()
    torch.save({"format": _STATE, **state}, buffer)
    return integrity.wrap(buffer.getvalue(), _MAGIC, _FORMAT)


def rekeyed(blob: bytes, key: str) -> bytes:
    """Return the checkpoint with another cache key, for weights that come from another run."""
    return pack({**unpack(blob), "key": key})


def unpack(blob: bytes, what: str = "the checkpoint") -> dict[str, Any]:
    """Deserialize the result of `pack`, with tensors on the CPU. No code in the blob is executed.

    Args:
        blob: the result of `pack`.
        what: names the checkpoint in messages, preferably by its file.

    Raises:
        DataError: it is not a checkpoint of this version, or it is damaged.
    """
    if blob.startswith(_ZIP):
        raise DataError(f"{what}: a checkpoint of an earlier version, without a checksum; it cannot be used")
    payload = integrity.unwrap(blob, _MAGIC, _FORMAT, what)
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{what}: cannot be read ({type(error).__name__})") from None
    if not isinstance(state, dict) or state.get("format") != _STATE:
        raise DataError(f"{what}: written by another version of this package")
    return state


def mismatch(state: Mapping[str, Any], model: Mapping[str, Tensor], epochs: int, steps: Callable[[int], int]) -> str | None:
    """Return why a stage cannot resume from ``state``; None if it can.

    Args:
        state: the result of `unpack`.
        model: state dict of the network to train.
        epochs: of the stage.
        steps: returns the number of steps of an epoch.
    """
    epoch, step = state.get("epoch"), state.get("step")
    if not isinstance(epoch, int) or not 0 <= epoch <= epochs:
        return f"epoch {epoch!r} of a stage of {epochs} epochs"
    length = steps(epoch) if epoch < epochs else 1
    if not isinstance(step, int) or not 0 <= step < length:
        return f"step {step!r} of an epoch of {length} steps"
    trained = state.get("trained")
    if not isinstance(trained, Mapping) or len(trained.get("history", ())) != epoch:
        return f"its history does not have {epoch} epochs"
    return weights_mismatch(state.get("model"), model)


def weights_mismatch(weights: Any, model: Mapping[str, Tensor]) -> str | None:
    """Return why ``weights`` do not fit ``model`` (names, shapes, values that are not finite); None if they do."""
    if not isinstance(weights, Mapping):
        return "it contains no weights"
    if weights.keys() != model.keys():
        names = sorted(weights.keys() ^ model.keys())
        names_differ = plural(len(names), "name differs", "names differ")
        return f"weights do not fit the network: {len(names)} {names_differ}, such as {names[0]}"
    for name, value in weights.items():
        if value.shape != model[name].shape:
            return f"weights do not fit the network: {name} is {list(value.shape)}, expected {list(model[name].shape)}"
    return not_finite(weights)


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Return a message that names a tensor with NaN or infinite values; None if there is none."""
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            return f"weights are not finite: {name} contains NaN or infinite values"
    return None
