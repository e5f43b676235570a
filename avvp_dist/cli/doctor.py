"""The command ``avvp doctor``: looks at a machine before a long run is trusted to it."""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict
from typing import Annotated

import typer

from avvp_dist.text.escape import visible

_COLOURS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}


def doctor(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="data=URL, output=URL, tracking=URI, timeout=SECONDS, storage.endpoint=URL, ..."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of lines.")] = False,
) -> None:
    """Look whether this machine can do what a run will ask of it: storage, MLflow, Ray, processes, GPU, disk, packages.

    Each check does the real thing and cleans up after itself. Exit code 1 if one fails.
    """
    from avvp_dist.config import merge, parse_overrides, validate
    from avvp_dist.experiments.recipe import absolute
    from avvp_dist.launch.doctor import DoctorConfig, run_checks  # torch and its friends take seconds to import

    content = merge({}, parse_overrides(settings or []), {})
    config = absolute(validate(DoctorConfig, content, "doctor"))
    seen = []
    for checked in run_checks(config):
        seen.append(checked)
        finding = checked.finding
        if not as_json:
            status = typer.style(f"{finding.status:4}", fg=_COLOURS[finding.status])
            advice = f"; {finding.advice}" if finding.advice else ""
            typer.echo(f"{status}  {checked.check:14} {visible(f'{finding.figure}{advice}')}")
    failed = any(checked.finding.status == "fail" for checked in seen)
    if as_json:
        rows = [{"check": checked.check, **asdict(checked.finding)} for checked in seen]
        typer.echo(json.dumps({"ok": not failed, "checks": rows}, indent=1))
    _end_hanging(int(failed))
    raise typer.Exit(int(failed))


def _end_hanging(code: int) -> None:
    """Ends the process when a check still hangs in its thread, which Python might wait for."""
    if any(thread.name.startswith("check ") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
