"""Device nodes for tests."""

import os
import stat
from pathlib import Path

import pytest

NULL, FULL = 3, 7  # minor numbers of /dev/null and /dev/full


def device(path: Path, minor: int) -> Path:
    """Create a memory device node; skip the test if that is not permitted or not supported."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        path.open("wb").close()
    except PermissionError:
        pytest.skip("device nodes cannot be made here")
    return path
