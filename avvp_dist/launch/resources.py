"""Whether a Ray cluster can give what a run asks for: refused where it never can, waited for where it may, with a limit."""

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

_log = logging.getLogger(__name__)

Resources = Mapping[str, float]

_POLL_SECONDS = 1.0
_LOG_SECONDS = 30.0
_TOLERANCE = 1e-6  # Ray counts in ten-thousandths


@dataclass(frozen=True)
class ResourceRequest:
    """Processes that have to run at the same time, each on one node.

    Attributes:
        what: one of them, for messages: "worker".
        count: how many.
        each: resources of one of them.
        beside: of one more process, which starts the others; empty for none.
        remedy: what to do about too much of it.
    """

    what: str
    count: int
    each: Resources
    beside: Resources
    remedy: str

    def __str__(self) -> str:
        return f"{self.count} {self.what}{'s' if self.count > 1 else ''} with {_text(self.each)}{' each' * (self.count > 1)}"

    def fits(self, nodes: Sequence[Resources]) -> bool:
        """Whether ``nodes``, which have so much to give, hold all of them."""
        if not self.beside:
            return self._capacity(nodes) >= self.count
        others = (
            [_subtract(node, self.beside) if at == place else node for at, node in enumerate(nodes)]
            for place in range(len(nodes))
            if _fits_on(nodes[place], self.beside)
        )
        return any(self._capacity(left) >= self.count for left in others)

    def bundles(self) -> list[dict[str, float]]:
        """As a placement group asks for them."""
        return [dict(self.each)] * self.count + ([dict(self.beside)] if self.beside else [])

    def _capacity(self, nodes: Sequence[Resources]) -> int:
        asked = {key: amount for key, amount in self.each.items() if amount}
        return sum(min(int(node.get(key, 0) / amount + _TOLERANCE) for key, amount in asked.items()) for node in nodes)


def wait_for(request: ResourceRequest, limit: float, key: str) -> None:
    """Returns once the cluster has room for ``request``.

    A cluster that never can have it is refused at once. One that may grow, or whose resources are in use by others, is
    waited for, with a line every now and then; an autoscaler hears of it by a placement group for what is needed.

    Args:
        request: what is asked for.
        limit: seconds to wait.
        key: the setting that ``limit`` came from.

    Raises:
        ConfigError: what is asked for and what there is.
    """
    _refuse_impossible(request)
    started, told = time.monotonic(), -_LOG_SECONDS
    group = placement_group(request.bundles())
    try:
        while not group.wait(min(_POLL_SECONDS, limit)):
            nodes = _nodes()
            _refuse_impossible(request)
            enough, waited = request.fits(nodes), time.monotonic() - started
            if waited >= limit:
                why = "others use them" if enough else "no more nodes came"
                raise ConfigError(
                    f"{request} asked for, for which there was no room within {limit:g} s ({why}): {_cluster_text(nodes)}; "
                    f"{request.remedy}, or wait longer: {key}=SECONDS"
                )
            if waited - told >= _LOG_SECONDS:
                told = waited
                why = "others to end" if enough else "more nodes"
                _log.info(
                    "waiting for %s, %.0f of %g s: %s asked for, %s", why, waited, limit, request, _cluster_text(nodes)
                )
    finally:
        remove_placement_group(group)


def _refuse_impossible(request: ResourceRequest) -> None:
    nodes = _nodes()
    if not request.fits(nodes) and not _may_grow():
        raise ConfigError(
            f"{request} asked for, which this cluster can never hold: {_cluster_text(nodes)}; {request.remedy}"
        )


def _nodes() -> list[Resources]:
    """Resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _may_grow() -> bool:
    """Whether nodes may be added: not to a Ray of our own, nor where Ray itself says that nothing starts any.

    The monitor of a cluster without an autoscaler only mirrors its nodes, each as a node type that is named for its id.
    """
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        return False
    told = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    types = json.loads(told).get("autoscaler_report", {}).get("active_nodes", {}) if told else {}
    return not (types and all(re.fullmatch("node_[0-9a-f]{56}", name) for name in types))


def _cluster_text(nodes: Sequence[Resources]) -> str:
    """What the nodes have, equal ones together, and what of all that is free."""
    kinds = Counter(_text(_cpus_and_gpus(node)) for node in nodes)
    parts = ", ".join(f"{count} node{'s' if count > 1 else ''} with {has}" for has, count in kinds.items())
    return f"it has {parts or 'no nodes'}, of which {_text(_cpus_and_gpus(ray.available_resources()))} free"


def _cpus_and_gpus(resources: Resources) -> Resources:
    return {key: resources.get(key, 0.0) for key in ("CPU", "GPU")}


def _text(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {key}{'' if amount == 1 else 's'}" for key, amount in resources.items())


def _fits_on(node: Resources, asked: Resources) -> bool:
    return all(node.get(key, 0) + _TOLERANCE >= amount for key, amount in asked.items())


def _subtract(node: Resources, taken: Resources) -> Resources:
    return {key: amount - taken.get(key, 0) for key, amount in node.items()}
