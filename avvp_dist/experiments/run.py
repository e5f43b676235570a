"""Composition root: assembles and executes a run from a RunConfig and a Runtime."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from avvp_dist import storage
from avvp_dist.config import parse_yaml
from avvp_dist.dist.collective import gather_lines
from avvp_dist.dist.runtime import Runtime
from avvp_dist.errors import ConfigError, DataError, Preempted
from avvp_dist.experiments.callbacks import RunCallback
from avvp_dist.experiments.earlier_keys import present_keys
from avvp_dist.experiments.inputs import EVALUATED, open_checked_data, open_data, read_refined_labels
from avvp_dist.experiments.recipe import RunConfig, describe_changes, result_identity, stage_config
from avvp_dist.experiments.result import (
    CONFIG,
    RESULT,
    RunResult,
    check_files,
    describe_data,
    finished,
    known_truth,
    provenance,
    statistics_of,
)
from avvp_dist.loading.partners import check_partners
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.loading.split import SplitReader, open_split, order_settings
from avvp_dist.methods.base import CollectStage, Method, TrainStage
from avvp_dist.metrics.per_video import VideoStatistics
from avvp_dist.shards.index import INDEX_FILE, Index, Labels, LeftOut
from avvp_dist.shards.quarantine import exclude, inspect
from avvp_dist.tasks.base import Rows, Task, as_content, describe, evaluate
from avvp_dist.train.evaluate import predict
from avvp_dist.train.stages import WEIGHTS, Identity, PlannedStage, StageRunner, read_weights

LOGGER = logging.getLogger(__name__)
_DATA_FILES = (INDEX_FILE, ".csv", ".h5", ".npy", ".npz", ".parquet", ".pkl", ".tar")  # a run writes none of them at the top
_MAX_LOGGED = 20  # bad videos listed in the log


def run_experiment(config: RunConfig, runtime: Runtime) -> dict[str, Any]:
    """Train all stages, score the best network, and write result.json, the model, figures and a tracked run.

    All ranks must call it; only rank 0 writes.

    Returns:
        the content of result.json.

    Raises:
        ConfigError, DataError: the run is invalid; raised before anything is written.
        TrainingError: the loss is no longer finite.
        Preempted: a stop was requested through the runtime; a checkpoint was written.
    """
    index, labels, method, refined = check_experiment(config, runtime.collective.world_size)
    rank_0 = runtime.collective.rank == 0
    with runtime.hold(config.output) if rank_0 else nullcontext():
        if rank_0:
            _write_config(config)
        return _train(config, index, labels, refined, method, runtime)


def _train(
    config: RunConfig,
    index: Index,
    labels: dict[str, Labels],
    refined: RefinedLabels | None,
    method: Method,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train and score, once the run is checked and its output folder is locked."""
    rank_0 = runtime.collective.rank == 0
    labels, left_out = _exclude_bad_videos(config, index, labels, runtime)
    splits: dict[str, SplitReader] = {
        name: _open_split(config, index, labels[name], runtime) for name in ("train", *EVALUATED)
    }
    if refined is not None:
        splits["train"] = splits["train"].with_refined(refined, index.classes, config.data.refined or "video labels")
    task = config.task.build(index.classes)
    callback = RunCallback(config, provenance(index, config, runtime), rank_0)
    try:
        runner = StageRunner(
            store=stage_store(config),
            identity=_identity(config, index, labels["train"], refined, left_out, runtime.lineage),
            seed=config.seed,
            train=config.train,
            optim=config.optim,
            evaluate=config.evaluate,
            task=task,
            build=lambda: _build_network(config, index),
            splits=splits,
            runtime=runtime,
            callback=callback,
        )
        trained, collected = runner.run(method)
        final = method.final
        model = _build_network(config, index).to(runtime.device)
        model.load_state_dict(trained[final.name].weights)
        rows = {name: _predict(model, splits[name], task, config, runtime, final.cross_modal) for name in EVALUATED}
        outcome = RunResult(
            config=config,
            index=index,
            labels=labels,
            task=task,
            rows=rows,
            trained=trained,
            collected=collected,
            cross_modal=final.cross_modal,
            provenance=provenance(index, config, runtime),
            given=refined if config.data.refined else None,
            left_out=left_out,
        )
        result = outcome.result()
        if rank_0:
            result = outcome.publish(result, callback.tracker)
        callback.finish("FINISHED")
    except BaseException as error:
        # SystemExit: the sweep ends this trial early
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | Preempted)
        callback.finish("KILLED" if stopped else "FAILED")
        raise
    finally:
        for split in splits.values():
            split.close()
    return result


