"""Unpickles the row numbers and numeric arrays that tools of this field pickle, and nothing else.

MA's code pickles lists of what its data loader returns: torch tensors of one number each. The names that a pickle may refer
to are listed here; those whose original function could do more are mapped to a restricted replacement.
"""

from __future__ import annotations

import codecs
import collections
import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from avvp_dist.errors import DataError

_RECONSTRUCT: Any = np.zeros(0).__reduce__()[0]
_SCALAR: Any = np.int64(0).__reduce__()[0]
_FROM_BUFFER: Any = np.zeros(1).__reduce_ex__(5)[0]


class _Refused(pickle.UnpicklingError):
    """The pickle refers to something that is not allowed."""


def load(content: bytes, source: str) -> Any:
    """Unpickle lists, tuples, dicts, numbers, text, and NumPy arrays and torch tensors of numbers.

    Args:
        content: a pickle of any protocol.
        source: its name, for messages.

    Raises:
        DataError: it contains anything else, which is named, or is not a pickle.
    """
    try:
        return _Unpickler(io.BytesIO(content)).load()
    except _Refused as error:
        raise DataError(
            f"{source}: refused, because it contains {error}, which is neither a list nor an array of numbers and could "
            "run code of its author"
        ) from None
    except RecursionError:
        raise DataError(f"{source}: not a readable pickle (nested too deeply)") from None
    except Exception as error:  # a damaged pickle can raise almost any error
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{source}: not a readable pickle ({detail})") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise _Refused(full)
        return _ALLOWED[full]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("a reference to something outside the file")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Restricted ``_codecs.encode``, which old protocols use for bytes; other encodings could import modules."""
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode with {encoding!r}")
    return codecs.latin_1_encode(text)[0]


def _dtype(name: Any, *flags: Any) -> np.dtype:
    """Restricted ``numpy.dtype``, for numbers only."""
    dtype = np.dtype(name, *flags)
    if dtype.kind not in "biuf":
        raise _Refused(f"a numpy array of {dtype}")
    return dtype


def _storage(content: bytes) -> Any:
    """Restricted ``torch.storage._load_from_bytes``, which on its own would unpickle anything."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:
        raise _Refused("a torch storage that is damaged or contains something else") from None


_ALLOWED: Mapping[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "collections.OrderedDict": collections.OrderedDict,  # hooks of a tensor, always empty
    "numpy.dtype": _dtype,
    "numpy.ndarray": np.ndarray,
    **{
        f"numpy.{core}.{place}": function  # "core" until NumPy 2
        for core in ("core", "_core")
        for place, function in (
            ("multiarray._reconstruct", _RECONSTRUCT),
            ("multiarray.scalar", _SCALAR),
            ("numeric._frombuffer", _FROM_BUFFER),
        )
    },
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch.storage._load_from_bytes": _storage,
}
