"""The command ``avvp sweep``: trains a recipe over a search space and several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from avvp_dist import storage
from avvp_dist.cli.output import echo, seed_list, valid_url
from avvp_dist.cli.run_options import distinct_keys
from avvp_dist.cli.storage_options import configure
from avvp_dist.errors import ConfigError, Preempted
from avvp_dist.storage import json_files
from avvp_dist.text.escape import cell
from avvp_dist.text.plural import plural

if TYPE_CHECKING:
    from avvp_dist.experiments.sweep import SweepConfig

_RECORDED = {"name": str, "spec": dict, "overrides": list, "trials": list}  # content of sweep.json that --resume needs

_NAME = Annotated[
    str | None, typer.Argument(metavar="NAME", help="Name of a shipped sweep (see --list) or path of a .yaml file.")
]
_OVERRIDES = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Config overrides for all trials; data=URL is required.", callback=distinct_keys
    ),
]
_OUTPUT = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Folder or URL of the sweep; default outputs/sweeps/NAME.", callback=valid_url),
]
_RESUME = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Resume the sweep in this folder, with its recorded settings.", callback=valid_url),
]
_SEEDS = Annotated[str | None, typer.Option(metavar="S,S,...", help="Seeds; every setting is trained with each of them.")]
_SAMPLES = Annotated[int | None, typer.Option(min=1, help="Number of settings that a random or Optuna search tries.")]
_CONCURRENCY = Annotated[int | None, typer.Option(min=1, help="Maximum number of concurrent trials.")]
_HOURS = Annotated[float | None, typer.Option(help="Stop after this time; --resume continues the sweep.")]
_TRIALS = Annotated[int | None, typer.Option(min=1, help="Maximum number of trials in total.")]
_CPUS = Annotated[float | None, typer.Option(help="CPU cores per trial.")]
_GPUS = Annotated[float | None, typer.Option(help="GPUs per trial; 0.25 places four trials on one GPU.")]
_DRY_RUN = Annotated[
    bool,
    typer.Option("--dry-run", help="Only print the trials, the stages to compute and to reuse, and the estimated cost."),
]
_LIST = Annotated[bool, typer.Option("--list", help="List the shipped sweeps.")]


def sweep(
    name: _NAME = None,
    overrides: _OVERRIDES = None,
    output: _OUTPUT = None,
    resume: _RESUME = None,
    seeds: _SEEDS = None,
    samples: _SAMPLES = None,
    concurrency: _CONCURRENCY = None,
    hours: _HOURS = None,
    trials: _TRIALS = None,
    cpus: _CPUS = None,
    gpus: _GPUS = None,
    dry_run: _DRY_RUN = False,
    list_sweeps: _LIST = False,
) -> None:
    """Train a recipe over a search space and several seeds with Ray Tune, on this machine or the cluster of RAY_ADDRESS.

    Trials share the stages that do not depend on a swept key. The same command (or --resume FOLDER) resumes an interrupted
    sweep without repeating finished trials. To compare its settings, use `avvp compare --sweep FOLDER`.

    Exit code 0: all trials ended; 1: some trials failed; 75: some trials are left, because time ran out or the sweep was
    interrupted.
    """
    if list_sweeps:
        _list_sweeps()
        return
    changes = {
        "seeds": None if seeds is None else seed_list(seeds),
        "search.samples": samples,
        "concurrency": concurrency,
        "hours": hours,
        "trials": trials,
        "cpus_per_trial": cpus,
        "gpus_per_trial": gpus,
    }
    short, spec, settings, output = _read(
        name, resume, overrides, output, {k: v for k, v in changes.items() if v is not None}
    )
    if dry_run:
        _print_plan(short, spec, settings, output)
        return
    from avvp_dist.launch.start import launch_sweep  # importing ray and torch takes seconds

    content = launch_sweep(short, spec, settings, output)
    _print_trials(content)
    echo(f"sweep {storage.join(output, 'sweep.json')}\ncompare its settings: avvp compare --sweep {output}")
    states = [row["status"] for row in content["trials"]]
    if "pending" in states:
        left = states.count("pending")
        echo(f"{left} {plural(left, 'trial is', 'trials are')} left; resume with: avvp sweep --resume {output}", err=True)
        raise typer.Exit(Preempted.exit_code)
    raise typer.Exit(1 if "failed" in states else 0)


def _list_sweeps() -> None:
    from avvp_dist.experiments import sweep as sweeps

    for name in sweeps.sweeps():
        _, shipped = sweeps.read(name)
        typer.echo(f"{name:24} {shipped.title} ({', '.join(shipped.space)})")


def _read(
    name: str | None, resume: str | None, overrides: Sequence[str] | None, output: str | None, changes: Mapping[str, Any]
) -> tuple[str, SweepConfig, list[str], str]:
    """Return short name, config, overrides and folder of a new or a resumed sweep, with all paths absolute.

    Raises:
        ConfigError: neither or both of ``name`` and ``resume`` were given, or all problems of the sweep.
    """
    from avvp_dist.experiments import sweep as sweeps

    if (name is None) == (resume is None):
        raise ConfigError(f"sweep: give a name ({', '.join(sweeps.sweeps())}), the path of a .yaml file, or --resume FOLDER")
    if resume:
        if overrides or output:
            raise ConfigError("--resume uses the sweep's own overrides and folder; do not give others")
        short, spec, settings, output = _recorded(resume, changes)
    else:
        assert name
        configure(overrides or [])  # the sweep file may be in object storage
        short, spec = sweeps.read(name, changes)
        settings, output = list(overrides or []), output or f"outputs/sweeps/{short}"
    configure([*spec.overrides, *settings])  # so may the recipe
    spec, settings = sweeps.with_absolute_paths(spec, settings)
    return short, spec, settings, storage.absolute(output)


def _recorded(folder: str, changes: Mapping[str, Any]) -> tuple[str, SweepConfig, list[str], str]:
    """Name, config, overrides and folder of a sweep that was started before."""
    from avvp_dist.experiments import sweep as sweeps

    url = storage.join(folder, "sweep.json")
    if not storage.exists(url):
        raise ConfigError(f"{url}: does not exist; no sweep was started in this folder")
    content = json_files.read_object(url, _RECORDED, "start the sweep again in another folder")
    return content["name"], sweeps.with_changes(content["spec"], changes, url), content["overrides"], folder


def _print_trials(content: Mapping[str, Any]) -> None:
    """Print the trials, best score first."""
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


def _print_plan(short: str, spec: SweepConfig, overrides: Sequence[str], output: str) -> None:
    from avvp_dist.launch.start import plan_sweep

    plan = plan_sweep(spec, overrides, output)
    title = f"{short}: {len(plan.trials)} {plural(len(plan.trials), 'trial')} in {output}"
    table = Table(title=cell(title, style="italic"), title_justify="left")
    for column in ("setting", "seed", "stages"):
        table.add_column(column)
    for trial in plan.trials:
        table.add_row(cell(trial.label), str(trial.seed), cell(", ".join(trial.stages)))
    console = Console()
    console.print(table)
    console.print(cell("\n".join(plan.summary)))
