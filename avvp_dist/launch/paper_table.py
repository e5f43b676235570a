"""Makes a paper's table: runs its rows over seeds, one after another, and puts the scores beside the published ones."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from avvp_dist import storage
from avvp_dist.datasets import synthetic
from avvp_dist.datasets.catalog import FEATURE_SETS, LLP
from avvp_dist.datasets.external import noisy_labels
from avvp_dist.dist.world import read
from avvp_dist.errors import ConfigError, UserError
from avvp_dist.experiments.paper_tables import PaperTable, configs, only_for_oracles
from avvp_dist.experiments.recipe import RunConfig, run_folder
from avvp_dist.experiments.result import finished
from avvp_dist.experiments.run import open_data, read_refined_labels
from avvp_dist.launch.start import launch_run
from avvp_dist.loading.split import check_plan
from avvp_dist.report.paper import summary
from avvp_dist.shards.index import Index, Labels
from avvp_dist.storage import locks
from avvp_dist.text.credentials import without_secrets

_log = logging.getLogger(__name__)
_SPLITS = (2500, 649, 1200)  # all of LLP's val and test, a quarter of its train


@dataclass(frozen=True)
class _Row:
    """A row with the data that it runs on.

    Attributes:
        labels: of segments, as table.json tells of them: where they are, and the share of the truth turned over to make
            them; None for a row on weak labels.
        refined: fingerprint of the labels that it is trained on in place of the weak ones.
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
            "videos": {split: len(of_split.ids) for split, of_split in self.splits.items()},
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
    """Runs what is not finished yet, seed by seed, so that a whole table of one seed is there first.

    A run's folder is ``<output>/runs/<row>-seed<seed>-<key>``; its key hashes config and data, so other settings never meet
    in one folder. Stages are shared through ``<output>/stages``, or the ``store`` that ``settings`` name.

    Args:
        name: short name of the table.
        table: the table.
        urls: packed data sets, absolute. A row that asks for one (``data.dataset``) takes the first of that name, any other
            row the first of all.
        output: folder or URL for runs, stages and table.json, absolute.
        seeds: every row runs with each of them.
        settings: ``key=value`` for all rows, on top of each row's own.

    Returns:
        the content of ``<output>/table.json``, written anew after every run: the table's facts, ``data`` of the first row,
        ``seeds``, ``changes`` (settings that depart from the rows'), and ``rows`` with ``published`` figures, ``ours`` (see
        `report.paper.summary`; None for a row without a finished run), ``data`` where they are others, and ``labels`` of
        segments with their ``url`` and, where they were made of the truth, ``oracle_noise``.

    Raises:
        ConfigError, DataError: rows, settings or data that cannot be used; before anything runs.
    """
    if read(os.environ).size > 1:
        raise ConfigError("a table starts its runs itself; for several workers use --set launch=ray --set launch.workers=N")
    settings = [without_secrets(setting) for setting in settings]
    wanted = configs(table, settings)
    storage.configure(wanted[0].storage)
    placed = _with_data(table, wanted, urls)
    with locks.hold_folder(output):
        return _run_all(name, table, placed, output, seeds, settings)


def _run_all(
    name: str, table: PaperTable, placed: Sequence[_Row], output: str, seeds: Sequence[int], settings: Sequence[str]
) -> dict[str, Any]:
    """What `run` does once everything is checked and the output is this table's."""
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
    """Makes a synthetic LLP in shards below ``output`` for each feature set that rows ask for, unless it is there already.

    Args:
        output: folder or URL of the table.
        configs: of the rows.
        videos: in all, shared out over the splits as in LLP; or of train, val and test. None for 2500, 649, 1200.
        annotations: folder of LLP's annotation files, whose labels are then taken.

    Returns:
        where they are.

    Raises:
        ConfigError: a row asks for a data set that cannot be made up.
        ConfigError, DataError: as `avvp_dist.datasets.synthetic.write`.
    """
    known = {dataset.name: streams for streams, dataset in FEATURE_SETS.items()}
    wanted = list(dict.fromkeys(config.data.dataset or LLP.name for config in configs))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError([f"data.dataset={name}: no such synthetic data; give --data URL" for name in unknown])
    splits = _SPLITS if videos is None else videos
    parts = [str(splits)] if isinstance(splits, int) else [str(count) for count in splits]
    folders = []
    for name in wanted:
        tail = [*(["annotated"] if annotations else []), *([known[name]] if name != LLP.name else [])]
        folders.append(storage.join(output, "data", "-".join(["synthetic", *parts, *tail])))
        _log.info("synthetic data %s", folders[-1])
        synthetic.write(
            folders[-1],
            videos=splits if isinstance(splits, int) else None,
            splits=None if isinstance(splits, int) else splits,
            seed=0,
            annotations=annotations,
            layout="shards",
            streams=known[name],
        )
    return folders


