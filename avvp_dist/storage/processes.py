"""Identifies machines and processes, so that another process can determine whether the owner of a file is still running."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


@functools.cache
def machine() -> str:
    """Identify the scope of process ids: host, boot and PID namespace (a container has its own); 16 hexadecimal digits."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(_BOOT.read_text())
    with contextlib.suppress(OSError):
        facts.append(os.readlink(_NAMESPACE))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is running; a zombie is not, since it writes nothing any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:  # it has ended, or there is no /proc, or it hides other users' processes
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
