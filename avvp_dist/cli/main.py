"""The command line: ``avvp``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from avvp_dist import storage
from avvp_dist.cli.cache import cache
from avvp_dist.cli.compare import compare
from avvp_dist.cli.data import data
from avvp_dist.cli.doctor import doctor
from avvp_dist.cli.errors import Commands, one_message
from avvp_dist.cli.output import echo, valid_url
from avvp_dist.cli.storage_options import STORAGE, configure
from avvp_dist.cli.sweep import sweep
from avvp_dist.cli.table import table
from avvp_dist.dist.world import rank
from avvp_dist.errors import DataError, StorageError
from avvp_dist.report.console import set_up_logging
from avvp_dist.storage import integrity, json_files
from avvp_dist.text import credentials

if TYPE_CHECKING:
    from avvp_dist.experiments.recipe import RunConfig

app = typer.Typer(
    name="avvp",
    cls=Commands,
    help="Weakly-supervised audio-visual video parsing: pack features, train, evaluate, track.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data, name="data")
app.add_typer(cache, name="cache")
app.command()(table)
app.command()(doctor)
app.command()(compare)
app.command()(sweep)

_RECIPE = Annotated[str, typer.Argument(help="Name of a shipped recipe (han, jomold, ...) or path of a .yaml file.")]
_OVERRIDES = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. data=URL optim.lr=1e-3 launch=ray.")
]


@app.command()
def train(recipe: _RECIPE, overrides: _OVERRIDES = None) -> None:
    """Train a recipe: all its stages, final scores, pictures, a tracked run.

    Give at least data=URL. Running the same command again goes on where the last one stopped and reuses finished stages.
    Several processes: torchrun --nproc-per-node 2 -m avvp_dist train ..., srun --ntasks 2 python -m avvp_dist train ... in
    a Slurm job, or launch=ray launch.workers=2.

    SIGTERM and Ctrl-C leave a checkpoint and exit code 75; a second Ctrl-C ends the run at once.
    """
    from avvp_dist.launch.start import launch_run  # torch and its friends take seconds to import

    config = _load(recipe, overrides or []).absolute()
    result = launch_run(config)
    if _rank() == 0 or config.launch.name == "ray":
        _print_scores({config.recipe: result})
        echo(f"scores {storage.join(config.output, 'result.json')}\npictures {storage.join(config.output, 'pictures')}")


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="Folder or URL of a finished run (its output).", callback=valid_url)],
    overrides: _OVERRIDES = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Also write the scores to this file.", callback=valid_url)
    ] = None,
) -> None:
    """Score a finished run's model again, on its own data or on data=URL, under every protocol.

    Writes the scores of the videos into the run's folder where they are missing: `avvp compare` needs them.
    """
    from avvp_dist.dist.runtime import LocalRuntime
    from avvp_dist.experiments.recipe import load
    from avvp_dist.experiments.result import CONFIG, check_files, read_result
    from avvp_dist.experiments.run import evaluate_experiment
    from avvp_dist.metrics.per_video import FILE as PER_VIDEO
    from avvp_dist.storage.probe import refuse_unwritable

    _configure_storage_for(run, overrides or [])
    config_url, result_url = storage.join(run, "config.yaml"), storage.join(run, "result.json")
    missing = [url for url in (config_url, result_url) if not storage.exists(url)]
    if missing:
        raise DataError([f"{url}: not there" for url in missing], f"{run}: not a finished run; train it with `avvp train`")
    recorded = json_files.expect(read_result(run), result_url, {"scores": dict, "data": dict}, "train the run again")
    check_files(run, recorded, [CONFIG])
    # not as an override: these are YAML, and a path need not be
    config = load(config_url, overrides or []).model_copy(update={"output": run}).absolute()
    storage.configure(config.storage)
    refuse_unwritable(files={"--json": json_file})
    found = evaluate_experiment(config, LocalRuntime(config.output, config.train.device))
    result = recorded | {"scores": found.scores, "data": recorded["data"] | {"url": config.data.url}}
    _print_scores({config.recipe: result})
    worst = _largest_difference(found.scores, recorded["scores"])
    if worst < 1e-6:
        echo("result.json reproduced")
        _write_if_different(run, recorded, PER_VIDEO, found.per_video.to_bytes())
    else:
        echo(f"differs from result.json by up to {worst:.3g} points")
    if json_file:
        storage.write_text(json_file, json.dumps(result, indent=1))


@app.command()
def config(recipe: _RECIPE, overrides: _OVERRIDES = None) -> None:
    """Print the resolved config of a recipe with overrides, as YAML."""
    typer.echo(_load(recipe, overrides or []).to_yaml(), nl=False)


@app.command(name="recipes")
def list_recipes() -> None:
    """List the shipped recipes."""
    from avvp_dist.experiments.recipe import recipes

    for name, text in recipes().items():
        typer.echo(f"{name:15} {text.splitlines()[0].lstrip('# ')}")


@app.command()
def sync(
    run: Annotated[
        str,
        typer.Argument(
            help="Folder or URL of a run whose tracking could not be sent, or of a sweep: all its trials.",
            callback=valid_url,
        ),
    ],
    uri: Annotated[
        str | None, typer.Option(help="MLflow address, where it is not the one the run was started with.")
    ] = None,
    storage_settings: STORAGE = None,
) -> None:
    """Send what a run or the trials of a sweep could not send to MLflow while the server was away.

    Exit code 1: something is left.
    """
    from avvp_dist.tracking.base import absolute_uri
    from avvp_dist.tracking.home import find_homes
    from avvp_dist.tracking.sender import sync as send

    uri = absolute_uri(uri) if uri else None
    left = 0
    for home in find_homes(run):
        report = send(home.folder, uri)
        home.keep()
        left += report.left
        echo(f"sent {report.sent} records to MLflow run {report.run_id}, {report.left} left")
        for line in filter(None, [*report.refused, report.error]):
            echo(line, err=True)
    raise typer.Exit(1 if left else 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake is one message on stderr and exit code 2, never a traceback (see `cli_failure`).

    Args:
        arguments: the command and what follows it; None takes those of this process.
    """
    with one_message():
        set_up_logging(quiet=_rank() != 0)
        app(args=_without_secrets(arguments))


