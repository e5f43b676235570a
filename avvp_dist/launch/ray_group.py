"""The process group of Ray Train's workers: none for one worker, on loopback if all of them are on one machine.

Ray's own backend opens the store of torch.distributed on all interfaces, and also for a single worker.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
import torch.distributed as dist
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig

from avvp_dist.dist import rendezvous

if TYPE_CHECKING:
    from ray.train._internal.base_worker_group import BaseWorkerGroup

_LEAVE_SECONDS = 10.0  # for workers to leave the group before their processes are ended
_stores: list[dist.Store] = []  # of rank 0's process: a store closes with its last reference


class _Group(Backend):
    """Creates and destroys the process group; runs in Ray Train's controller."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """See `Backend`."""
        assert isinstance(backend_config, GroupConfig)
        size = len(worker_group)
        if size == 1:
            return
        nodes = {node for node, _ in worker_group.execute(_node_and_address)}
        one_machine = len(nodes) == 1
        address = rendezvous.LOOPBACK if one_machine else worker_group.execute_single(0, _node_and_address)[1]
        timeout = timedelta(seconds=backend_config.timeout_s)
        port = worker_group.execute_single(0, _open, address, timeout)
        entered: list[Any] = [  # Ray has two classes of references but types only one
            worker_group.execute_single_async(
                rank, _enter, address, port, backend_config.backend, rank, size, one_machine, timeout
            )
            for rank in range(size)
        ]
        ray.get(entered)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """See `Backend`."""
        left: list[Any] = worker_group.execute_async(_leave)
        ray.wait(left, num_returns=len(left), timeout=_LEAVE_SECONDS)


class GroupConfig(TorchConfig):
    """`TorchConfig` whose process group is created by `dist.rendezvous`."""

    @property
    def backend_cls(self) -> type[Backend]:
        """See `TorchConfig`."""
        return _Group


def _node_and_address() -> tuple[str, str]:
    """Return the node id and address of a worker."""
    return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()


def _open(address: str, timeout: timedelta) -> int:
    """Open the store in rank 0's process and return its port."""
    store = rendezvous.open_store(address, 0, timeout)
    _stores.append(store)
    return store.port


def _enter(address: str, port: int, backend: str, rank: int, size: int, one_machine: bool, timeout: timedelta) -> None:
    if one_machine:
        rendezvous.use_loopback()
    store = _stores[-1] if rank == 0 else rendezvous.connect_store(address, port, timeout)
    rendezvous.init_group(store, backend, rank, size, timeout)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    _stores.clear()
