"""Composition root: a RunConfig and a Runtime in, a finished run out."""

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
from avvp_dist.experiments.recipe import RunConfig, describe_changes, result_identity, stage_config
from avvp_dist.experiments.result import CONFIG, RESULT, RunResult, check_files, finished, provenance
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.loading.split import SplitReader, check_plan, open_split, order_settings
from avvp_dist.methods import METHODS
from avvp_dist.methods.base import Method
from avvp_dist.metrics.parsing import Probabilities
from avvp_dist.metrics.per_video import PerVideo
from avvp_dist.shards.index import Index, Labels, LeftOut, read_labels
from avvp_dist.shards.quarantine import inspect, without
from avvp_dist.train.evaluate import all_scores, predict, scores_of_videos
from avvp_dist.train.stages import WEIGHTS, Identity, PlannedStage, StageRunner, read_weights

LOGGER = logging.getLogger(__name__)
EVALUATED = ("val", "test")
_MAX_LOGGED = 20  # bad videos the log names


def run_experiment(config: RunConfig, runtime: Runtime) -> dict[str, Any]:
    """Trains all stages, scores the best network, leaves result.json, model, pictures and a tracked run.

    Every rank calls it; only rank 0 writes.

    Returns:
        the content of result.json.

    Raises:
        ConfigError, DataError: before anything is written.
        TrainingError: the loss stopped being finite.
        Preempted: the runtime was asked to stop; a checkpoint is left.
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
    """What `run` does once everything is checked and the output is this run's."""
    rank_0 = runtime.collective.rank == 0
    labels, left_out = _exclude_bad_videos(config, index, labels, runtime)
    splits: dict[str, SplitReader] = {
        name: _open_split(config, index, labels[name], runtime) for name in ("train", *EVALUATED)
    }
    if refined is not None:
        splits["train"] = splits["train"].with_refined(refined, index.classes, config.data.refined or "")
    callback = RunCallback(config, provenance(index, config, runtime), rank_0)
    try:
        runner = StageRunner(
            store=stage_store(config),
            identity=_identity(config, index, labels["train"], refined, left_out, runtime.lineage),
            seed=config.seed,
            train=config.train,
            optim=config.optim,
            evaluate=config.evaluate,
            build=lambda: _build_network(config, index),
            splits=splits,
            runtime=runtime,
            callback=callback,
        )
        trained, collected = runner.run(method)
        final = list(method.stages())[-1]
        model = _build_network(config, index).to(runtime.device)
        model.load_state_dict(trained[final.name].weights)
        probabilities = {name: _predict(model, splits[name], config, runtime, final.cross_modal) for name in EVALUATED}
        outcome = RunResult(
            config=config,
            index=index,
            labels=labels,
            probabilities=probabilities,
            trained=trained,
            collected=collected,
            cross_modal=final.cross_modal,
            provenance=provenance(index, config, runtime),
            given=refined,
            left_out=left_out,
        )
        result = outcome.result()
        if rank_0:
            result = outcome.publish(result, callback.tracker)
        callback.finish("FINISHED")
    except BaseException as error:
        # a trial that its sweep ends early leaves by SystemExit
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | Preempted)
        callback.finish("KILLED" if stopped else "FAILED")
        raise
    finally:
        for split in splits.values():
            split.close()
    return result


@dataclass(frozen=True)
class Evaluation:
    """A finished run's model, scored again.

    Attributes:
        scores: the ``scores`` of result.json.
        per_video: what they are means of.
    """

    scores: dict[str, Any]
    per_video: PerVideo


