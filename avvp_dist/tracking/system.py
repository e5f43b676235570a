"""Load of the machine during a run, recorded under MLflow's own names so that its "System metrics" tab shows it."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import psutil
import torch

from avvp_dist.tracking.base import Tracker


class SystemSampler:
    """Records the load of the machine every ``interval`` seconds; call `stop` before the tracker finishes.

    Args:
        tracker: receives the metrics; steps count samples.
        folder: a path on the disk whose usage is recorded.
        interval: seconds between samples.
    """

    def __init__(self, tracker: Tracker, folder: Path, interval: float = 10.0) -> None:
        self._tracker = tracker
        self._folder = folder
        self._interval = interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)

    def start(self) -> None:
        """Start sampling."""
        psutil.cpu_percent()  # the first call only starts psutil's measurement
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling; return once the last sample is recorded."""
        self._stopping.set()
        self._thread.join()

    def _sample(self) -> None:
        step = 0
        while not self._stopping.wait(self._interval):
            self._tracker.metrics(sample(self._folder), step)
            step += 1


def sample(folder: Path) -> dict[str, float]:
    """Return one sample: percentages 0-100, memory in MB (1e6 bytes)."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(folder))
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": 100 * memory.used / memory.total,
        "process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
        "disk_usage_percentage": disk.percent,
        "disk_available_megabytes": disk.free / 1e6,
        **_gpu(),
    }
    return {f"system/{name}": round(value, 1) for name, value in values.items()}


def _gpu() -> dict[str, float]:
    """Return the load of this process's device; nothing before training has initialized CUDA, which a query would do."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return {}
    device = torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(device)
    values = {
        f"gpu_{device}_memory_usage_megabytes": (total - free) / 1e6,
        f"gpu_{device}_memory_usage_percentage": 100 * (total - free) / total,
        f"gpu_{device}_process_memory_megabytes": torch.cuda.memory_allocated(device) / 1e6,
    }
    with contextlib.suppress(ImportError, RuntimeError):  # needs nvidia-ml-py, as MLflow's own sampler does
        values[f"gpu_{device}_utilization_percentage"] = float(torch.cuda.utilization(device))
    return values
