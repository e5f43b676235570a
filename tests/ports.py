"""Ports for servers that tests start."""

import random
import socket
from contextlib import closing

_OWN = range(20_000, 32_000)
"""Ports that neither Ray's workers (from 10,002) nor outgoing connections (from 32,768, Linux) use."""


def free_port() -> int:
    """Return a random unused port of the loopback interface; random because tests run in parallel."""
    while True:
        port = random.SystemRandom().choice(_OWN)
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)):  # no process listens
                return port
