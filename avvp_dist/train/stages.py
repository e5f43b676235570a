"""Runs a method's stages in order; the artifact of each finished stage is reused by later runs.

An artifact is a folder ``<stage>-<key>`` of the artifact store. The cache key is a hash of everything the stage depends on:
the data, the config except for keys that cannot affect the stage, and the keys of the stages it needs. ``stage.json`` is
written last; without it the stage is not finished. It contains the checksums of the other files and its own; a stage whose
artifact is damaged is run again. A train stage writes ``model.safetensors``, a collect stage ``<stage>.json`` (noise ratios)
or ``refined.npz``; other runs can use both.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from avvp_dist import storage
from avvp_dist.dist.runtime import Runtime
from avvp_dist.errors import DataError, StorageError, TrainingError
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.loading.split import SplitReader
from avvp_dist.methods.base import CollectStage, Method, Stage, TrainStage
from avvp_dist.storage import integrity
from avvp_dist.tasks.base import Task
from avvp_dist.train import checkpoint
from avvp_dist.train.evaluate import EvaluateConfig
from avvp_dist.train.loop import Callback, StageJob, StageResult, StageTrainer, TrainConfig
from avvp_dist.train.optim import OptimConfig

LOGGER = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"
_STATE, _TEACHER = "state.safetensors", "teacher.safetensors"
_REFINED, _REMOVED = "refined.npz", "removed.npz"
_DONE = "stage.json"
_VERSION = 2  # part of the cache key; incremented when a code change alters the result of a stage


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its cache key and everything that the key is computed from."""

    stage: Stage
    key: str
    depends: Mapping[str, Any]

    def folder(self, store: str) -> str:
        """Return the folder of its artifact."""
        return storage.join(store, f"{self.stage.name}-{self.key}")

    def finished(self, store: str) -> bool:
        """Return whether its artifact is stored."""
        return storage.exists(storage.join(self.folder(store), _DONE))


@dataclass(frozen=True)
class Identity:
    """Everything that the stages of a run depend on.

    Attributes:
        data_fingerprint: of the packed data.
        config: of the run, dumped, without what no artifact depends on, see `recipe.stage_config`.
        order: what the order of the training split depends on, see `loading.split.order_settings`.
        lineage: see `dist.runtime.Runtime`.
    """

    data_fingerprint: str
    config: Mapping[str, Any]
    order: Mapping[str, Any] = field(default_factory=dict)
    lineage: str = ""

    def plan(self, method: Method) -> list[PlannedStage]:
        """Return the method's stages with their cache keys."""
        planned: list[PlannedStage] = []
        keys: dict[str, str] = {}
        for stage in method.stages:
            depends = self._depends(stage, keys)
            if self.lineage and stage is method.final:
                depends["lineage"] = self.lineage
            keys[stage.name] = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
            planned.append(PlannedStage(stage, keys[stage.name], depends))
        return planned

    def _depends(self, stage: Stage, keys: Mapping[str, str]) -> dict[str, Any]:
        config = dict(self.config)
        config["method"] = {key: value for key, value in config["method"].items() if key not in stage.irrelevant}
        if isinstance(stage, TrainStage) and stage.epochs is not None:
            config["train"] = {**config["train"], "epochs": stage.epochs}
        return {
            "version": _VERSION,
            "stage": stage.name,
            "needs": {name: keys[name] for name in stage.needs},
            "fingerprint": self.data_fingerprint,
            "config": config,
            "given": dict(stage.external_inputs),
            "order": dict(self.order),
        }