def evaluate_experiment(config: RunConfig, runtime: Runtime) -> Evaluation:
    """Scores the model in ``config.output`` on the data of ``config.data``.

    Files that only its training read (noise ratios, refined labels) may be gone.

    Raises:
        DataError: no finished run there, or data it cannot read.
    """
    index, labels = open_data(config)
    url = storage.join(config.output, WEIGHTS)
    if not storage.exists(url):
        raise DataError(f"{config.output}: no model.safetensors; train a run into this folder first")
    check_files(config.output, finished(config.output) or {}, [WEIGHTS])
    model = _build_network(config, index).to(runtime.device)
    try:
        model.load_state_dict(read_weights(url))
    except RuntimeError as error:
        raise DataError(f"{url}: does not fit this data or network: {' '.join(str(error).split())[:200]}") from None
    cross_modal = _recorded_cross_modal(config)
    if cross_modal is None:
        cross_modal = _build_method(config, index).stages()[-1].cross_modal
    labels, _ = _exclude_bad_videos(config, index, {name: labels[name] for name in EVALUATED}, runtime)
    found = {}
    for name in EVALUATED:
        with closing(_open_split(config, index, labels[name], runtime)) as split:
            found[name] = _predict(model, split, config, runtime, cross_modal)
    scores = {name: all_scores(found[name], labels[name], config.evaluate, index.classes) for name in EVALUATED}
    return Evaluation(scores, scores_of_videos(found, labels, config.evaluate, index.classes))


def _recorded_cross_modal(config: RunConfig) -> bool | None:
    """Forward option with which the run's network was evaluated; None where a version wrote its result that did not say."""
    url = storage.join(config.output, "result.json")
    result = json.loads(storage.read_text(url)) if storage.exists(url) else {}
    return result.get("evaluation", {}).get("cross_modal")


def check_experiment(config: RunConfig, world: int) -> tuple[Index, dict[str, Labels], Method, RefinedLabels | None]:
    """Refuses what could not be run by ``world`` workers, before any video is read; gives what it opened for that.

    Raises:
        ConfigError, DataError: data, method or numbers that cannot work together.
    """
    index, labels = open_data(config)
    check_plan(config.data, index, labels, config.train.batch_size, world)
    method = _build_method(config, index)
    method.stages()
    return index, labels, method, read_refined_labels(config, index, labels["train"])


def open_data(config: RunConfig) -> tuple[Index, dict[str, Labels]]:
    """Index and labels of the run's data, checked for what training and scoring need.

    Raises:
        ConfigError: no data named.
        DataError: it is not a packed data set, not the one asked for, or lacks a split or its truth, or a stream that the
            network reads.
    """
    url = config.data.url
    if not url:
        raise ConfigError("data: missing; give data=URL of a packed data set (`avvp data pack`, `avvp data synth`)")
    index = Index.load(url)
    labels = read_labels(url, index)
    problems = [f"split {name}: missing" for name in ("train", *EVALUATED) if name not in labels]
    problems += [
        f"split {name}: no segment annotations to score against"
        for name in EVALUATED
        if name in labels and (labels[name].audio is None or labels[name].visual is None)
    ]
    if config.data.dataset not in (None, index.dataset):
        problems.append(f"data set {index.dataset}: recipe {config.recipe} asks for {config.data.dataset} (data.dataset)")
    held = [stream.name for stream in index.streams]
    problems += [
        f"stream {name}: missing, network {config.model.name} reads it; the data set has {', '.join(held)}"
        for name in config.model.streams
        if name not in held
    ]
    if problems:
        raise DataError(problems, f"{url}: cannot train on it")
    return index, labels


def read_refined_labels(config: RunConfig, index: Index, train: Labels) -> RefinedLabels | None:
    """The run's refined labels, checked against its data and its method.

    Raises:
        ConfigError: the method needs labels of segments and has none.
        DataError: there is no such file, or it does not fit the data.
    """
    url, wanted = config.data.refined, _build_method(config, index).segment_labels
    needed = f"method {config.method.name} trains on labels of segments"
    how = "make such a file with `avvp data labels` or `avvp data noisy-labels` and give it as data.refined=FILE"
    if not url:
        if wanted:
            raise ConfigError(f"data.refined: missing; {needed}; {how}")
        return None
    refined = RefinedLabels.load(url)
    if wanted and not refined.of_segments:
        raise ConfigError(f"data.refined: {needed}, those in {url} are of whole videos or of windows; {how}")
    refined.aligned(train.ids, index.classes, index.segments, url)  # refuses what does not fit before anything is written
    return refined


