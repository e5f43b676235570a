"""Runs the checks of `avvp doctor` concurrently, each with a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pydantic import PositiveFloat

from avvp_dist import storage
from avvp_dist.config import Section, Text, Url
from avvp_dist.errors import AvvpError
from avvp_dist.launch import doctor_checks
from avvp_dist.launch.doctor_checks import Finding
from avvp_dist.storage.config import StorageConfig
from avvp_dist.text.credentials import redact
from avvp_dist.tracking.base import TrackingConfig, TrackingUri
from avvp_dist.tracking.errors import explain

# unless the user sets them: a check tries once, whereas training can wait
_SHORT_TIMEOUTS = {"retries": 1, "connect_timeout": 5.0, "read_timeout": 10.0}


class DoctorConfig(Section):
    """What to check."""

    data: Url | None = None
    """Packed data set to read; null for none."""
    output: Url = "outputs"
    """Folder or URL for runs, to which the checks write."""
    tracking: TrackingUri = TrackingConfig().uri
    """MLflow tracking URI; none skips the MLflow check."""
    experiment: Text = TrackingConfig().experiment
    """MLflow experiment for the temporary run."""
    timeout: PositiveFloat = 25.0
    """Time limit of each check in seconds; they run concurrently."""
    storage: StorageConfig = StorageConfig()


@dataclass(frozen=True)
class NamedFinding:
    """A finding and the name of its check."""

    check: str
    finding: Finding


def run_checks(config: DoctorConfig) -> Iterator[NamedFinding]:
    """Run all checks and yield their findings in a fixed order, each as soon as it and all earlier ones are available.

    A check that hangs is abandoned in its thread, so the caller should end the process.
    """
    given = config.storage.model_fields_set
    hurried = {key: value for key, value in _SHORT_TIMEOUTS.items() if key not in given}
    storage.configure(config.storage.model_copy(update=hurried))
    storage.arrow_filesystem(config.output)  # imports modules that threads must not import concurrently
    # subprocesses of a check end before the check's own time limit
    checks: dict[str, Callable[[], Finding]] = {
        "python": doctor_checks.python,
        "shared memory": doctor_checks.shared_memory,
        "disk": doctor_checks.disk,
        "gpu": doctor_checks.gpu,
        "collective": lambda: doctor_checks.collective(0.9 * config.timeout),
        "ray": lambda: doctor_checks.ray(0.9 * config.timeout),
        "output": lambda: doctor_checks.output(config.output),
        "output by ray": lambda: doctor_checks.ray_output(config.output),
    }
    if config.tracking != "none":
        checks["mlflow"] = lambda: doctor_checks.mlflow(config.tracking, config.experiment)
    if config.data is not None:
        url = config.data
        checks["data"] = lambda: doctor_checks.data(url)
    found: dict[str, Finding] = {}
    threads = {
        name: threading.Thread(target=_run_check, args=(found, name, check), name=f"check {name}", daemon=True)
        for name, check in checks.items()
    }
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + config.timeout
    for name, thread in threads.items():
        thread.join(max(end - time.monotonic(), 0.0))
        late = Finding(
            "fail", f"no response in {config.timeout:g} s", "fix what does not respond, or allow more time: timeout=120"
        )
        finding = found.get(name, late)
        yield NamedFinding(name, replace(finding, figure=redact(finding.figure), advice=redact(finding.advice)))


def _run_check(found: dict[str, Finding], name: str, check: Callable[[], Finding]) -> None:
    try:
        found[name] = check()
    except AvvpError as error:
        found[name] = Finding("fail", *_split(str(error)))
    except Exception as error:
        found[name] = Finding("fail", explain(error), "unexpected error; nothing that needs this will work")


def _split(message: str) -> tuple[str, str]:
    """Split a message of this package at the semicolon between problem and remedy."""
    figure, _, advice = " ".join(message.split()).partition("; ")
    return figure, advice
