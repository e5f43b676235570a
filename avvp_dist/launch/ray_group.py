"""The process group of Ray Train's workers: none for one worker, on loopback where all of them share a machine.

Ray's own backend opens torch.distributed's store on all interfaces, and for a single worker too.
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

_LEAVE = 10.0  # seconds for workers to leave a group before their processes are ended
_kept: list[dist.Store] = []  # of the process that is rank 0: the store ends with its last reference


class _Group(Backend):
    """Makes and ends the process group; runs in Ray Train's controller."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """See `Backend`."""
        assert isinstance(backend_config, GroupConfig)
        size = len(worker_group)
        if size == 1:
            return
        nodes = {node for node, _ in worker_group.execute(_place)}
        one_machine = len(nodes) == 1
        address = rendezvous.LOOPBACK if one_machine else worker_group.execute_single(0, _place)[1]
        timeout = timedelta(seconds=backend_config.timeout_s)
        port = worker_group.execute_single(0, _open, address, timeout)
        entered: list[Any] = [  # Ray has two classes of references, of which it types one
            worker_group.execute_single_async(
                rank, _enter, address, port, backend_config.backend, rank, size, one_machine, timeout
            )
            for rank in range(size)
        ]
        ray.get(entered)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """See `Backend`."""
        left: list[Any] = worker_group.execute_async(_leave)
        ray.wait(left, num_returns=len(left), timeout=_LEAVE)


class GroupConfig(TorchConfig):
    """`TorchConfig` whose process group is made by `dist.rendezvous`."""

    @property
    def backend_cls(self) -> type[Backend]:
        """See `TorchConfig`."""
        return _Group


def _place() -> tuple[str, str]:
    """Node and address of a worker."""
    return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()


def _open(address: str, timeout: timedelta) -> int:
    """Opens the store in rank 0's process; returns its port."""
    store = rendezvous.open_store(address, 0, timeout)
    _kept.append(store)
    return store.port


def _enter(address: str, port: int, backend: str, rank: int, size: int, one_machine: bool, timeout: timedelta) -> None:
    if one_machine:
        rendezvous.use_loopback()
    store = _kept[-1] if rank == 0 else rendezvous.connect_store(address, port, timeout)
    rendezvous.init_group(store, backend, rank, size, timeout)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    _kept.clear()
