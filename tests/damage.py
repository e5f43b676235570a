"""Damages a file as a failing disk does: a changed bit that no size and no date reveals."""

import os
from pathlib import Path


def flip(path: Path, place: float = 0.5, bit: int = 0) -> None:
    """Flip one bit of the byte at this fraction of the file, and keep the file's times."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
