"""Reproduces a paper's table: runs its rows with several seeds, one after another, and compares with published scores."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from avvp_dist import storage
from avvp_dist.datasets import synthetic_sets
from avvp_dist.datasets.external import noisy_segment_labels
from avvp_dist.dist.world import read
from avvp_dist.errors import ConfigError, UserError
from avvp_dist.experiments.inputs import open_data, read_refined_labels
from avvp_dist.experiments.paper_tables import PaperTable, configs, only_for_oracles
from avvp_dist.experiments.recipe import RunConfig, run_folder
from avvp_dist.experiments.result import finished
from avvp_dist.launch.start import launch_run
from avvp_dist.loading.split import check_plan
from avvp_dist.report.paper import summary
from avvp_dist.shards.index import Index, Labels
from avvp_dist.storage import locks
from avvp_dist.text.credentials import redact_setting

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    """A row with its data.

    Attributes:
        labels: segment-level labels as recorded in table.json: their URL, and the fraction of the ground truth that was
            flipped; None for a row on weak labels.
        refined: fingerprint of the labels that replace the weak ones in training; empty for weak labels.
    """

    config: RunConfig
    index: Index
    splits: Mapping[str, Labels]
    labels: Mapping[str, Any] | None = None
    refined: str = ""

    @property
    def data(self) -> dict[str, Any]:
        return {
            "url": self.config.data.url,
            "dataset": self.index.dataset,
            "fingerprint": self.index.fingerprint,
            "synthetic": self.index.synthetic,
            "videos": {name: len(split.ids) for name, split in self.splits.items()},
        }


@dataclass(frozen=True)
class _Run:
    """One row with one seed."""

    row: int
    seed: int
    config: RunConfig


def run(
    name: str, table: PaperTable, *, urls: Sequence[str], output: str, seeds: Sequence[int], settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Run all unfinished runs, seed by seed, so that a complete table of one seed is available first.

    A run's folder is ``<output>/runs/<row>-seed<seed>-<key>``, see `recipe.run_folder`. Stages are shared through
    ``<output>/stages``, or the ``store`` in ``settings``.

    Args:
        name: short name of the table.
        table: the table.
        urls: absolute URLs of packed data sets. A row that requires one (``data.dataset``) uses the first of that name, any
            other row the first of all.
        output: absolute folder or URL for runs, stages and table.json.
        seeds: every row is trained with each of them.
        settings: ``key=value`` overrides for all rows, applied after each row's own.

    Returns:
        the content of ``<output>/table.json``, which is rewritten after every run: the table's facts, ``data`` of the first
        row, ``seeds``, ``changes`` (settings that differ from the rows' own), and ``rows`` with ``published`` figures,
        ``ours`` (see `report.paper.summary`; None for a row without a finished run), ``data`` if different from the first
        row's, and segment-level ``labels`` with their ``url`` and, if derived from the ground truth, ``oracle_noise``.

    Raises:
        ConfigError, DataError: rows, settings or data are invalid; raised before anything runs.
    """
    if read(os.environ).size > 1:
        raise ConfigError(
            "`avvp table` starts its runs itself; for several workers use --set launch=ray --set launch.workers=N"
        )
    settings = [redact_setting(setting) for setting in settings]
    wanted = configs(table, settings)
    storage.configure(wanted[0].storage)
    placed = _with_data(table, wanted, urls)
    with locks.lock_folder(output):
        return _run_all(name, table, placed, output, seeds, settings)


def _run_all(
    name: str, table: PaperTable, placed: Sequence[_Row], output: str, seeds: Sequence[int], settings: Sequence[str]
) -> dict[str, Any]:
    """Run the table, once it is checked and its output folder is locked."""
    rows = _with_labels(table, placed, output)
    facts = _facts(name, table, rows[0], seeds, settings)
    runs = [_run(table, rows, row, seed, output) for seed in seeds for row in range(len(rows))]
    found: dict[int, list[tuple[_Run, Mapping[str, Any]]]] = {row: [] for row in range(len(rows))}
    content: dict[str, Any] = {}
    for number, todo in enumerate(runs, start=1):
        where = f"row {todo.row + 1} of {len(rows)} ({table.rows[todo.row].label}), seed {todo.seed}"
        found[todo.row].append((todo, _result(todo, f"{where}, run {number} of {len(runs)}")))
        content = facts | {"rows": [_row(table, rows, row, found[row]) for row in found]}
        storage.write_text(storage.join(output, "table.json"), json.dumps(content, indent=1))
    return content


def synthetic_data(
    output: str,
    configs: Sequence[RunConfig],
    videos: int | tuple[int, int, int] | None = None,
    annotations: str | None = None,
) -> list[str]:
    """Generate a synthetic data set in shards below ``output`` for each data set that rows require, unless it exists.

    Args:
        output: folder or URL of the table.
        configs: configs of the rows.
        videos: total number of videos, divided among the splits as in the real data; or the numbers of train, val and test.
            None for `synthetic_sets.SPLITS`.
        annotations: folder of the annotation files, to use their labels.

    Returns:
        the folders or URLs of the data sets.

    Raises:
        ConfigError: a row requires a data set that cannot be generated.
        ConfigError, DataError: as `avvp_dist.datasets.synthetic_sets.write`.
    """
    wanted = list(dict.fromkeys(config.data.dataset or synthetic_sets.DEFAULT for config in configs))
    unknown = [name for name in wanted if name not in synthetic_sets.SPLITS]
    if unknown:
        raise ConfigError([f"data.dataset={name}: cannot be generated; give --data URL" for name in unknown])
    folders = []
    for name in wanted:
        counts = synthetic_sets.SPLITS[name] if videos is None else videos
        parts = [str(counts)] if isinstance(counts, int) else [str(count) for count in counts]
        tail = [*(["annotated"] if annotations else []), *([name] if name != synthetic_sets.DEFAULT else [])]
        folders.append(storage.join(output, "data", "-".join(["synthetic", *parts, *tail])))
        LOGGER.info("synthetic data %s", folders[-1])
        synthetic_sets.write(name, folders[-1], videos, annotations)
    return folders


