"""The environment of a run: rank, device, collective and checkpoint storage. The training loop is independent of the launcher."""

from __future__ import annotations

import atexit
import gc
import os
import re
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.distributed as dist

# DDP would import it late, and default arguments of its functions would then keep the process group alive
import torch.distributed.nn  # noqa: F401

from avvp_dist import storage
from avvp_dist.storage import locks
from avvp_dist.dist.collective import Collective, LocalCollective, TorchCollective
from avvp_dist.dist.rendezvous import join
from avvp_dist.dist.world import World, read
from avvp_dist.errors import ConfigError

_KEEP = 2  # checkpoints to keep: the newest one can be damaged by the failure that makes it necessary
_NAME = re.compile(r"[0-9]{8,18}\.pt")  # of a checkpoint


class Runtime(Protocol):
    """The environment of one rank of a run."""

    device: torch.device
    collective: Collective
    launcher: str
    """Name of the launcher, as recorded in result.json."""
    lineage: str
    """Part of the last stage's cache key if weights can come from another run; otherwise empty."""

    def report(self, metrics: Mapping[str, Any], checkpoint: bytes | None) -> None:
        """Report an epoch's metrics and, on rank 0, a checkpoint. Every rank must call it at the same points."""
        ...

    def hold(self, output: str) -> AbstractContextManager[None]:
        """Return a context that locks ``output`` against other runs; for rank 0.

        Raises:
            ConfigError: another process holds the lock.
        """
        ...

    def lease(self, store: str, key: str) -> AbstractContextManager[None]:
        """Return a context that leases the stage ``key`` of ``store``; entering it waits for other runs. For rank 0."""
        ...

    def checkpoints(self) -> list[str]:
        """Return the names of the reported checkpoints for `read_checkpoint`, newest first; for rank 0."""
        ...

    def read_checkpoint(self, name: str) -> bytes:
        """Return the unverified content of one of the `checkpoints`; on any rank."""
        ...

    def stop_requested(self) -> bool:
        """Return whether this rank received a request to stop. It is called at every step, so it must be fast."""
        ...

    def clear_checkpoints(self) -> None:
        """Delete all checkpoints, after the artifact of the stage is stored."""
        ...


class LocalRuntime:
    """A single process, or a rank started by torchrun or srun; checkpoints are files in ``<output>/checkpoints``.

    Args:
        output: folder or URL of the run.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        world: position of this process among the ranks; None to read it from the environment.

    Raises:
        ConfigError: the launcher's environment is incomplete, or the device does not exist.
        AvvpError: the ranks could not connect.
    """

    lineage = ""

    def __init__(self, output: str, device: str = "auto", world: World | None = None) -> None:
        world = world or read(os.environ)
        self.stop = threading.Event()
        self.launcher: str = "local" if world.launcher == "none" else world.launcher
        self._folder = storage.join(output, "checkpoints")
        self.device = pick_device(device, world.local_rank)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.collective: Collective = LocalCollective()
        if world.size > 1:
            join(world, "nccl" if self.device.type == "cuda" else "gloo")
            self.collective = TorchCollective()

    def close(self) -> None:
        """Destroy the process group, if there is one, such that its threads end before the interpreter does."""
        if isinstance(self.collective, TorchCollective):
            atexit.register(_release_group, [dist.group.WORLD])
            dist.destroy_process_group()

    def report(self, metrics: Mapping[str, Any], checkpoint: bytes | None) -> None:
        """See `Runtime`."""
        if checkpoint is None:
            return
        names = self._names()
        storage.remove_abandoned(self._folder)  # temporary files of a killed process
        number = int(names[-1].removesuffix(".pt")) + 1 if names else 1
        storage.write_bytes(storage.join(self._folder, f"{number:08d}.pt"), checkpoint)
        for name in names[: 1 - _KEEP]:
            storage.remove(storage.join(self._folder, name))

    def checkpoints(self) -> list[str]:
        """See `Runtime`."""
        return [storage.join(self._folder, name) for name in reversed(self._names())]

    def read_checkpoint(self, name: str) -> bytes:
        """See `Runtime`."""
        return storage.read_bytes(name)

    def stop_requested(self) -> bool:
        """See `Runtime`; ``stop`` is set by the launcher, see `launch.signals.stop_on_signals`."""
        return self.stop.is_set()

    def hold(self, output: str) -> AbstractContextManager[None]:
        """See `Runtime`; uses a lock file in the folder."""
        return locks.lock_folder(output, stop_requested=self.stop_requested)

    def lease(self, store: str, key: str) -> AbstractContextManager[None]:
        """See `Runtime`; uses a lock file in the store."""
        return locks.lock_stage(store, key, stop_requested=self.stop_requested)

    def clear_checkpoints(self) -> None:
        """See `Runtime`."""
        for name in self._names() if self.collective.rank == 0 else ():
            storage.remove(storage.join(self._folder, name))

    def _names(self) -> list[str]:
        """Return the names of checkpoint files, oldest first; other files in the folder are ignored."""
        names = [name for name in storage.names(self._folder) if _NAME.fullmatch(name)]
        return sorted(names, key=lambda name: int(name.removesuffix(".pt")))


def _release_group(group: list[Any]) -> None:
    """Drop the last reference to a process group, whose destructor waits for its threads. Runs at interpreter exit.

    gloo's threads release tensors and callbacks some time after a collective is complete. If this happens while Python
    shuts down, the process aborts (pytorch/pytorch#190489), and `destroy_process_group` does not wait for these threads.
    """
    # free DDP modules, which are in reference cycles: if the garbage collector freed the group with one of them, its
    # threads would wait for the GIL forever
    gc.collect()
    group.clear()


def named_device(device: torch.device) -> str:
    """Return a device as recorded in result.json: its type and, for a GPU, the model."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def pick_device(requested: str, local_rank: int = 0) -> torch.device:
    """Return the requested device; ``auto`` is a GPU if there is one.

    Raises:
        ConfigError: a GPU is requested and there is none.
    """
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {requested}: no CUDA device on this machine; use device=cpu or device=auto")
    return torch.device("cuda", local_rank) if requested == "cuda" else torch.device(requested)