@dataclass(frozen=True)
class StageRunner:
    """Runs the stages of one run.

    Attributes:
        store: folder or URL of the artifact store.
        identity: everything that the artifacts depend on.
        build: returns the network with fresh weights.
    """

    store: str
    identity: Identity
    seed: int
    train: TrainConfig
    optim: OptimConfig
    evaluate: EvaluateConfig
    task: Task
    build: Callable[[], nn.Module]
    splits: Mapping[str, SplitReader]
    runtime: Runtime
    callback: Callback

    def run(self, method: Method) -> tuple[dict[str, StageResult], dict[str, Any]]:
        """Run all stages, or read their artifacts from the store.

        Returns:
            the results of the train stages and the artifacts of the collect stages, by stage name.
        """
        trained: dict[str, StageResult] = {}
        collected: dict[str, Any] = {}
        for planned in self.identity.plan(method):
            artifact = self._read(planned, warn=False)
            if artifact is None:
                artifact = self._make(planned, trained, collected)
            elif self.runtime.collective.rank == 0:
                self.callback.stage_reused(planned.stage.name, planned.key)
            if isinstance(artifact, StageResult):
                trained[planned.stage.name] = artifact
            else:
                collected[planned.stage.name] = artifact
        return trained, collected

    def _make(self, planned: PlannedStage, trained: Mapping[str, StageResult], collected: Mapping[str, Any]) -> Any:
        """Run one stage under a lease of its key; a run that waited for the lease finds the artifact of the other run."""
        stage = planned.stage
        rank_0 = self.runtime.collective.rank == 0
        with self.runtime.lease(self.store, planned.key) if rank_0 else nullcontext():
            self._barrier()  # rank 0 may have waited for another run, which finished the stage
            artifact = self._read(planned)
            if artifact is not None:
                return artifact
            if isinstance(stage, TrainStage):
                self._train(planned, stage, collected)
            else:
                assert isinstance(stage, CollectStage)
                self._collect(planned, stage, trained[stage.source])
        artifact = self._read(planned)
        if artifact is None:
            raise StorageError(
                f"{planned.folder(self.store)}: the artifact that was just written cannot be read; check the disk"
            )
        return artifact

    def _read(self, planned: PlannedStage, warn: bool = True) -> Any:
        """Return the verified artifact, or None if the stage has to run; the same on all ranks.

        If one rank cannot read it, for example because another run is writing it, the result is None on all ranks.
        """
        artifact = None
        try:
            artifact = self._artifact(planned)
        except DataError as error:
            if warn:
                LOGGER.warning("%s; stage %s is run again", error, planned.stage.name)
        collective = self.runtime.collective
        available = torch.tensor([float(artifact is not None)], device=self.runtime.device)
        on_all_ranks = collective.all_reduce_sum(available).item() == collective.world_size
        return artifact if on_all_ranks else None

    def _artifact(self, planned: PlannedStage) -> Any:
        """Read the artifact of a stage; None if the stage is not finished.

        Raises:
            DataError: it is damaged; names the file.
        """
        folder = planned.folder(self.store)
        if not planned.finished(self.store):
            return None
        if not isinstance(planned.stage, TrainStage):
            return read_collected(folder, planned.stage.name)
        trained = read_trained(folder)
        problem = checkpoint.weights_mismatch(trained.weights, self._blank)
        if problem:
            raise DataError(f"{storage.join(folder, WEIGHTS)}: {problem}")
        return trained

    @functools.cached_property
    def _blank(self) -> dict[str, Tensor]:
        """Weights of a fresh network, for their names and shapes only."""
        with torch.random.fork_rng(devices=[]):
            return self.build().state_dict()

    def _train(self, planned: PlannedStage, stage: TrainStage, collected: Mapping[str, Any]) -> None:
        stage.start(collected, self.runtime.device)
        job = StageJob(
            stage=stage,
            key=planned.key,
            seed=self.seed,
            build=self.build,
            train=self.train if stage.epochs is None else self.train.model_copy(update={"epochs": stage.epochs}),
            optim=self.optim,
            evaluate=self.evaluate,
            task=self.task,
            train_split=self._train_split(stage, collected),
            val_split=self.splits["val"],
        )
        trained = StageTrainer(job, self.runtime, self.callback).run()
        problem = checkpoint.not_finite(trained.weights)
        if problem:  # the same on all ranks
            raise TrainingError(f"stage {stage.name}: {problem}; a smaller optim.lr may help")
        if self.runtime.collective.rank == 0:
            _write_trained(planned.folder(self.store), planned.depends, trained)
        self._barrier()
        self.runtime.clear_checkpoints()

    def _train_split(self, stage: TrainStage, collected: Mapping[str, Any]) -> SplitReader:
        split = self.splits["train"]
        if stage.labels_from is None:
            return split
        labels: RefinedLabels = collected[stage.labels_from]
        return split.with_refined(labels, labels.classes, f"stage {stage.labels_from}")

    def _collect(self, planned: PlannedStage, stage: CollectStage, source: StageResult) -> None:
        collective, split = self.runtime.collective, self.splits["train"]
        if collective.rank == 0:
            self.callback.stage_started(stage.name, 1, None)
        model = self.build().to(self.runtime.device).eval()
        model.load_state_dict(source.teacher if stage.use_teacher and source.teacher else source.weights)
        stage.start(source.state, self.runtime.device)
        bfloat16 = self.train.precision == "bfloat16"
        batches = split.iter_all(
            self.evaluate.batch_size,
            collective.rank,
            collective.world_size,
            stage.partners,
            stage.partner_seed,
            stage.partner_rule,
        )
        autocast = torch.autocast(self.runtime.device.type, torch.bfloat16, enabled=bfloat16)
        with closing(batches), torch.inference_mode(), autocast:
            for batch in batches:
                stage.collect([model(part, cross_modal=stage.cross_modal) for part in stage.inputs(batch)], batch)
            artifact = stage.finish(collective, split.labels.ids)
        if collective.rank == 0:
            _write_collected(planned.folder(self.store), planned.depends, artifact)
        self._barrier()

    def _barrier(self) -> None:
        """Wait for rank 0, which writes an artifact that the others read next, or waits for a lease."""
        self.runtime.collective.all_reduce_sum(torch.zeros(1, device=self.runtime.device))