def _with_data(table: PaperTable, rows: Sequence[RunConfig], urls: Sequence[str]) -> list[_Row]:
    """Return each row with its data, checked against the row's requirements."""
    indexes = {url: Index.load(url) for url in urls}
    found, problems = [], []
    for row, config in zip(table.rows, rows, strict=True):
        wanted = config.data.dataset
        url = next((url for url, index in indexes.items() if wanted in (None, index.dataset)), None)
        if url is None:
            given = ", ".join(f"{index.dataset} ({url})" for url, index in indexes.items())
            problems.append(f"row {row.label!r} requires {wanted}; give another --data in addition to {given}")
            continue
        placed = _with(config, url=url)
        index, splits = open_data(placed)
        check_plan(placed.data, index, splits, config.train.batch_size, config.launch.workers)
        found.append(_Row(placed, index, splits))
    if len({index.synthetic for index in indexes.values()}) > 1:
        problems.append("synthetic and real data cannot be mixed in one table")
    if problems:
        raise ConfigError(problems, f"{table.title}: cannot be run on these data")
    return found


def _with_labels(table: PaperTable, rows: Sequence[_Row], output: str) -> list[_Row]:
    """Add segment-level labels to rows that need them: the given ones or, on synthetic data, the noisy ground truth."""
    problems: list[str] = []
    for row, placed in zip(table.rows, rows, strict=True):
        if row.oracle_noise is not None and not placed.config.data.refined and not placed.index.synthetic:
            problems.append(
                f"row {row.label!r} trains on segment-level labels, and {placed.config.data.url} has none: give them with "
                "--set data.refined=FILE, which applies only to such rows (`avvp data labels` makes it from the files of "
                "VALOR's authors), or run a copy of the table without the row"
            )
    if problems:
        raise ConfigError(problems, f"{table.title}: cannot be run")
    found = []
    for row, placed in zip(table.rows, rows, strict=True):
        config, labels = placed.config, None
        if row.oracle_noise is not None:
            flip = None if config.data.refined else row.oracle_noise
            url = config.data.refined or _oracle(placed, row.oracle_noise, output)
            config, labels = _with(config, refined=url), {"url": url, "oracle_noise": flip}
        try:
            refined = read_refined_labels(config, placed.index, placed.splits["train"])
        except UserError as error:
            problems += [f"row {row.label!r}: {problem}" for problem in error.problems]
            continue
        found.append(replace(placed, config=config, labels=labels, refined=refined.fingerprint if refined else ""))
    if problems:
        raise ConfigError(problems, f"{table.title}: invalid labels")
    return found


def _oracle(row: _Row, flip: float, output: str) -> str:
    """Derive segment-level labels of the training videos from the ground truth, with noise, once below ``output``."""
    url = storage.join(output, "labels", f"truth-flip{flip:g}-{row.index.fingerprint[:12]}.npz")
    if not storage.exists(url):
        LOGGER.info("segment-level labels %s: ground truth with %g of the labels flipped", url, flip)
        storage.write_bytes(url, noisy_segment_labels(row.config.data.url or "", flip, seed=0).to_bytes())
    return url


def _with(config: RunConfig, **data: str) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def _run(table: PaperTable, rows: Sequence[_Row], row: int, seed: int, output: str) -> _Run:
    """Return the run of a row and a seed, in its own folder."""
    label, config = table.rows[row].label, rows[row].config.model_copy(update={"seed": seed})
    fingerprint = rows[row].index.fingerprint + rows[row].refined
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    tracking = config.tracking.model_copy(update={"run_name": config.tracking.run_name or f"{label}, seed {seed}"})
    update = {
        "output": storage.join(output, "runs", run_folder(slug, config, fingerprint)),
        "store": config.store or storage.join(output, "stages"),
        "tracking": tracking,
    }
    return _Run(row, seed, config.model_copy(update=update))


def _result(todo: _Run, where: str) -> Mapping[str, Any]:
    """Return the content of the run's result.json, after running it unless it is finished."""
    known = finished(todo.config.output)
    if known:
        LOGGER.info("%s: already finished, %s", where, todo.config.output)
        return known
    LOGGER.info("%s: %s", where, todo.config.output)
    return launch_run(todo.config)


def _facts(name: str, table: PaperTable, first: _Row, seeds: Sequence[int], settings: Sequence[str]) -> dict[str, Any]:
    """Return the content of table.json except its rows; ``first`` is the first row."""
    execution = ("tracking", "launch", "store", "storage", "train.device")
    return {
        "table": name,
        "title": table.title,
        "source": table.source,
        "note": table.note,
        "split": "test",
        "data": first.data,
        "seeds": list(seeds),
        "changes": [
            setting for setting in settings if not setting.startswith(execution) and not only_for_oracles(table, setting)
        ],
    }


def _row(
    table: PaperTable, rows: Sequence[_Row], row: int, found: Sequence[tuple[_Run, Mapping[str, Any]]]
) -> dict[str, Any]:
    content = table.rows[row].model_dump(exclude={"oracle_noise"})
    content["labels"] = rows[row].labels
    content["data"] = None if rows[row].data == rows[0].data else rows[row].data
    ours = summary([result for _, result in found]) if found else None
    return content | {"ours": ours, "runs": [run.config.output for run, _ in found]}
