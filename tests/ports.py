"""Where servers that tests start listen."""

import random
import socket
from contextlib import closing

_OWN = range(20_000, 32_000)
"""Ports that neither Ray's workers (from 10,002) nor outgoing connections (from 32,768, Linux) take in the meantime."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens at, drawn anew each time: tests run side by side."""
    while True:
        port = random.SystemRandom().choice(_OWN)
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)):  # nobody answers
                return port