@dataclass(frozen=True)
class Evaluation:
    """Scores of a finished run's model, computed again.

    Attributes:
        task, scores, references: in the form of ``task``, ``scores`` and ``references`` in result.json.
        data: of the data that were scored, in the form of ``data`` in result.json.
        per_video: the statistics per video, from which they follow.
    """

    task: dict[str, Any]
    scores: dict[str, Any]
    references: dict[str, Any]
    data: dict[str, Any]
    per_video: VideoStatistics


def evaluate_experiment(config: RunConfig, runtime: Runtime) -> Evaluation:
    """Score the model in ``config.output`` on the data of ``config.data``.

    Files that are needed only for training (noise ratios, refined labels) need not exist any more.

    Raises:
        DataError: there is no finished run, or the data cannot be read or do not fit the model.
    """
    index, labels = open_data(config)
    url = storage.join(config.output, WEIGHTS)
    if not storage.exists(url):
        raise DataError(f"{config.output}: no model.safetensors; train a run into this folder first")
    recorded = finished(config.output) or {}
    check_files(config.output, recorded, [WEIGHTS])
    model = _build_network(config, index).to(runtime.device)
    try:
        model.load_state_dict(read_weights(url))
    except RuntimeError:
        trained_on = recorded.get("data", {}).get("dataset", "another data set")
        streams = ", ".join(f"{stream.name} ({stream.dim})" for stream in index.streams)
        raise DataError(
            f"{url}: does not fit {config.data.url}: the network {config.model.name} was trained on data set {trained_on} "
            f"with other streams or classes; this is {index.dataset} with streams {streams} and {len(index.classes)} classes"
        ) from None
    cross_modal = _recorded_cross_modal(config)
    if cross_modal is None:
        cross_modal = _build_method(config, index).final.cross_modal
    train = labels["train"].truth
    labels, _ = _exclude_bad_videos(config, index, {name: labels[name] for name in EVALUATED}, runtime)
    task = config.task.build(index.classes)
    found, references = {}, {}
    for name in EVALUATED:
        with closing(_open_split(config, index, labels[name], runtime)) as split:
            rows = _predict(model, split, task, config, runtime, cross_modal)
            truth = known_truth(labels[name])
            found[name], references[name] = evaluate(task, rows, truth), task.references(rows, truth, train)
    return Evaluation(
        describe(task),
        {name: as_content(task, scores) for name, scores in found.items()},
        references,
        describe_data(config, index),
        statistics_of(found, {name: labels[name].ids for name in found}),
    )


def _recorded_cross_modal(config: RunConfig) -> bool | None:
    """Return the forward option that the run was evaluated with; None if an earlier version wrote the result without it."""
    url = storage.join(config.output, "result.json")
    result = json.loads(storage.read_text(url)) if storage.exists(url) else {}
    return result.get("evaluation", {}).get("cross_modal")


def check_experiment(config: RunConfig, world: int) -> tuple[Index, dict[str, Labels], Method, RefinedLabels | None]:
    """Check that ``world`` workers can execute the run, before any video is read.

    Returns:
        index, labels, method, and refined labels of the run.

    Raises:
        ConfigError, DataError: data, method or values that cannot work together.
    """
    index, labels = open_checked_data(config, world)
    method = _build_method(config, index)
    rules = {
        stage.partner_rule for stage in method.stages if isinstance(stage, TrainStage | CollectStage) and stage.partners
    }
    for rule in rules:
        check_partners(labels["train"].weak, rule)
    return index, labels, method, read_refined_labels(config, index, labels["train"])


def planned_stages(config: RunConfig, lineage: str = "") -> list[PlannedStage]:
    """Return the stages of a run with their cache keys, assuming that no video is bad.

    Raises:
        ConfigError, DataError: the run is invalid.
    """
    index, labels, method, refined = check_experiment(config, config.launch.workers)
    return _identity(config, index, labels["train"], refined, (), lineage).plan(method)


