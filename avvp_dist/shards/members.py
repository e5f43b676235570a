"""Reads all members of a shard through WebDataset's own iteration, to explain why it differs from the index."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from typing import BinaryIO

import numpy as np
from webdataset.tariterators import tar_file_iterator

from avvp_dist.shards.reference import FEATURES


def diagnose(file: BinaryIO, member: str, shape: tuple[int, int]) -> str:
    """Explain why ``member`` is not the array that the index describes.

    Args:
        file: the tar, positioned at its start.
        member: name of a video's features.
        shape: T and width that it should have.
    """
    names: Counter[str] = Counter()
    content = b""
    try:
        for found in tar_file_iterator(file):
            names[found["fname"]] += 1
            content = found["data"] if found["fname"] == member else content
    except (tarfile.TarError, EOFError, OSError) as error:
        return f"the tar cannot be read beyond its member {names.total()} ({error}), where {member} is expected"
    if not names[member]:
        others = sum(name.endswith(f".{FEATURES}") for name in names)  # a damaged header looks like the end of the tar
        return f"has no member {member}, and {others} other videos; damaged, or labels.parquet belongs to another pack"
    if names[member] > 1:
        return f"has member {member} {names[member]} times"
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header can make numpy raise almost any error
        return f"member {member} is not a readable .npy array ({type(error).__name__})"
    if array.shape != shape or array.dtype != np.float16:
        return f"member {member} is {array.dtype} {list(array.shape)}, expected float16 {list(shape)}"
    return f"member {member} is not at the offset in labels.parquet, which belongs to another pack"
