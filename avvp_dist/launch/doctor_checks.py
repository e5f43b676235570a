"""The checks of `avvp doctor`: each function performs a real operation and returns what it found."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import pyarrow.fs
import torch
from packaging.requirements import Requirement

from avvp_dist import storage
from avvp_dist.dist.probe import FLOATS, all_reduce_seconds
from avvp_dist.errors import ConfigError
from avvp_dist.launch import ray_environment, ray_start
from avvp_dist.shards.cache import default_folder
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.storage import user_folders
from avvp_dist.text.credentials import redact
from avvp_dist.tracking.address import check_address
from avvp_dist.tracking.base import TrackingConfig
from avvp_dist.tracking.errors import explain

GB = 1e9

_LOCAL_OPTIONS = 'address="local", num_cpus=1, include_dashboard=False'
_START_RAY = f"""
import ray, time
started = time.monotonic()
ray.init({_LOCAL_OPTIONS}, logging_level=50, log_to_driver=False)
print(f"Ray {{ray.__version__}} starts in {{time.monotonic() - started:.1f}} s")
ray.shutdown()
"""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        status: ``warn`` if it works but may cause problems, ``fail`` if it does not work.
        figure: the result, in one line.
        advice: what to do about it; empty if all is well.
    """

    status: Literal["ok", "warn", "fail"]
    figure: str
    advice: str = ""


def python() -> Finding:
    """Compare the installed packages with the versions required by pyproject.toml."""
    version = ".".join(map(str, sys.version_info[:3]))
    try:
        requirements = [Requirement(line) for line in metadata.requires("avvp_dist") or []]
    except metadata.PackageNotFoundError:
        return Finding("warn", f"Python {version}; avvp_dist is not installed", "install it: pip install -e '.[all]'")
    wrong: list[str] = []
    missing: list[str] = []
    good = 0
    for requirement in requirements:
        extras = [extra for extra in ("ray", "mlflow", "s3") if requirement.marker and _is_for(requirement, extra)]
        if requirement.marker and not extras:
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            (missing if extras else wrong).append(f"{requirement.name} missing")
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            good += 1
        else:
            wrong.append(f"{requirement.name} {installed}, required {requirement.specifier}")
    figure = f"Python {version}, {good} packages in the required versions"
    if wrong:
        return Finding("fail", "; ".join([figure, *wrong, *missing]), "pip install -c constraints.txt 'avvp_dist[all]'")
    if missing:
        return Finding("warn", "; ".join([figure, *missing]), "if you need them: pip install 'avvp_dist[ray,mlflow,s3]'")
    return Finding("ok", f"{figure}, torch {torch.__version__}")


def _is_for(requirement: Requirement, extra: str) -> bool:
    assert requirement.marker
    return requirement.marker.evaluate({"extra": extra}) and not requirement.marker.evaluate({"extra": ""})


def shared_memory() -> Finding:
    """Check /dev/shm, through which processes of one machine share data."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return Finding("warn", "no /dev/shm", "processes of one machine share memory through it; mount a tmpfs there")
    figure = f"/dev/shm {usage.total / GB:.1f} GB, {usage.free / GB:.1f} GB free"
    if usage.free < GB:
        return Finding(
            "warn", figure, "give containers more of it: docker run --shm-size 8g, or an emptyDir of medium Memory"
        )
    return Finding("ok", figure)


def disk() -> Finding:
    """Check the free space for the cache of features."""
    try:
        folder = _existing(default_folder())
    except ConfigError as error:
        figure, _, advice = str(error).partition("; ")
        return Finding("warn", figure, f"{advice}; data on this machine need no cache")
    free = shutil.disk_usage(folder).free
    figure = f"{free / GB:.1f} GB free for {default_folder()}"
    if free < 2 * GB:
        return Finding("warn", figure, "a cache of the features needs as much space as their shards; free some space")
    return Finding("ok", figure)


def gpu() -> Finding:
    """Check CUDA devices and their free memory."""
    if not torch.cuda.is_available():
        if Path("/dev/nvidia0").exists():
            return Finding(
                "warn", f"a GPU that torch {torch.__version__} cannot use", "install a CUDA build of torch, or a driver"
            )
        return Finding("ok", "no CUDA device; training runs on the CPU")
    parts, low = [], False
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        low = low or free < 2 * GB
        parts.append(f"{torch.cuda.get_device_name(number)} {free / GB:.0f} of {total / GB:.0f} GB free")
    if low:
        return Finding("warn", ", ".join(parts), "other processes use this memory; see nvidia-smi")
    return Finding("ok", ", ".join(parts))


def collective(timeout: float) -> Finding:
    """Run an all_reduce: gloo between two processes, and NCCL over up to two GPUs if there are any."""
    figures = []
    backends = [("gloo", 2, "GLOO_SOCKET_IFNAME and firewalls")]
    if torch.cuda.is_available():
        backends.append(("nccl", min(2, torch.cuda.device_count()), "the output of NCCL_DEBUG=INFO"))
    for backend, processes, suspect in backends:
        try:
            seconds = all_reduce_seconds(backend, processes, timeout)
        except RuntimeError as error:
            advice = f"several processes cannot train together; check {suspect}, or on a slow machine set timeout=120"
            return Finding("fail", f"{backend}: {error}", advice)
        figures.append(f"{backend} with {processes}: all_reduce of {FLOATS * 4 / 1e6:.0f} MB in {1e3 * seconds:.1f} ms")
    return Finding("ok", "; ".join(figures))


def ray(timeout: float) -> Finding:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine, in a process that can be killed."""
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return Finding("warn", "not installed", "for launch=ray: pip install 'avvp_dist[ray]'")
    address = os.environ.get("RAY_ADDRESS", "local")
    if address not in ("local", "auto"):
        return _connect_to_ray(address, version, timeout)
    code = _START_RAY if address == "local" else _START_RAY.replace(_LOCAL_OPTIONS, 'address="auto"')
    try:
        ray_environment.prepare()
    except ConfigError as error:
        return Finding("fail", str(error), "launch=ray will not work, but launch=local will")
    with tempfile.TemporaryFile("w+") as log:  # not a pipe: processes that Ray starts would keep it open
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            failed = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return Finding("fail", f"Ray {version} did not start in {timeout:g} s", "on a slow machine set timeout=120")
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        last = (log.read().strip().splitlines() or [f"exit code {failed}"])[-1]
    if failed:
        return Finding(
            "fail", f"Ray {version} does not start: {last[:200]}", "launch=ray will not work, but launch=local will"
        )
    return Finding("ok", last)


