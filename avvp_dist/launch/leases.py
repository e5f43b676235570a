"""Leases of shared stages: only one trial at a time computes a stage, wherever in the cluster it runs."""

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

LOGGER = logging.getLogger(__name__)
_POLL = 1.0  # seconds between two attempts of a waiting trial
_RENEW = 5.0  # seconds between two renewals of a lease
_STALE = 60.0  # seconds without renewal after which a lease expires


Lease = Callable[[str, str], AbstractContextManager[None]]


@contextmanager
def start_lease_server() -> Iterator[ActorHandle[Any]]:
    """Start the lease server of one sweep for the duration of the block. It requests no CPU, so it never blocks a trial."""

    # a local class: Ray sends the class itself, so that its process need not import this package and torch
    class LeaseServer:
        """Records the current owner of each stage."""

        def __init__(self) -> None:
            self._owners: dict[str, tuple[str, float]] = {}

        def take(self, key: str, owner: str) -> bool:
            """Give or renew the lease of ``key``; returns whether ``owner`` has it now."""
            holder, renewed = self._owners.get(key, (owner, 0.0))
            if holder != owner and time.monotonic() - renewed < _STALE:
                return False
            self._owners[key] = (owner, time.monotonic())
            return True

        def give_back(self, key: str, owner: str) -> None:
            """Release the lease if ``owner`` still has it."""
            if self._owners.get(key, ("", 0.0))[0] == owner:
                del self._owners[key]

    lease_server: ActorHandle[Any] = ray.remote(num_cpus=0)(LeaseServer).remote()  # type: ignore[assignment]  # Ray's types are too wide
    try:
        yield lease_server
    finally:
        ray.kill(lease_server)


def leases(lease_server: ActorHandle) -> Lease:
    """Return an implementation of `Runtime.lease` with a lease server."""

    @contextmanager
    def lease(store: str, key: str) -> Iterator[None]:
        owner, done = uuid.uuid4().hex, threading.Event()
        waiting = False
        while not ray.get(lease_server.take.remote(key, owner)):
            if not waiting:
                LOGGER.info("stage %s: waiting for another trial that computes it", key)
                waiting = True
            time.sleep(_POLL)

        def renew() -> None:
            while not done.wait(_RENEW):
                ray.get(lease_server.take.remote(key, owner))

        threading.Thread(target=renew, daemon=True).start()
        try:
            with locks.lock_stage(store, key):  # runs outside the sweep can share its store
                yield
        finally:
            done.set()
            ray.get(lease_server.give_back.remote(key, owner))

    return lease