def _with_data(table: PaperTable, rows: Sequence[RunConfig], urls: Sequence[str]) -> list[_Row]:
    """Each row with its data, checked for what the row needs."""
    held = {url: Index.load(url) for url in urls}
    found, problems = [], []
    for row, config in zip(table.rows, rows, strict=True):
        wanted = config.data.dataset
        url = next((url for url, index in held.items() if wanted in (None, index.dataset)), None)
        if url is None:
            given = ", ".join(f"{index.dataset} ({url})" for url, index in held.items())
            problems.append(f"row {row.label!r} runs on {wanted}; give one more --data, besides {given}")
            continue
        placed = _with(config, url=url)
        index, splits = open_data(placed)
        check_plan(placed.data, index, splits, config.train.batch_size, config.launch.workers)
        found.append(_Row(placed, index, splits))
    if len({index.synthetic for index in held.values()}) > 1:
        problems.append("synthetic and real data do not go into one table")
    if problems:
        raise ConfigError(problems, f"{table.title}: cannot be run on these data")
    return found


def _with_labels(table: PaperTable, rows: Sequence[_Row], output: str) -> list[_Row]:
    """The rows with the labels of segments that some ask for: those given or, on made-up data, those made of the truth."""
    problems: list[str] = []
    for row, each in zip(table.rows, rows, strict=True):
        if row.oracle_noise is not None and not each.config.data.refined and not each.index.synthetic:
            problems.append(
                f"row {row.label!r} trains on labels of segments, and {each.config.data.url} has none: give them with "
                "--set data.refined=FILE, which goes to such rows only (`avvp data labels` makes it of what VALOR's authors "
                "publish), or run a copy of the table without the row"
            )
    if problems:
        raise ConfigError(problems, f"{table.title}: cannot be run")
    found = []
    for row, each in zip(table.rows, rows, strict=True):
        config, labels = each.config, None
        if row.oracle_noise is not None:
            flip = None if config.data.refined else row.oracle_noise
            url = config.data.refined or _oracle(each, row.oracle_noise, output)
            config, labels = _with(config, refined=url), {"url": url, "oracle_noise": flip}
        try:
            refined = read_refined_labels(config, each.index, each.splits["train"])
        except UserError as error:
            problems += [f"row {row.label!r}: {problem}" for problem in error.problems]
            continue
        found.append(replace(each, config=config, labels=labels, refined=refined.fingerprint if refined else ""))
    if problems:
        raise ConfigError(problems, f"{table.title}: labels that cannot be used")
    return found


def _oracle(row: _Row, flip: float, output: str) -> str:
    """Labels of segments of the training videos: the truth with noise, made once below ``output``."""
    url = storage.join(output, "labels", f"truth-flip{flip:g}-{row.index.fingerprint[:12]}.npz")
    if not storage.exists(url):
        _log.info("labels of segments %s: the truth, %g turned over", url, flip)
        storage.write_bytes(url, noisy_labels(row.config.data.url or "", flip, seed=0).to_bytes())
    return url


def _with(config: RunConfig, **data: str) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def _run(table: PaperTable, rows: Sequence[_Row], row: int, seed: int, output: str) -> _Run:
    """A row with a seed, in the folder that belongs to both."""
    label, config = table.rows[row].label, rows[row].config.model_copy(update={"seed": seed})
    fingerprint = rows[row].index.fingerprint + rows[row].refined
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    named = config.tracking.model_copy(update={"run_name": config.tracking.run_name or f"{label}, seed {seed}"})
    placed = {
        "output": storage.join(output, "runs", run_folder(slug, config, fingerprint)),
        "store": config.store or storage.join(output, "stages"),
        "tracking": named,
    }
    return _Run(row, seed, config.model_copy(update=placed))


def _result(todo: _Run, where: str) -> Mapping[str, Any]:
    """The run's result.json: of a finished run, or of this one."""
    known = finished(todo.config.output)
    if known:
        _log.info("%s: finished before, %s", where, todo.config.output)
        return known
    _log.info("%s: %s", where, todo.config.output)
    return launch_run(todo.config)


def _facts(name: str, table: PaperTable, first: _Row, seeds: Sequence[int], settings: Sequence[str]) -> dict[str, Any]:
    """All of table.json but its rows; ``first`` of them."""
    apart = ("tracking", "launch", "store", "storage", "train.device")
    return {
        "table": name,
        "title": table.title,
        "source": table.source,
        "note": table.note,
        "columns": {level: list(metrics) for level, metrics in table.columns.items()},
        "split": "test",
        "data": first.data,
        "seeds": list(seeds),
        "changes": [
            setting for setting in settings if not setting.startswith(apart) and not only_for_oracles(table, setting)
        ],
    }


def _row(
    table: PaperTable, rows: Sequence[_Row], row: int, found: Sequence[tuple[_Run, Mapping[str, Any]]]
) -> dict[str, Any]:
    content = table.rows[row].model_dump(exclude={"oracle_noise"})
    content["labels"] = rows[row].labels
    content["data"] = None if rows[row].data == rows[0].data else rows[row].data
    content["published"] = table.rows[row].published.model_dump(exclude_none=True)
    ours = summary([result for _, result in found], found[0][0].config.evaluate.protocol) if found else None
    return content | {"ours": ours, "runs": [run.config.output for run, _ in found]}