def planned_stages(config: RunConfig, lineage: str = "") -> list[PlannedStage]:
    """The stages that `run` would go through, with their keys in ``store(config)``, if no video is bad.

    Raises:
        ConfigError, DataError: the run could not start.
    """
    index, labels, method, refined = check_experiment(config, config.launch.workers)
    return _identity(config, index, labels["train"], refined, (), lineage).plan(method)


def stage_store(config: RunConfig) -> str:
    """Folder or URL of the run's stage artifacts."""
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
    return METHODS[config.method.name](config.method, index.classes, index.segments)


def _exclude_bad_videos(
    config: RunConfig, index: Index, labels: Mapping[str, Labels], runtime: Runtime
) -> tuple[dict[str, Labels], tuple[LeftOut, ...]]:
    """The labels without bad videos, and those; all ranks look for them together, each at its share of the shards."""
    labels = {name: labels[name] for name in labels if name in ("train", *EVALUATED)}
    if config.data.on_bad == "fail":
        return labels, ()
    collective = runtime.collective
    mine = inspect(config.data.store(), index, labels, collective.rank, collective.world_size)
    lines = gather_lines(collective, [json.dumps([bad.id, bad.split, bad.reason]) for bad in mine], runtime.device)
    left_out = tuple(LeftOut(*json.loads(line)) for line in sorted(lines))
    videos = sum(len(of_split.ids) for of_split in labels.values())
    LOGGER.log(
        logging.WARNING if left_out else logging.INFO,
        "data.on_bad=skip: %d of %d videos are bad and left out%s",
        len(left_out),
        videos,
        "".join(f"\n  - {bad.split} {bad.id}: {bad.reason}" for bad in left_out[:_MAX_LOGGED])
        + (f"\n  ... and {len(left_out) - _MAX_LOGGED} more, see result.json" if len(left_out) > _MAX_LOGGED else ""),
    )
    return {name: without(of_split, left_out) for name, of_split in labels.items()}, left_out


def _open_split(config: RunConfig, index: Index, labels: Labels, runtime: Runtime) -> SplitReader:
    dtype = torch.bfloat16 if config.train.precision == "bfloat16" else torch.float32
    return open_split(config.data, index, labels, runtime.device, dtype)


def _build_network(config: RunConfig, index: Index) -> nn.Module:
    return config.model.build({stream.name: stream.dim for stream in index.streams}, len(index.classes))


def _predict(model: nn.Module, split: SplitReader, config: RunConfig, runtime: Runtime, cross_modal: bool) -> Probabilities:
    return predict(
        model,
        split,
        runtime,
        cross_modal=cross_modal,
        batch_size=config.evaluate.batch_size,
        bfloat16=config.train.precision == "bfloat16",
    )


def _write_config(config: RunConfig) -> None:
    """Writes config.yaml, unless the folder belongs to another run; beside a result.json, it is written with the next one.

    Raises:
        ConfigError: names the keys in which that run differs, or its config cannot be read.
    """
    storage.sweep(config.output)
    url = storage.join(config.output, CONFIG)
    if storage.exists(url):
        try:
            there = parse_yaml(storage.read_text(url), url)
        except (ConfigError, DataError) as error:
            raise ConfigError(f"{url}: damaged ({error}); restore it, choose another output, or delete this one") from None
        changed = describe_changes(result_identity(there), result_identity(config.model_dump(mode="json")))
        if changed:
            raise ConfigError(changed, f"output={config.output} holds another run; choose another output or delete it")
        if storage.exists(storage.join(config.output, RESULT)):
            return
    storage.write_text(url, config.to_yaml())