def _connect_to_ray(address: str, version: str, timeout: float) -> Finding:
    started = time.monotonic()
    try:
        shown = ray_start.check_reachable(address, min(timeout, 5.0))
    except ConfigError as error:
        return Finding("fail", str(error).removesuffix(f"; {ray_start.ADVICE}"), ray_start.ADVICE)
    return Finding("ok", f"{shown} responds in {1e3 * (time.monotonic() - started):.0f} ms, Ray {version} here")


def output(url: str) -> Finding:
    """Write, read and delete a marker file with the storage package."""
    content = uuid.uuid4().hex
    marker, started = _marker(url, content), time.monotonic()
    storage.write_text(marker, content)
    try:
        same = storage.read_text(marker) == content
    finally:
        storage.remove(marker)
    return _round_trip(url, marker, same, started)


def ray_output(url: str) -> Finding:
    """Copy a folder up and down through the filesystem that Ray gets, in the way Ray copies checkpoints."""
    content = uuid.uuid4().hex
    marker, started = _marker(url, content), time.monotonic()
    filesystem, path = storage.arrow_filesystem(marker)
    storage.exists(marker)  # raises if the bucket does not exist; create_dir would create it
    with tempfile.TemporaryDirectory() as folder:
        up, down = Path(folder) / "up", Path(folder) / "down"
        up.mkdir()
        down.mkdir()
        (up / "checkpoint").write_text(content)
        local = pyarrow.fs.LocalFileSystem()
        filesystem.create_dir(path)
        try:
            pyarrow.fs.copy_files(str(up), path, source_filesystem=local, destination_filesystem=filesystem)
            pyarrow.fs.copy_files(path, str(down), source_filesystem=filesystem, destination_filesystem=local)
            same = (down / "checkpoint").read_text() == content
        finally:
            filesystem.delete_dir(path)
    return _round_trip(url, marker, same, started)


def _marker(url: str, content: str) -> str:
    """Return where to write: a check must not create a run's folder, so for a local path the nearest existing folder."""
    path = storage.local_path(url)
    return storage.join(url if path is None else _existing(path), f".avvp-doctor-{content}")


def _round_trip(url: str, marker: str, same: bool, started: float) -> Finding:
    seconds = time.monotonic() - started
    if not same:
        return Finding(
            "fail",
            f"{url}: the content read differs from the content written",
            "something between here and the storage alters it",
        )
    if storage.exists(marker):
        return Finding("fail", f"{url}: {marker} cannot be deleted", "allow deletion: old checkpoints are deleted")
    return Finding("ok", f"{url}: written, read and deleted in {1e3 * seconds:.0f} ms")


def data(url: str) -> Finding:
    """Read index and labels, and verify the hash of the first shard."""
    index = Index.load(url)
    videos = sum(len(split.ids) for split in read_labels(url, index).values())
    size = sum(shard.bytes for shard in index.shards)
    figure = f"{url}: {videos} videos, {len(index.shards)} shards, {size / 1e6:.0f} MB"
    if not index.shards:
        return Finding("fail", figure, "the data set is empty; pack it again")
    first, started = index.shards[0], time.monotonic()
    content = storage.read_bytes(storage.join(url, first.name))
    seconds = max(time.monotonic() - started, 1e-9)
    if hashlib.sha256(content).hexdigest() != first.sha256:
        return Finding("fail", f"{figure}; {first.name} differs from its index", "delete it and run the pack command again")
    figure += f", {first.name} verified at {len(content) / 1e6 / seconds:.0f} MB/s"
    if storage.local_path(url) is None and shutil.disk_usage(_existing(default_folder())).free < size:
        return Finding("warn", figure, f"the whole data set does not fit into the cache {default_folder()}")
    return Finding("ok", figure)


def mlflow(uri: str, experiment: str) -> Finding:
    """Create a temporary run with a metric and an artifact, and delete it."""
    try:
        metadata.version("mlflow")
    except metadata.PackageNotFoundError:
        return Finding("warn", "not installed", "to track runs: pip install 'avvp_dist[mlflow]'; otherwise tracking=none")
    check_address(TrackingConfig(uri=uri))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # read when MLflow is imported
    user_folders.ensure_home()  # MLflow needs it when it is imported
    from avvp_dist.tracking.mlflow import probe

    try:
        return Finding("ok", probe(uri, experiment))
    except Exception as error:
        advice = (
            "start the server, or correct tracking=URI; runs continue without it, and `avvp sync` sends the records later"
        )
        return Finding("fail", f"{redact(uri)}: {explain(error)}", advice)


def _existing(path: Path) -> Path:
    return next(folder for folder in [path, *path.parents] if folder.is_dir())
