"""The command ``avvp evaluate``: scores the model of a finished run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from avvp_dist import storage
from avvp_dist.cli.output import echo, valid_url
from avvp_dist.cli.run_options import OVERRIDES, configure_storage_for, print_scores
from avvp_dist.config import parse_overrides
from avvp_dist.errors import ConfigError, DataError, StorageError
from avvp_dist.storage import integrity, json_files

_SECTIONS, _KEYS = ("data", "evaluate", "storage", "task"), ("train.device", "train.precision")  # that evaluation reads
_TOLERANCE = 1e-6  # points by which the scores of one model may differ

_RUN = Annotated[
    str, typer.Argument(metavar="RUN", help="Folder or URL of a finished run (its output).", callback=valid_url)
]
_JSON = Annotated[str | None, typer.Option("--json", help="Also write the scores to this file.", callback=valid_url)]


def evaluate(run: _RUN, overrides: OVERRIDES = None, json_file: _JSON = None) -> None:
    """Score the model of a finished run again, on the run's data or on data=URL, under every view of its task.

    If the run's folder lacks the statistics per video, which `avvp compare` needs, they are added to it.
    """
    from avvp_dist.dist.runtime import LocalRuntime
    from avvp_dist.experiments.recipe import load
    from avvp_dist.experiments.result import CONFIG, check_files, read_result
    from avvp_dist.experiments.run import evaluate_experiment
    from avvp_dist.metrics.per_video import FILE as PER_VIDEO
    from avvp_dist.storage.probe import refuse_unwritable

    _refuse_other_keys(overrides or [])
    configure_storage_for(run, overrides or [])
    config_url, result_url = storage.join(run, "config.yaml"), storage.join(run, "result.json")
    missing = [url for url in (config_url, result_url) if not storage.exists(url)]
    if missing:
        raise DataError(
            [f"{url}: does not exist" for url in missing], f"{run}: not a finished run; train it with `avvp train`"
        )
    recorded = json_files.check_object(read_result(run), result_url, {"scores": dict, "data": dict}, "train the run again")
    check_files(run, recorded, [CONFIG])
    # not an override: override values are YAML, and a path need not be valid YAML
    config = load(config_url, overrides or []).model_copy(update={"output": run}).absolute()
    storage.configure(config.storage)
    refuse_unwritable(files={"--json": json_file})
    evaluation = evaluate_experiment(config, LocalRuntime(config.output, config.train.device))
    data = recorded["data"] | evaluation.data
    scored = {"task": evaluation.task, "scores": evaluation.scores, "references": evaluation.references}
    result = recorded | scored | {"data": data}
    print_scores({config.recipe: result})
    difference = _largest_difference(evaluation.scores, recorded["scores"])
    if data["fingerprint"] != recorded["data"].get("fingerprint", data["fingerprint"]):
        echo("scores on other data than the run's: not compared with result.json")
    elif difference < _TOLERANCE:
        echo("result.json reproduced")
        _write_if_different(run, recorded, PER_VIDEO, evaluation.per_video.to_bytes())
    else:
        echo(f"differs from result.json by up to {difference:.3g} points")
    if json_file:
        storage.write_text(json_file, json.dumps(result, indent=1))


def _refuse_other_keys(overrides: Sequence[str]) -> None:
    """Refuse overrides of keys that evaluation does not read, or that describe the trained network.

    Raises:
        ConfigError: all of them.
    """
    keys = [".".join(path) for path, _ in parse_overrides(overrides)]
    refused = [key for key in keys if key.partition(".")[0] not in _SECTIONS and key not in _KEYS]
    if refused:
        raise ConfigError(
            f"evaluate: {', '.join(refused)} cannot be changed for a trained model; "
            f"only {', '.join(f'{section}.*' for section in _SECTIONS)} and {', '.join(_KEYS)} can be given"
        )


def _write_if_different(run: str, result: dict[str, Any], name: str, content: bytes) -> None:
    """Write a file of the run unless it already holds ``content``, and update its checksum if result.json lists checksums.

    If the folder cannot be written, this is reported and ignored.
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
        echo(f"statistics per video {url}")
    except (OSError, StorageError) as error:
        echo(f"{url}: not written: {error}")


def _largest_difference(one: Any, other: Any) -> float:
    """Return the largest difference between two nested score tables; infinity if their keys or types differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((_largest_difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other)
    return 0.0 if one == other else float("inf")
