"""Where a run runs: rank, device, collective, and where its checkpoints go. The loop never asks who started it."""

from __future__ import annotations

import atexit
import gc
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

# DDP imports it late, when its functions' default arguments would keep the process group for ever
import torch.distributed.nn  # noqa: F401

from avvp_dist import locks, storage
from avvp_dist.dist.collective import Collective, LocalCollective, TorchCollective
from avvp_dist.errors import ConfigError

_KEEP = 2  # checkpoints kept: the newest may be damaged by what made us need it
_NAME = re.compile(r"[0-9]{8,18}\.pt")  # of a checkpoint


class Runtime(Protocol):
    """One rank's view of the run it is part of."""

    device: torch.device
    collective: Collective
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

    def claim(self, store: str, key: str) -> AbstractContextManager[None]:
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
    """A plain process, or one of torchrun's; checkpoints are files under ``<output>/checkpoints``.

    Args:
        output: folder or URL of the run.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    lineage = ""

    def __init__(self, output: str, device: str = "auto") -> None:
        self.stop = threading.Event()
        self._folder = storage.join(output, "checkpoints")
        self.device = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.collective: Collective = LocalCollective()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(minutes=10))
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
        storage.sweep(self._folder)  # what a killed rank 0 left
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
        """See `Runtime`; ``stop`` is set by who started the process, see `stop_on_sigterm`."""
        return self.stop.is_set()

    def hold(self, output: str) -> AbstractContextManager[None]:
        """See `Runtime`; a lock in the folder itself."""
        return locks.hold_folder(output, stopped=self.stop_requested)

    def claim(self, store: str, key: str) -> AbstractContextManager[None]:
        """See `Runtime`; a lock in the store."""
        return locks.claim_stage(store, key, stopped=self.stop_requested)

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


@contextmanager
def stop_on_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    """Calls ``stop`` when this process is asked to end; what else SIGTERM did comes back afterwards. Main thread only."""
    before = signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
