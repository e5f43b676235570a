"""What `avvp doctor` looks at: each function examines one thing for real and says in a line what it found."""

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

_OF_OUR_OWN = 'address="local", num_cpus=1, include_dashboard=False'
_START_RAY = f"""
import ray, time
started = time.monotonic()
ray.init({_OF_OUR_OWN}, logging_level=50, log_to_driver=False)
print(f"Ray {{ray.__version__}} starts in {{time.monotonic() - started:.1f}} s")
ray.shutdown()
"""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        status: ``warn`` for what works but may disappoint, ``fail`` for what does not work.
        figure: what was seen.
        advice: what to do about it, empty when all is well.
    """

    status: Literal["ok", "warn", "fail"]
    figure: str
    advice: str = ""


def python() -> Finding:
    """Python and the packages of pyproject.toml, against the versions asked for there."""
    version = ".".join(map(str, sys.version_info[:3]))
    try:
        wanted = [Requirement(line) for line in metadata.requires("avvp_dist") or []]
    except metadata.PackageNotFoundError:
        return Finding("warn", f"Python {version}; avvp_dist is not installed", "install it: pip install -e '.[all]'")
    wrong: list[str] = []
    missing: list[str] = []
    good = 0
    for requirement in wanted:
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
            wrong.append(f"{requirement.name} {installed}, wanted {requirement.specifier}")
    figure = f"Python {version}, {good} packages in the versions asked for"
    if wrong:
        return Finding("fail", "; ".join([figure, *wrong, *missing]), "pip install -c constraints.txt 'avvp_dist[all]'")
    if missing:
        return Finding("warn", "; ".join([figure, *missing]), "where you need them: pip install 'avvp_dist[ray,mlflow,s3]'")
    return Finding("ok", f"{figure}, torch {torch.__version__}")


def _is_for(requirement: Requirement, extra: str) -> bool:
    assert requirement.marker
    return requirement.marker.evaluate({"extra": extra}) and not requirement.marker.evaluate({"extra": ""})


def shared_memory() -> Finding:
    """/dev/shm, through which processes of a machine hand each other data."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return Finding("warn", "no /dev/shm", "processes of one machine share memory through it; mount it as tmpfs")
    figure = f"/dev/shm {usage.total / GB:.1f} GB, {usage.free / GB:.1f} GB free"
    if usage.free < GB:
        return Finding("warn", figure, "give containers more: docker run --shm-size 8g, or an emptyDir of medium Memory")
    return Finding("ok", figure)


def disk() -> Finding:
    """Free space where features are cached."""
    try:
        place = _existing(default_folder())
    except ConfigError as error:
        figure, _, advice = str(error).partition("; ")
        return Finding("warn", figure, f"{advice}; data on this machine need none")
    free = shutil.disk_usage(place).free
    figure = f"{free / GB:.1f} GB free for {default_folder()}"
    if free < 2 * GB:
        return Finding("warn", figure, "a cache of the features needs as much as their shards; free some space")
    return Finding("ok", figure)


def gpu() -> Finding:
    """CUDA devices and their free memory."""
    if not torch.cuda.is_available():
        if Path("/dev/nvidia0").exists():
            return Finding("warn", f"a GPU that torch {torch.__version__} cannot use", "install torch for CUDA, or a driver")
        return Finding("ok", "no CUDA device; training runs on the CPU")
    parts, low = [], False
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        low = low or free < 2 * GB
        parts.append(f"{torch.cuda.get_device_name(number)} {free / GB:.0f} of {total / GB:.0f} GB free")
    if low:
        return Finding("warn", ", ".join(parts), "somebody else uses this memory; see nvidia-smi")
    return Finding("ok", ", ".join(parts))


def collective(timeout: float) -> Finding:
    """A real all_reduce: gloo between two processes, and NCCL over up to two GPUs where there are any."""
    told = []
    plans = [("gloo", 2, "GLOO_SOCKET_IFNAME and firewalls")]
    if torch.cuda.is_available():
        plans.append(("nccl", min(2, torch.cuda.device_count()), "what NCCL_DEBUG=INFO says"))
    for backend, processes, suspect in plans:
        try:
            seconds = all_reduce_seconds(backend, processes, timeout)
        except RuntimeError as error:
            advice = f"several processes cannot train together; look at {suspect}, or on a slow machine give timeout=120"
            return Finding("fail", f"{backend}: {error}", advice)
        told.append(f"{backend} with {processes}: all_reduce of {FLOATS * 4 / 1e6:.0f} MB in {1e3 * seconds:.1f} ms")
    return Finding("ok", "; ".join(told))