def stage_store(config: RunConfig) -> str:
    """Return the folder or URL of the run's stage artifacts."""
    return config.store or storage.join(config.output, "stages")


def _identity(
    config: RunConfig,
    index: Index,
    train: Labels,
    refined: RefinedLabels | None,
    left_out: Sequence[LeftOut],
    lineage: str,
) -> Identity:
    fingerprint = index.fingerprint + "".join(f" -{bad.id}" for bad in left_out if bad.split != "test")
    return Identity(
        data_fingerprint=fingerprint + (refined.fingerprint if refined else ""),
        config=stage_config(config),
        order=order_settings(config.data, index, train),
        lineage=lineage,
    )


def _build_method(config: RunConfig, index: Index) -> Method:
    return config.method.build(index.classes, index.segments, config.task.tracks)


def _exclude_bad_videos(
    config: RunConfig, index: Index, labels: Mapping[str, Labels], runtime: Runtime
) -> tuple[dict[str, Labels], tuple[LeftOut, ...]]:
    """Return the labels without bad videos, and the bad videos. Each rank inspects its share of the shards."""
    labels = {name: labels[name] for name in labels if name in ("train", *EVALUATED)}
    if config.data.on_bad == "fail":
        return labels, ()
    collective = runtime.collective
    bad_here = inspect(config.data.store(), index, labels, collective.rank, collective.world_size)
    lines = gather_lines(collective, [json.dumps([bad.id, bad.split, bad.reason]) for bad in bad_here], runtime.device)
    left_out = tuple(LeftOut(*json.loads(line)) for line in sorted(lines))
    videos = sum(len(of_split.ids) for of_split in labels.values())
    LOGGER.log(
        logging.WARNING if left_out else logging.INFO,
        "data.on_bad=skip: %d of %d videos are bad and were left out%s",
        len(left_out),
        videos,
        "".join(f"\n  - {bad.split} {bad.id}: {bad.reason}" for bad in left_out[:_MAX_LOGGED])
        + (f"\n  ... and {len(left_out) - _MAX_LOGGED} more, see result.json" if len(left_out) > _MAX_LOGGED else ""),
    )
    return {name: exclude(of_split, left_out) for name, of_split in labels.items()}, left_out


def _open_split(config: RunConfig, index: Index, labels: Labels, runtime: Runtime) -> SplitReader:
    dtype = torch.bfloat16 if config.train.precision == "bfloat16" else torch.float32
    return open_split(config.data, index, labels, runtime.device, dtype)


def _build_network(config: RunConfig, index: Index) -> nn.Module:
    return config.model.build(index.shapes, len(index.classes))


def _predict(
    model: nn.Module, split: SplitReader, task: Task, config: RunConfig, runtime: Runtime, cross_modal: bool
) -> Rows:
    return predict(
        model,
        split,
        task,
        runtime,
        cross_modal=cross_modal,
        batch_size=config.evaluate.batch_size,
        bfloat16=config.train.precision == "bfloat16",
    )


def _write_config(config: RunConfig) -> None:
    """Write config.yaml, unless the folder belongs to another run.

    If there is a result.json, config.yaml is kept until the next result is written.

    Raises:
        ConfigError: the folder belongs to another run (the message lists the differing keys), its config is damaged, or it
            contains data.
    """
    storage.remove_abandoned(config.output)
    url = storage.join(config.output, CONFIG)
    if storage.exists(url):
        try:
            existing = present_keys(parse_yaml(storage.read_text(url), url))
        except (ConfigError, DataError) as error:
            raise ConfigError(
                f"{url}: damaged ({error}); restore it, choose another output, or delete this folder"
            ) from None
        changes = describe_changes(result_identity(existing), result_identity(config.model_dump(mode="json")))
        if changes:
            raise ConfigError(changes, f"output={config.output} holds another run; choose another output or delete it")
        if storage.exists(storage.join(config.output, RESULT)):
            return
    elif data_files := [name for name in storage.names(config.output) if name.endswith(_DATA_FILES)]:
        raise ConfigError(f"output={config.output} contains data ({', '.join(data_files[:3])}); choose another folder")
    storage.write_text(url, config.to_yaml())