def _without_secrets(arguments: Sequence[str] | None) -> list[str]:
    """The arguments without credentials, which this process keeps in memory.

    A process that was started with some is replaced by itself without them: a command line is seen by every user of the
    machine, and Ray keeps it as the job's entrypoint.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    cleaned = credentials.without_secrets_all(given)
    before, after = sys.orig_argv[: len(sys.orig_argv) - len(given)], sys.orig_argv[len(sys.orig_argv) - len(given) :]
    kept = credentials.for_children()
    if arguments is None and cleaned != given and after == given and kept.items() - os.environ.items():
        os.execve(sys.executable, [*before, *cleaned], os.environ | kept)
    return cleaned


def _load(recipe: str, overrides: list[str]) -> RunConfig:
    from avvp_dist.experiments.recipe import load

    _configure_storage_for(recipe, overrides)
    return load(recipe, overrides)


def _configure_storage_for(url: str, overrides: list[str]) -> None:
    """Takes the storage settings among the overrides where ``url`` is elsewhere, so that it can be read at all."""
    if storage.local_path(url) is None:
        configure(overrides)


def _rank() -> int:
    return rank(os.environ)


def _print_scores(results: dict[str, dict[str, Any]]) -> None:
    from avvp_dist.report.tables import scores

    Console().print(scores(results))


def _write_if_different(run: str, result: dict[str, Any], name: str, content: bytes) -> None:
    """Writes a file that is not there or holds something else, and its checksum into result.json where that lists files.

    Reports a folder that cannot be written, and goes on.
    """
    url = storage.join(run, name)
    if storage.exists(url) and storage.read_bytes(url) == content:
        return
    try:
        storage.write_bytes(url, content)
        if integrity.FILES in result:
            files = {**result[integrity.FILES], name: integrity.describe(content)}
            sealed = integrity.seal({**result, integrity.FILES: files})
            storage.write_text(storage.join(run, "result.json"), json.dumps(sealed, indent=1))
        echo(f"scores of videos {url}")
    except (OSError, StorageError) as error:
        echo(f"{url}: not written: {error}")


def _largest_difference(one: Any, other: Any) -> float:
    """Largest distance between two nested score tables; infinite where their keys or kinds differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((_largest_difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other)
    return 0.0 if one == other else float("inf")
