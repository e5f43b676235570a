"""Which machine and which process something belongs to, so that another process can tell whether its owner still runs."""

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
    """Names what a process number belongs to: host, boot and PID namespace (a container has its own); 16 hex digits."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(_BOOT.read_text())
    with contextlib.suppress(OSError):
        facts.append(os.readlink(_NAMESPACE))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs. A zombie does not: it writes no more."""
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