def ray(timeout: float) -> Finding:
    """The cluster of RAY_ADDRESS, or whether Ray starts on this machine; in a process that can be ended."""
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return Finding("warn", "not installed", "for launch=ray: pip install 'avvp_dist[ray]'")
    address = os.environ.get("RAY_ADDRESS", "local")
    if address not in ("local", "auto"):
        return _reach_ray(address, version, timeout)
    code = _START_RAY if address == "local" else _START_RAY.replace(_OF_OUR_OWN, 'address="auto"')
    try:
        ray_environment.prepare()
    except ConfigError as error:
        return Finding("fail", str(error), "launch=ray will not work; launch=local does")
    with tempfile.TemporaryFile("w+") as told:  # no pipe: what Ray starts would hold it open
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=told, stderr=told)
        try:
            failed = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return Finding("fail", f"Ray {version} did not start in {timeout:g} s", "on a slow machine give timeout=120")
        finally:
            process.kill()
            process.wait()
        told.seek(0)
        last = (told.read().strip().splitlines() or [f"exit code {failed}"])[-1]
    if failed:
        return Finding("fail", f"Ray {version} does not start: {last[:200]}", "launch=ray will not work; launch=local does")
    return Finding("ok", last)


def _reach_ray(address: str, version: str, timeout: float) -> Finding:
    started = time.monotonic()
    try:
        shown = ray_start.reach(address, min(timeout, 5.0))
    except ConfigError as error:
        return Finding("fail", str(error).removesuffix(f"; {ray_start.ADVICE}"), ray_start.ADVICE)
    return Finding("ok", f"{shown} answers in {1e3 * (time.monotonic() - started):.0f} ms, Ray {version} here")


def output(url: str) -> Finding:
    """A marker through our own storage code."""
    content = uuid.uuid4().hex
    marker, started = _marker(url, content), time.monotonic()
    storage.write_text(marker, content)
    try:
        same = storage.read_text(marker) == content
    finally:
        storage.remove(marker)
    return _round_trip(url, marker, same, started)


def ray_output(url: str) -> Finding:
    """A marker through the filesystem that Ray is given, as Ray copies checkpoints: folder up, folder down."""
    content = uuid.uuid4().hex
    marker, started = _marker(url, content), time.monotonic()
    filesystem, path = storage.arrow_filesystem(marker)
    storage.exists(marker)  # refuses a bucket that is not there, which create_dir would make
    with tempfile.TemporaryDirectory() as folder:
        up, down = Path(folder) / "up", Path(folder) / "down"
        up.mkdir()
        down.mkdir()
        (up / "checkpoint").write_text(content)
        here = pyarrow.fs.LocalFileSystem()
        filesystem.create_dir(path)
        try:
            pyarrow.fs.copy_files(str(up), path, source_filesystem=here, destination_filesystem=filesystem)
            pyarrow.fs.copy_files(path, str(down), source_filesystem=filesystem, destination_filesystem=here)
            same = (down / "checkpoint").read_text() == content
        finally:
            filesystem.delete_dir(path)
    return _round_trip(url, marker, same, started)


def _marker(url: str, content: str) -> str:
    """Where to write: looking must not make a run's folder, so locally in the nearest one that is there."""
    here = storage.local_path(url)
    return storage.join(url if here is None else _existing(here), f".avvp-doctor-{content}")


def _round_trip(url: str, marker: str, same: bool, started: float) -> Finding:
    seconds = time.monotonic() - started
    if not same:
        return Finding("fail", f"{url}: what came back is not what was written", "something on the way alters content")
    if storage.exists(marker):
        return Finding("fail", f"{url}: {marker} cannot be deleted", "allow deleting: old checkpoints are removed")
    return Finding("ok", f"{url}: written, read and deleted in {1e3 * seconds:.0f} ms")


def data(url: str) -> Finding:
    """Index, labels and the first shard against its hash."""
    index = Index.load(url)
    videos = sum(len(split.ids) for split in read_labels(url, index).values())
    size = sum(shard.bytes for shard in index.shards)
    figure = f"{url}: {videos} videos, {len(index.shards)} shards, {size / 1e6:.0f} MB"
    if not index.shards:
        return Finding("fail", figure, "there is nothing to train on; pack again")
    first, started = index.shards[0], time.monotonic()
    content = storage.read_bytes(storage.join(url, first.name))
    seconds = max(time.monotonic() - started, 1e-9)
    if hashlib.sha256(content).hexdigest() != first.sha256:
        return Finding("fail", f"{figure}; {first.name} differs from its index", "delete it and run the pack command again")
    figure += f", {first.name} good at {len(content) / 1e6 / seconds:.0f} MB/s"
    if storage.local_path(url) is None and shutil.disk_usage(_existing(default_folder())).free < size:
        return Finding("warn", figure, f"all of it would not fit below {default_folder()}")
    return Finding("ok", figure)


def mlflow(uri: str, experiment: str) -> Finding:
    """A throwaway run with a value and an artifact."""
    try:
        metadata.version("mlflow")
    except metadata.PackageNotFoundError:
        return Finding("warn", "not installed", "to keep runs: pip install 'avvp_dist[mlflow]'; else tracking=none")
    check_address(TrackingConfig(uri=uri))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # looked at when MLflow is imported
    user_folders.ensure_home()  # MLflow asks for it when it is imported
    from avvp_dist.tracking.mlflow import probe

    try:
        return Finding("ok", probe(uri, experiment))
    except Exception as error:
        advice = "start the server, or mend tracking=URI; runs go on without it, and `avvp sync` sends what it missed"
        return Finding("fail", f"{redact(uri)}: {explain(error)}", advice)


def _existing(path: Path) -> Path:
    return next(folder for folder in [path, *path.parents] if folder.is_dir())