def read_weights(url: str) -> dict[str, Tensor]:
    """Read the weights in a safetensors file.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: it is damaged, or contains values that are not finite.
    """
    return _weights(storage.read_bytes(url), url)


def weights_bytes(weights: Mapping[str, Tensor]) -> bytes:
    """Serialize weights as a safetensors file."""
    return safetensors.torch.save({name: value.contiguous() for name, value in weights.items()})


def _weights(content: bytes, url: str) -> dict[str, Tensor]:
    try:
        weights = safetensors.torch.load(content)
    except Exception as error:  # a damaged header can raise almost any exception
        raise DataError(f"{url}: damaged, not a safetensors file ({' '.join(str(error).split())[:120]})") from None
    problem = checkpoint.not_finite(weights)
    if problem:
        raise DataError(f"{url}: {problem}")
    return weights


def _write(folder: str, files: Mapping[str, bytes], content: Mapping[str, Any]) -> None:
    """Write the files of an artifact, then the stage.json that lists them."""
    storage.remove_abandoned(folder)
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    listed = {name: integrity.describe(data) for name, data in files.items()}
    sealed = integrity.seal({**content, integrity.FILES: listed})
    storage.write_text(storage.join(folder, _DONE), json.dumps(sealed, indent=1))


def _write_trained(folder: str, depends: Mapping[str, Any], trained: StageResult) -> None:
    files = {WEIGHTS: weights_bytes(trained.weights)}
    if trained.removed is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, removed=trained.removed)
        files[_REMOVED] = buffer.getvalue()
    files |= {name: weights_bytes(kept) for name, kept in ((_STATE, trained.state), (_TEACHER, trained.teacher)) if kept}
    content = {"stage": depends["stage"], "depends": depends, "best": trained.best, "history": trained.history}
    _write(folder, files, content)


def _write_collected(folder: str, depends: Mapping[str, Any], artifact: dict[str, Any] | RefinedLabels) -> None:
    name = depends["stage"]
    if isinstance(artifact, RefinedLabels):
        files = {_REFINED: artifact.to_bytes()}
    else:
        files = {f"{name}.json": json.dumps(integrity.seal(artifact), indent=1).encode()}
    _write(folder, files, {"stage": name, "depends": depends})


def _read_done(folder: str) -> tuple[dict[str, Any], list[str]]:
    """Return the content of stage.json, and the names of the other files of the artifact."""
    content = integrity.read_sealed(storage.join(folder, _DONE))
    return content, list(content[integrity.FILES] if integrity.FILES in content else storage.names(folder))


def read_collected(folder: str, name: str) -> Any:
    """Read the artifact of a collect stage from ``folder``.

    Raises:
        DataError: one of its files is missing or damaged.
    """
    content, files = _read_done(folder)
    json_name = f"{name}.json"
    if json_name in files:
        url = storage.join(folder, json_name)
        artifact = integrity.unseal(integrity.read_listed(folder, json_name, content), url)
        return {key: value for key, value in artifact.items() if key != integrity.CHECKSUM}
    return RefinedLabels.from_bytes(integrity.read_listed(folder, _REFINED, content), storage.join(folder, _REFINED))


def read_trained(folder: str) -> StageResult:
    """Read the result of a train stage from ``folder``.

    Raises:
        DataError: one of its files is missing or damaged.
    """
    content, files = _read_done(folder)
    if "best" not in content or "history" not in content:
        raise DataError(f"{storage.join(folder, _DONE)}: damaged, not written by a training stage")
    weights = _weights(integrity.read_listed(folder, WEIGHTS, content), storage.join(folder, WEIGHTS))
    further = {
        name: _weights(integrity.read_listed(folder, name, content), storage.join(folder, name)) if name in files else {}
        for name in (_STATE, _TEACHER)
    }
    trained = StageResult(weights, content["best"], content["history"], state=further[_STATE], teacher=further[_TEACHER])
    if _REMOVED in files:
        data = integrity.read_listed(folder, _REMOVED, content)
        try:
            trained.removed = np.load(io.BytesIO(data), allow_pickle=False)["removed"]
        except Exception as error:  # a damaged zip file can raise almost any exception
            raise DataError(f"{storage.join(folder, _REMOVED)}: damaged ({type(error).__name__})") from None
    return trained
