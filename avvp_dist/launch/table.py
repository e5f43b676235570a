"""Makes a paper's table: runs its rows over seeds, one after another, and puts the scores beside the published ones."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avvp_dist import app, storage
from avvp_dist.data import synthetic
from avvp_dist.data.index import Index, Labels
from avvp_dist.data.source import check_plan
from avvp_dist.errors import ConfigError
from avvp_dist.launch import launch
from avvp_dist.paper_tables import PaperTable, configs
from avvp_dist.recipe import RunConfig
from avvp_dist.report.paper import summary

_log = logging.getLogger(__name__)
_SPLITS = (2500, 649, 1200)  # all of LLP's val and test, a quarter of its train


@dataclass(frozen=True)
class _Run:
    """One row with one seed."""

    row: int
    seed: int
    config: RunConfig


def run(
    name: str, table: PaperTable, *, url: str, output: str, seeds: Sequence[int], settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs what is not finished yet, seed by seed, so that a whole table of one seed is there first.

    A run's folder is ``<output>/runs/<row>-seed<seed>-<key>``; its key hashes config and data, so other settings never meet
    in one folder. Stages are shared through ``<output>/stages``, or the ``store`` that ``settings`` name.

    Args:
        name: short name of the table.
        table: the table.
        url: packed data set.
        output: folder or URL for runs, stages and table.json.
        seeds: every row runs with each of them.
        settings: ``key=value`` for all rows, on top of each row's own.

    Returns:
        the content of ``<output>/table.json``, written anew after every run: the table's facts, ``data``, ``seeds``,
        ``changes`` (settings that depart from the rows'), and ``rows`` with ``published`` figures and ``ours`` (see
        `report.paper.summary`; None for a row without a finished run).

    Raises:
        ConfigError, DataError: rows, settings or data that cannot be used; before anything runs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a table starts its runs itself; for several workers use --set launch=ray --set launch.workers=N")
    url, output = storage.absolute(url), storage.absolute(output)
    rows = [_with_data(config, url) for config in configs(table, settings)]
    index, labels = app.open_data(rows[0])
    for config in rows:
        check_plan(config.data, index, labels, config.train.batch_size, config.launch.workers)
    facts = _facts(name, table, url, index, labels, seeds, settings)
    runs = [_run(table, rows, row, seed, output, index.fingerprint) for seed in seeds for row in range(len(rows))]
    found: dict[int, list[tuple[_Run, Mapping[str, Any]]]] = {row: [] for row in range(len(rows))}
    content: dict[str, Any] = {}
    for number, todo in enumerate(runs, start=1):
        where = f"row {todo.row + 1} of {len(rows)} ({table.rows[todo.row].label}), seed {todo.seed}"
        found[todo.row].append((todo, _result(todo, f"{where}, run {number} of {len(runs)}")))
        content = facts | {"rows": [_row(table, row, found[row]) for row in found]}
        storage.write_text(storage.join(output, "table.json"), json.dumps(content, indent=1))
    return content


def synthetic_data(output: str, videos: int | tuple[int, int, int] | None = None, annotations: str | None = None) -> str:
    """Makes a synthetic LLP in shards below ``output``, unless it is there already.

    Args:
        output: folder or URL of the table.
        videos: in all, shared out over the splits as in LLP; or of train, val and test. None for 2500, 649, 1200.
        annotations: folder of LLP's annotation files, whose labels are then taken.

    Returns:
        where it is.

    Raises:
        ConfigError, DataError: as `avvp_dist.data.synthetic.write`.
    """
    splits = _SPLITS if videos is None else videos
    parts = [str(splits)] if isinstance(splits, int) else [str(count) for count in splits]
    folder = storage.join(output, "data", "-".join(["synthetic", *parts, *(["annotated"] if annotations else [])]))
    _log.info("synthetic data %s", folder)
    synthetic.write(
        folder,
        videos=splits if isinstance(splits, int) else None,
        splits=None if isinstance(splits, int) else splits,
        seed=0,
        annotations=annotations,
        layout="shards",
    )
    return folder


def _with_data(config: RunConfig, url: str) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"url": url})})


def _run(table: PaperTable, rows: Sequence[RunConfig], row: int, seed: int, output: str, fingerprint: str) -> _Run:
    """A row with a seed, in the folder that belongs to both."""
    label, config = table.rows[row].label, rows[row].model_copy(update={"seed": seed})
    what = config.model_dump(mode="json", exclude={"output", "store", "tracking", "launch"})  # those are how it is run
    del what["train"]["device"], what["data"]["workers"], what["data"]["prefetch"]
    key = hashlib.sha256(f"{fingerprint} {json.dumps(what, sort_keys=True)}".encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    named = config.tracking.model_copy(update={"run_name": config.tracking.run_name or f"{label}, seed {seed}"})
    placed = {
        "output": storage.join(output, "runs", f"{slug}-seed{seed}-{key}"),
        "store": config.store or storage.join(output, "stages"),
        "tracking": named,
    }
    return _Run(row, seed, config.model_copy(update=placed).absolute())


def _result(todo: _Run, where: str) -> Mapping[str, Any]:
    """The run's result.json: of a finished run, or of this one."""
    url = storage.join(todo.config.output, "result.json")
    if storage.exists(url):
        _log.info("%s: finished before, %s", where, todo.config.output)
        return json.loads(storage.read_text(url))
    _log.info("%s: %s", where, todo.config.output)
    return launch(todo.config)


def _facts(
    name: str,
    table: PaperTable,
    url: str,
    index: Index,
    labels: Mapping[str, Labels],
    seeds: Sequence[int],
    settings: Sequence[str],
) -> dict[str, Any]:
    """All of table.json that is known before the first run."""
    apart = ("tracking", "launch", "store", "train.device")
    return {
        "table": name,
        "title": table.title,
        "source": table.source,
        "note": table.note,
        "columns": {level: list(metrics) for level, metrics in table.columns.items()},
        "split": "test",
        "data": {
            "url": url,
            "dataset": index.dataset,
            "fingerprint": index.fingerprint,
            "synthetic": index.synthetic,
            "videos": {split: len(of_split.ids) for split, of_split in labels.items()},
        },
        "seeds": list(seeds),
        "changes": [setting for setting in settings if not setting.startswith(apart)],
    }


def _row(table: PaperTable, row: int, found: Sequence[tuple[_Run, Mapping[str, Any]]]) -> dict[str, Any]:
    content = table.rows[row].model_dump()
    content["published"] = table.rows[row].published.model_dump(exclude_none=True)
    ours = summary([result for _, result in found], found[0][0].config.evaluate.protocol) if found else None
    return content | {"ours": ours, "runs": [run.config.output for run, _ in found]}
