"""The command ``avvp sweep``: trains a recipe over a search space and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from avvp_dist import storage
from avvp_dist.cli.output import echo, seed_list, valid_url
from avvp_dist.cli.storage_options import configure
from avvp_dist.errors import ConfigError
from avvp_dist.storage import json_files
from avvp_dist.text.escape import cell

_RECORDED = {"name": str, "spec": dict, "overrides": list, "trials": list}  # what --resume needs of sweep.json
_UNFINISHED = 75  # "try again": what is left goes on with the same command


def sweep(
    name: Annotated[str | None, typer.Argument(help="Name of a shipped sweep (see --list) or path of a .yaml file.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of all trials, at least data=URL.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder or URL of the sweep; default outputs/sweeps/NAME.", callback=valid_url),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Go on with the sweep in this folder; needs nothing else.", callback=valid_url),
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="S,S,...", help="Seeds of every setting.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Settings that a random or Optuna search tries.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Most trials at once.")] = None,
    hours: Annotated[float | None, typer.Option(help="Stop after this time; --resume goes on.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Most trials in all.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPU cores of a trial.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of a trial; 0.25 puts four on one.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print trials, stages to compute and to reuse, and what it will cost.")
    ] = False,
    list_sweeps: Annotated[bool, typer.Option("--list", help="List the shipped sweeps.")] = False,
) -> None:
    """Train a recipe over a search space and seeds, on Ray Tune: on this machine, or on the cluster of RAY_ADDRESS.

    Trials share the stages that no swept key touches. The same command (or --resume DIR) goes on where it was stopped;
    finished trials are not run again. Compare settings with `avvp compare --sweep DIR`.

    Exit code 0: all trials ended; 1: some failed; 75: some are left, for want of time or because it was interrupted.
    """
    from avvp_dist.experiments import sweep as sweeps

    if list_sweeps:
        for known in sweeps.sweeps():
            _, shipped = sweeps.read(known)
            typer.echo(f"{known:24} {shipped.title} ({', '.join(shipped.space)})")
        return
    if (name is None) == (resume is None):
        raise ConfigError(f"sweep: give a name ({', '.join(sweeps.sweeps())}), the path of a .yaml file, or --resume DIR")
    given = {
        "seeds": None if seeds is None else seed_list(seeds),
        "search.samples": samples,
        "concurrency": concurrency,
        "hours": hours,
        "trials": trials,
        "cpus_per_trial": cpus,
        "gpus_per_trial": gpus,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    if resume:
        short, spec, settings, output = _recorded(resume, overrides, output, changes)
    else:
        assert name
        configure(overrides or [])  # the file itself may lie in an object store
        short, spec = sweeps.read(name, changes)
        settings, output = list(overrides or []), output or f"outputs/sweeps/{short}"
    configure([*spec.overrides, *settings])  # and the recipe
    spec, settings = sweeps.with_absolute_paths(spec, settings)
    output = storage.absolute(output)
    if dry_run:
        _dry_run(short, spec, settings, output)
        return
    from avvp_dist.launch.start import launch_sweep  # ray and torch take seconds to import

    content = launch_sweep(short, spec, settings, output)
    _print_trials(content)
    echo(f"sweep {storage.join(output, 'sweep.json')}\ncompare its settings: avvp compare --sweep {output}")
    states = [row["status"] for row in content["trials"]]
    if "pending" in states:
        echo(f"{states.count('pending')} trials are left; go on with: avvp sweep --resume {output}", err=True)
        raise typer.Exit(_UNFINISHED)
    raise typer.Exit(1 if "failed" in states else 0)


def _recorded(
    folder: str, overrides: Sequence[str] | None, output: str | None, changes: dict[str, Any]
) -> tuple[str, Any, list[str], str]:
    """Name, sweep, overrides and folder of a sweep that was started before."""
    from avvp_dist.experiments import sweep as sweeps

    if overrides or output:
        raise ConfigError("--resume takes settings and folder from the sweep itself; give no others")
    url = storage.join(folder, "sweep.json")
    if not storage.exists(url):
        raise ConfigError(f"{url}: not there, no sweep was started in this folder")
    content = json_files.record(url, _RECORDED, "start the sweep anew in another folder")
    return content["name"], sweeps.with_changes(content["spec"], changes, url), content["overrides"], folder


def _print_trials(content: dict[str, Any]) -> None:
    """Trials in the order of their score."""
    table = Table(title=cell(content["title"], style="italic"), title_justify="left")
    for column in ("setting", "seed", "status", content["metric"]):
        table.add_column(cell(column), justify="right" if column in ("seed", content["metric"]) else "left")
    sign = -1 if content["mode"] == "max" else 1
    rows = sorted(content["trials"], key=lambda row: sign * row["score"] if "score" in row else float("inf"))
    for row in rows:
        status = row["status"] + (f": {row['reason']}" if "reason" in row else "")
        score = f"{row['score']:.2f}" if "score" in row else ""
        table.add_row(cell(row["label"]), str(row["seed"]), cell(status), score)
    Console().print(table)


def _dry_run(short: str, spec: Any, overrides: list[str], output: str) -> None:
    from avvp_dist.launch.start import plan_sweep

    plan = plan_sweep(spec, overrides, output)
    title = f"{short}: {len(plan.trials)} trials in {output}"
    table = Table(title=cell(title, style="italic"), title_justify="left")
    for column in ("setting", "seed", "stages"):
        table.add_column(column)
    for trial in plan.trials:
        table.add_row(cell(trial.label), str(trial.seed), cell(", ".join(trial.stages)))
    console = Console()
    console.print(table)
    console.print(cell("\n".join(plan.summary)))
