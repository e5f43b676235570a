"""Where a run runs: rank, device, collective, and where its checkpoints go. The loop never asks who started it."""

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

# DDP imports it late, when its functions' default arguments would keep the process group for ever
import torch.distributed.nn  # noqa: F401

from avvp_dist import storage
from avvp_dist.storage import locks
from avvp_dist.dist.collective import Collective, LocalCollective, TorchCollective
from avvp_dist.dist.rendezvous import join
from avvp_dist.dist.world import World, read
from avvp_dist.errors import ConfigError

_KEEP = 2  # checkpoints kept: the newest may be damaged by what made us need it
_NAME = re.compile(r"[0-9]{8,18}\.pt")  # of a checkpoint


class Runtime(Protocol):
    """One rank's view of the run it is part of."""

    device: torch.device
    collective: Collective
    launcher: str
    """Who started the workers, as result.json records it."""
    lineage: str
    """Names the run in the key of its last stage where weights may come from another run; empty elsewhere."""

    def report(self, metrics: Mapping[str, Any], checkpoint: bytes | None) -> None:
        """Hands over an epoch's metrics and, on rank 0, a checkpoint. Every rank calls it at the same points."""
        ...

    def hold(self, output: str) -> AbstractContextManager[None]:
        """Keeps other runs out of ``output`` for as long as it is entered; for rank 0.

        Raises:
            ConfigError: another process works there.
        """
        ...

    def lease(self, store: str, key: str) -> AbstractContextManager[None]:
        """Entered once nobody else works on the stage ``key`` of ``store``; for rank 0."""
        ...

    def checkpoints(self) -> list[str]:
        """Names of the checkpoints that were handed over, newest first; rank 0 asks, and `read_checkpoint` takes them."""
        ...

    def read_checkpoint(self, name: str) -> bytes:
        """Content of one of the `checkpoints`, unchecked; on any rank."""
        ...

    def stop_requested(self) -> bool:
        """Whether this rank has heard that the run should end soon; asked often, so it must be quick."""
        ...

    def clear_checkpoints(self) -> None:
        """Drops all checkpoints: what they led to is safe elsewhere."""
        ...


class LocalRuntime:
    """A plain process, or one of torchrun's or srun's; checkpoints are files under ``<output>/checkpoints``.

    Args:
        output: folder or URL of the run.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        world: this process among its ranks; None for what the environment says.

    Raises:
        ConfigError: the environment of a launcher that is incomplete, or no such device.
        AvvpError: the ranks did not find each other.
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
        """Leaves the process group, if there is one; its threads end before Python does."""
        if isinstance(self.collective, TorchCollective):
            atexit.register(_let_go, [dist.group.WORLD])
            dist.destroy_process_group()

    def report(self, metrics: Mapping[str, Any], checkpoint: bytes | None) -> None:
        """See `Runtime`."""
        if checkpoint is None:
            return
        names = self._names()
        storage.remove_abandoned(self._folder)  # what a killed rank 0 left
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
        """See `Runtime`; ``stop`` is set by who started the process, see `signals.stop_on_signals`."""
        return self.stop.is_set()

    def hold(self, output: str) -> AbstractContextManager[None]:
        """See `Runtime`; a lock in the folder itself."""
        return locks.lock_folder(output, stop_requested=self.stop_requested)

    def lease(self, store: str, key: str) -> AbstractContextManager[None]:
        """See `Runtime`; a lock in the store."""
        return locks.lock_stage(store, key, stop_requested=self.stop_requested)

    def clear_checkpoints(self) -> None:
        """See `Runtime`."""
        for name in self._names() if self.collective.rank == 0 else ():
            storage.remove(storage.join(self._folder, name))

    def _names(self) -> list[str]:
        """Files of ours, oldest first; others in the folder are neither read nor deleted."""
        found = [name for name in storage.names(self._folder) if _NAME.fullmatch(name)]
        return sorted(found, key=lambda name: int(name.removesuffix(".pt")))


def _let_go(group: list[Any]) -> None:
    """Drops the last hold on a process group, whose end waits for its threads. Called when Python exits and no frame is left.

    gloo's threads drop tensors and callbacks some time after their collective is over. One that does so while Python shuts
    down aborts the process (pytorch/pytorch#190489), and `destroy_process_group` waits for none of them.
    """
    gc.collect()  # DDP modules, which live in cycles; where the group ends with one of them, its threads wait for the GIL for ever
    group.clear()


def named_device(device: torch.device) -> str:
    """A device as result.json records it: its kind and, of a GPU, the model."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {wanted}: no CUDA device here; use device=cpu or device=auto")
    return torch.device("cuda", local_rank) if wanted == "cuda" else torch.device(wanted)
