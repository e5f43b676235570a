"""Waits, with a limit, until a Ray cluster has the resources for a run; refuses those that it can never have."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.experimental.internal_kv import _internal_kv_get
from ray.util import placement_group, remove_placement_group

from avvp_dist.errors import ConfigError

LOGGER = logging.getLogger(__name__)

Resources = Mapping[str, float]

_POLL_SECONDS = 1.0  # between two checks
_LOG_SECONDS = 30.0  # between two log lines
_TOLERANCE = 1e-6  # Ray counts resources in ten-thousandths


@dataclass(frozen=True)
class ResourceRequest:
    """Resources of processes that must run at the same time, each on one node.

    Attributes:
        noun: name of one process in messages, e.g. "worker".
        count: number of processes.
        each: resources of one process.
        driver: resources of an additional process that starts the others; empty for none.
        remedy: what to do if the cluster cannot provide them.
    """

    noun: str
    count: int
    each: Resources
    driver: Resources
    remedy: str

    def __str__(self) -> str:
        return f"{self.count} {self.noun}{'s' if self.count > 1 else ''} with {_text(self.each)}{' each' * (self.count > 1)}"

    def fits(self, nodes: Sequence[Resources]) -> bool:
        """Whether nodes with these resources can run all processes."""
        if not self.driver:
            return self._capacity(nodes) >= self.count
        remaining = (
            [_subtract(node, self.driver) if index == chosen else node for index, node in enumerate(nodes)]
            for chosen in range(len(nodes))
            if _fits_on(nodes[chosen], self.driver)
        )
        return any(self._capacity(left) >= self.count for left in remaining)

    def bundles(self) -> list[dict[str, float]]:
        """Return the bundles of a placement group for all processes."""
        return [dict(self.each)] * self.count + ([dict(self.driver)] if self.driver else [])

    def _capacity(self, nodes: Sequence[Resources]) -> int:
        requested = {key: amount for key, amount in self.each.items() if amount}
        return sum(min(int(node.get(key, 0) / amount + _TOLERANCE) for key, amount in requested.items()) for node in nodes)


def wait_for(request: ResourceRequest, limit: float, key: str) -> None:
    """Wait until the cluster has free resources for ``request``.

    A request that the cluster can never satisfy is refused immediately. Otherwise a placement group announces it to the
    autoscaler, and a line is logged now and then while nodes are added or other processes release their resources.

    Args:
        request: requested resources.
        limit: seconds to wait.
        key: name of the setting that ``limit`` came from.

    Raises:
        ConfigError: the resources are not available; names the requested and the existing ones.
    """
    _refuse_impossible(request)
    started, logged = time.monotonic(), -_LOG_SECONDS
    group = placement_group(request.bundles())
    try:
        while not group.wait(min(_POLL_SECONDS, limit)):
            nodes = _nodes()
            _refuse_impossible(request)
            enough, waited = request.fits(nodes), time.monotonic() - started
            if waited >= limit:
                why = "other processes use them" if enough else "no nodes were added"
                raise ConfigError(
                    f"{request} requested, but not available within {limit:g} s ({why}): {_cluster_text(nodes)}; "
                    f"{request.remedy}, or wait longer: {key}=SECONDS"
                )
            if waited - logged >= _LOG_SECONDS:
                logged = waited
                why = "other processes to end" if enough else "more nodes"
                LOGGER.info(
                    "waiting for %s, %.0f of %g s: %s requested, %s", why, waited, limit, request, _cluster_text(nodes)
                )
    finally:
        remove_placement_group(group)


def _refuse_impossible(request: ResourceRequest) -> None:
    nodes = _nodes()
    if not request.fits(nodes) and not _may_grow():
        raise ConfigError(
            f"{request} requested, which this cluster can never have: {_cluster_text(nodes)}; {request.remedy}"
        )


def _nodes() -> list[Resources]:
    """Return the total resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _may_grow() -> bool:
    """Whether nodes can be added: not to a Ray started by this process, nor to a cluster without an autoscaler.

    The monitor of a cluster without an autoscaler only mirrors its nodes, each as a node type named after its id.
    """
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        return False
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    types = json.loads(status).get("autoscaler_report", {}).get("active_nodes", {}) if status else {}
    return not (types and all(re.fullmatch("node_[0-9a-f]{56}", name) for name in types))


def _cluster_text(nodes: Sequence[Resources]) -> str:
    """Describe the resources of the nodes, equal nodes together, and how much of them is free."""
    kinds = Counter(_text(_cpus_and_gpus(node)) for node in nodes)
    parts = ", ".join(f"{count} node{'s' if count > 1 else ''} with {has}" for has, count in kinds.items())
    return f"it has {parts or 'no nodes'}, of which {_text(_cpus_and_gpus(ray.available_resources()))} free"


def _cpus_and_gpus(resources: Resources) -> Resources:
    return {key: resources.get(key, 0.0) for key in ("CPU", "GPU")}


def _text(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {key}{'' if amount == 1 else 's'}" for key, amount in resources.items())


def _fits_on(node: Resources, requested: Resources) -> bool:
    return all(node.get(key, 0) + _TOLERANCE >= amount for key, amount in requested.items())


def _subtract(node: Resources, taken: Resources) -> Resources:
    return {key: amount - taken.get(key, 0) for key, amount in node.items()}
