"""Runs the checks of `avvp doctor` side by side, each for a limited time."""

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

# where the user said nothing: a check looks once, a training may wait
_HURRY = {"retries": 1, "connect_timeout": 5.0, "read_timeout": 10.0}


class DoctorConfig(Section):
    """What to look at."""

    data: Url | None = None
    """Packed data set to be read; null for none."""
    output: Url = "outputs"
    """Folder or URL to be written to: where runs are to go."""
    tracking: TrackingUri = TrackingConfig().uri
    """MLflow tracking URI; none for no look at MLflow."""
    experiment: Text = TrackingConfig().experiment
    """MLflow experiment of the throwaway run."""
    timeout: PositiveFloat = 25.0
    """Seconds that each check may take; they run side by side."""
    storage: StorageConfig = StorageConfig()


@dataclass(frozen=True)
class Checked:
    """A finding and the name of its check."""

    check: str
    finding: Finding


def examine(config: DoctorConfig) -> Iterator[Checked]:
    """All findings, in a fixed order, each as soon as it and those before it are there.

    A check that hangs is left behind in its thread; whoever calls should end the process.
    """
    given = config.storage.model_fields_set
    hurried = {key: value for key, value in _HURRY.items() if key not in given}
    storage.configure(config.storage.model_copy(update=hurried))
    storage.arrow_filesystem(config.output)  # imports what threads must not import at the same time
    # processes of a check end before the check's own time does
    plan: dict[str, Callable[[], Finding]] = {
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
        plan["mlflow"] = lambda: doctor_checks.mlflow(config.tracking, config.experiment)
    if config.data is not None:
        url = config.data
        plan["data"] = lambda: doctor_checks.data(url)
    found: dict[str, Finding] = {}
    threads = {
        name: threading.Thread(target=_look, args=(found, name, check), name=f"check {name}", daemon=True)
        for name, check in plan.items()
    }
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + config.timeout
    for name, thread in threads.items():
        thread.join(max(end - time.monotonic(), 0.0))
        late = Finding(
            "fail", f"no answer in {config.timeout:g} s", "mend what does not answer, or give it longer: timeout=120"
        )
        seen = found.get(name, late)
        yield Checked(name, replace(seen, figure=redact(seen.figure), advice=redact(seen.advice)))


def _look(found: dict[str, Finding], name: str, check: Callable[[], Finding]) -> None:
    try:
        found[name] = check()
    except AvvpError as error:
        found[name] = Finding("fail", *_split(str(error)))
    except Exception as error:
        found[name] = Finding("fail", explain(error), "see the figure; nothing that needs this will work")


def _split(message: str) -> tuple[str, str]:
    """Our own errors say what is wrong, then, after a semicolon, what to do."""
    figure, _, advice = " ".join(message.split()).partition("; ")
    return figure, advice
