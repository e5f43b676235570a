"""Rendezvous of the ranks of a run: a process group whose store listens on as few network interfaces as possible.

`torch.distributed` has no authentication, and its TCPStore listens on all interfaces by default. Here, rank 0 opens the
socket: on loopback if all ranks run on one machine, otherwise on the address by which the other ranks connect. If torchrun
provides the store of its agent, that store is used; torchrun determines its address (docs/operations.md, "Security").
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
_LOG_AFTER = 10.0  # seconds of waiting for the other ranks before a log message
_BACKLOG = 4096
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def join(world: World, backend: str, timeout: timedelta = TIMEOUT) -> None:
    """Create the default process group of ``world``, whose size is more than 1.

    Raises:
        AvvpError: the ranks could not connect.
    """
    address = f"{world.master}:{world.port}"
    waiting = threading.Timer(
        _LOG_AFTER,
        lambda: LOGGER.info(
            "rank %d is waiting for the other %d ranks at %s, for at most %s", world.rank, world.size - 1, address, timeout
        ),
    )
    waiting.daemon = True
    waiting.start()
    main = threading.current_thread() is threading.main_thread()
    # torch waits in native code, where Python's handler would not run; there is nothing to save yet
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL) if main else None
    try:
        if world.one_machine:
            use_loopback()
        if world.launcher == "torchrun" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            dist.init_process_group(backend, timeout=timeout)
        else:
            init_group(_store(world, timeout), backend, world.rank, world.size, timeout)
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise AvvpError(
            f"rank {world.rank} of {world.size} ({world.launcher}): the ranks could not connect at {address}: {reason}; check "
            "that all ranks are started, that MASTER_ADDR is the address of rank 0 and that MASTER_PORT is free and reachable"
        ) from error
    finally:
        waiting.cancel()
        if main:
            signal.signal(signal.SIGINT, interrupt)


def init_group(store: dist.Store, backend: str, rank: int, size: int, timeout: timedelta) -> None:
    """Create the default process group of the ranks that are connected to ``store``."""
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def open_store(address: str, port: int, timeout: timedelta) -> dist.TCPStore:
    """Open rank 0's store, which listens on ``address`` only, or on all interfaces if this machine does not have the address.

    Args:
        address: loopback, or the address by which other machines connect to this one.
        port: 0 for any free port.
        timeout: of each request.

    Raises:
        OSError: the port is in use.
    """
    listener = _listen(address, port)
    port = listener.getsockname()[1]
    # the store takes ownership of the descriptor
    return dist.TCPStore(
        address, port, None, True, timeout, wait_for_workers=False, master_listen_fd=listener.detach(), use_libuv=True
    )


def connect_store(address: str, port: int, timeout: timedelta) -> dist.TCPStore:
    """Connect to rank 0's store from another rank."""
    return dist.TCPStore(address, port, None, False, timeout, wait_for_workers=False)


def use_loopback() -> None:
    """Make gloo and NCCL in this process use loopback, unless the environment names an interface."""
    name = next((name for name in psutil.net_if_addrs() if name.startswith("lo")), None)
    if name:
        for variable in _INTERFACES:
            os.environ.setdefault(variable, name)


def _store(world: World, timeout: timedelta) -> dist.TCPStore:
    address = LOOPBACK if world.one_machine else world.master
    if world.rank == 0:
        return open_store(address, world.port, timeout)
    return connect_store(address, world.port, timeout)


def _listen(address: str, port: int) -> socket.socket:
    family, _, _, _, socket_address = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    # /etc/hosts often maps a machine's own name to loopback, to which other machines cannot connect
    if address == LOOPBACK or not ipaddress.ip_address(str(socket_address[0]).split("%")[0]).is_loopback:
        try:
            return _bind(family, socket_address)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    # the address can also belong to another host that forwards to this one, such as a Kubernetes service
    LOGGER.warning("%s is not an address of this machine: rank 0 listens on all interfaces, port %d", address, port)
    return _bind(family, ("::" if family == socket.AF_INET6 else "0.0.0.0", *socket_address[1:]))


def _bind(family: int, address: tuple) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
