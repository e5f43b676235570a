"""Who trains a shared stage: one trial at a time, wherever in the cluster it runs."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle

from avvp_dist.storage import locks

_log = logging.getLogger(__name__)
_POLL = 1.0  # seconds between two questions of one who waits
_RENEW = 5.0
_STALE = 60.0  # an owner not heard of for so long is dead


Lease = Callable[[str, str], AbstractContextManager[None]]


@contextmanager
def start_lease_server() -> Iterator[ActorHandle[Any]]:
    """The lease server of one sweep, until the end of the block. It requests no CPU, so trials can always start."""

    class LeaseServer:  # in here, Ray sends the class itself: its process need not import this package, and with it torch
        """Keeps who owns which stage at the moment."""

        def __init__(self) -> None:
            self._owners: dict[str, tuple[str, float]] = {}

        def take(self, key: str, owner: str) -> bool:
            """Whether ``owner`` has it from now on."""
            holder, heard = self._owners.get(key, (owner, 0.0))
            if holder != owner and time.monotonic() - heard < _STALE:
                return False
            self._owners[key] = (owner, time.monotonic())
            return True

        def give_back(self, key: str, owner: str) -> None:
            """Frees it, if it is still ``owner``'s."""
            if self._owners.get(key, ("", 0.0))[0] == owner:
                del self._owners[key]

    lease_server: ActorHandle[Any] = ray.remote(num_cpus=0)(LeaseServer).remote()  # type: ignore[assignment]  # Ray's types promise less
    try:
        yield lease_server
    finally:
        ray.kill(lease_server)


def leases(lease_server: ActorHandle) -> Lease:
    """`Runtime.lease` over a lease_server."""

    @contextmanager
    def lease(store: str, key: str) -> Iterator[None]:
        owner, done = uuid.uuid4().hex, threading.Event()
        waiting = False
        while not ray.get(lease_server.take.remote(key, owner)):
            if not waiting:
                _log.info("stage %s: another trial works on it, waiting", key)
                waiting = True
            time.sleep(_POLL)

        def renew() -> None:
            while not done.wait(_RENEW):
                ray.get(lease_server.take.remote(key, owner))

        threading.Thread(target=renew, daemon=True).start()
        try:
            with locks.lease_stage(store, key):  # runs outside the sweep may share its store
                yield
        finally:
            done.set()
            ray.get(lease_server.give_back.remote(key, owner))

    return lease
