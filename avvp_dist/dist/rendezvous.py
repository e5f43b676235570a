"""How the ranks of a run find each other: a process group whose store and connections are open to no more than they need.

`torch.distributed` has no authentication, and its TCPStore listens on all interfaces by default. Here rank 0 opens the socket
itself: on loopback where all ranks run on one machine, else on the address that the other ranks know it by. Where torchrun
offers its agent's store, that one is used; where it listens is not ours to say (docs/operations.md, "Security").
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import signal
import socket
import threading
from datetime import timedelta

import psutil
import torch.distributed as dist

from avvp_dist.dist.world import World
from avvp_dist.errors import AvvpError

LOGGER = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
TIMEOUT = timedelta(minutes=10)
_TELL_AFTER = 10.0  # seconds of waiting for the other ranks before a line says so
_BACKLOG = 4096
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def join(world: World, backend: str, timeout: timedelta = TIMEOUT) -> None:
    """Makes the default process group of ``world``, whose size is more than 1.

    Raises:
        AvvpError: the ranks did not find each other.
    """
    where = f"{world.master}:{world.port}"
    waiting = threading.Timer(
        _TELL_AFTER,
        lambda: LOGGER.info("rank %d waits for the other ranks of %d at %s, %s at most", world.rank, world.size, where, timeout),
    )
    waiting.daemon = True
    waiting.start()
    main = threading.current_thread() is threading.main_thread()
    # torch waits in native code, where Python's own handler would not run; nothing is lost yet
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL) if main else None
    try:
        if world.one_machine:
            use_loopback()
        if world.launcher == "torchrun" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            dist.init_process_group(backend, timeout=timeout)
        else:
            enter(_store(world, timeout), backend, world.rank, world.size, timeout)
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise AvvpError(
            f"rank {world.rank} of {world.size} ({world.launcher}): the ranks did not find each other at {where}: {reason}; "
            "see that all ranks are started, that MASTER_ADDR is rank 0's address and that MASTER_PORT is free and reachable"
        ) from error
    finally:
        waiting.cancel()
        if main:
            signal.signal(signal.SIGINT, interrupt)


def enter(store: dist.Store, backend: str, rank: int, size: int, timeout: timedelta) -> None:
    """Makes the default process group of the ranks that meet in ``store``."""
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def open_store(address: str, port: int, timeout: timedelta) -> dist.TCPStore:
    """Rank 0's store, which listens on ``address`` alone; on all interfaces where that is none of this machine's.

    Args:
        address: loopback, or one by which the other machines reach this one.
        port: 0 for any that is free.
        timeout: of each request.

    Raises:
        OSError: the port is taken.
    """
    listener = _listen(address, port)
    port = listener.getsockname()[1]
    # the store takes the descriptor over
    return dist.TCPStore(
        address, port, None, True, timeout, wait_for_workers=False, master_listen_fd=listener.detach(), use_libuv=True
    )


def reach_store(address: str, port: int, timeout: timedelta) -> dist.TCPStore:
    """The same store, seen by another rank."""
    return dist.TCPStore(address, port, None, False, timeout, wait_for_workers=False)


def use_loopback() -> None:
    """Has gloo and NCCL of this process connect through loopback, unless the environment names an interface."""
    name = next((name for name in psutil.net_if_addrs() if name.startswith("lo")), None)
    if name:
        for variable in _INTERFACES:
            os.environ.setdefault(variable, name)


def _store(world: World, timeout: timedelta) -> dist.TCPStore:
    address = LOOPBACK if world.one_machine else world.master
    if world.rank == 0:
        return open_store(address, world.port, timeout)
    return reach_store(address, world.port, timeout)


def _listen(address: str, port: int) -> socket.socket:
    family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    # the name of a machine often is loopback in its own /etc/hosts, where other machines do not get
    if address == LOOPBACK or not ipaddress.ip_address(str(place[0]).split("%")[0]).is_loopback:
        try:
            return _bound(family, place)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    # or it stands for this machine elsewhere only, such as a Kubernetes service
    LOGGER.warning("%s is no address of this machine alone: rank 0 listens on all interfaces, port %d", address, port)
    return _bound(family, ("::" if family == socket.AF_INET6 else "0.0.0.0", *place[1:]))


def _bound(family: int, place: tuple) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
