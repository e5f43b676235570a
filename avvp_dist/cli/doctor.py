"""The command ``avvp doctor``: checks a machine before a long run."""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict
from typing import Annotated

import typer

from avvp_dist.cli.run_options import distinct_keys
from avvp_dist.text.escape import visible

_COLORS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}

_SETTINGS = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        callback=distinct_keys,
        help="What to check: data=URL, output=URL, tracking=URI, timeout=SECONDS, storage.endpoint=URL, ...",
    ),
]


def doctor(
    settings: _SETTINGS = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Check what a run needs from this machine: storage, MLflow, Ray, process groups, GPU, disk and packages.

    Each check performs the real operation and removes what it wrote. Exit code 1: a check failed.
    """
    from avvp_dist.config import merge, parse_overrides, validate
    from avvp_dist.experiments.recipe import absolute
    from avvp_dist.launch.doctor import DoctorConfig, run_checks  # importing torch takes seconds

    content = merge({}, parse_overrides(settings or []), {})
    config = absolute(validate(DoctorConfig, content, "doctor"))
    done = []
    for checked in run_checks(config):
        done.append(checked)
        finding = checked.finding
        if not as_json:
            status = typer.style(f"{finding.status:4}", fg=_COLORS[finding.status])
            advice = f"; {finding.advice}" if finding.advice else ""
            typer.echo(f"{status}  {checked.check:14} {visible(f'{finding.figure}{advice}')}")
    failed = any(checked.finding.status == "fail" for checked in done)
    if as_json:
        rows = [{"check": checked.check, **asdict(checked.finding)} for checked in done]
        typer.echo(json.dumps({"ok": not failed, "checks": rows}, indent=1))
    _exit_if_a_check_hangs(int(failed))
    raise typer.Exit(int(failed))


def _exit_if_a_check_hangs(code: int) -> None:
    """End the process if a check still hangs in its thread, for which Python might wait at exit."""
    if any(thread.name.startswith("check ") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
