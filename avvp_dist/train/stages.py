"""Runs a method's stages in order; each finished stage is an artefact that later runs reuse.

An artefact is a folder ``<stage>-<key>`` of the store. The key is a hash of everything the stage depends on: data, the whole
config but for what is known not to matter, and the keys of the stages before it. ``stage.json`` is written last: without it
the stage is not finished.
A train stage leaves ``model.safetensors``, a collect stage ``<stage>.json`` (noise ratios) or ``refined.npz``, which other
runs take as they are.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from avvp_dist import storage
from avvp_dist.data.refined import RefinedLabels
from avvp_dist.data.source import Source
from avvp_dist.dist.runtime import Runtime
from avvp_dist.methods.base import CollectStage, Method, Stage, TrainStage
from avvp_dist.train.evaluate import EvaluateConfig
from avvp_dist.train.loop import Observer, StageJob, StageTrainer, TrainConfig, Trained
from avvp_dist.train.optim import OptimConfig

_REFINED = "refined.npz"
_DONE = "stage.json"
_VERSION = 2  # raised when a change of the code makes a stage come out differently


@dataclass(frozen=True)
class PlannedStage:
    """A stage with all that its artefact depends on, before it runs."""

    stage: Stage
    key: str
    depends: Mapping[str, Any]

    def folder(self, store: str) -> str:
        """Where its artefact is or will be."""
        return storage.join(store, f"{self.stage.name}-{self.key}")

    def finished(self, store: str) -> bool:
        """Whether its artefact is there."""
        return storage.exists(storage.join(self.folder(store), _DONE))


@dataclass(frozen=True)
class Identity:
    """What the stages of a run depend on.

    Attributes:
        data_fingerprint: of the packed data.
        config: of the run, dumped, without what no artefact depends on, see `recipe.of_stages`.
        order: what the order of the training split depends on, see `data.source.order_settings`.
        lineage: see `dist.runtime.Runtime`.
    """

    data_fingerprint: str
    config: Mapping[str, Any]
    order: Mapping[str, Any] = field(default_factory=dict)
    lineage: str = ""

    def plan(self, method: Method) -> list[PlannedStage]:
        """The method's stages with their keys."""
        stages = method.stages()
        planned: list[PlannedStage] = []
        keys: dict[str, str] = {}
        for stage in stages:
            depends = self._depends(stage, keys)
            if self.lineage and stage is stages[-1]:
                depends["lineage"] = self.lineage
            keys[stage.name] = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
            planned.append(PlannedStage(stage, keys[stage.name], depends))
        return planned

    def _depends(self, stage: Stage, keys: Mapping[str, str]) -> dict[str, Any]:
        method = {key: value for key, value in self.config["method"].items() if key not in stage.irrelevant}
        return {
            "version": _VERSION,
            "stage": stage.name,
            "needs": {name: keys[name] for name in stage.needs},
            "fingerprint": self.data_fingerprint,
            "config": {**self.config, "method": method},
            "given": dict(stage.given),
            "order": dict(self.order),
        }


@dataclass(frozen=True)
class StageRunner:
    """Runs the stages of one run.

    Attributes:
        store: folder or URL of the artefacts.
        identity: what they depend on.
        build: makes the network with fresh weights.
    """

    store: str
    identity: Identity
    seed: int
    train: TrainConfig
    optim: OptimConfig
    evaluate: EvaluateConfig
    build: Callable[[], nn.Module]
    splits: Mapping[str, Source]
    runtime: Runtime
    observer: Observer

    def run(self, method: Method) -> tuple[dict[str, Trained], dict[str, Any]]:
        """Runs all stages, or takes them from the store.

        Returns:
            what each train stage left and what each collect stage found, by stage name.
        """
        trained: dict[str, Trained] = {}
        collected: dict[str, Any] = {}
        for planned in self.identity.plan(method):
            stage, folder = planned.stage, planned.folder(self.store)
            if self._finished(planned):
                if self.runtime.collective.rank == 0:
                    self.observer.stage_reused(stage.name, planned.key)
            else:
                self._make(planned, trained, collected)
            if isinstance(stage, TrainStage):
                trained[stage.name] = _read_trained(folder)
            else:
                collected[stage.name] = _read_collected(folder, stage.name)
        return trained, collected

    def _make(self, planned: PlannedStage, trained: Mapping[str, Trained], collected: Mapping[str, Any]) -> None:
        """Runs one stage; where several runs share a store, one at a time, and those that waited find it finished."""
        stage = planned.stage
        rank_0 = self.runtime.collective.rank == 0
        with self.runtime.claim(self.store, planned.key) if rank_0 else nullcontext():
            if self._finished(planned):
                return
            if isinstance(stage, TrainStage):
                self._train(planned, stage, collected)
            else:
                assert isinstance(stage, CollectStage)
                self._collect(planned, stage, trained[stage.source])

    def _finished(self, planned: PlannedStage) -> bool:
        """Whether the artefact is there; rank 0 looks for all, another run may be writing it at this moment."""
        found = self.runtime.collective.rank == 0 and planned.finished(self.store)
        return bool(self.runtime.collective.all_reduce_sum(torch.tensor([float(found)], device=self.runtime.device)).item())

    def _train(self, planned: PlannedStage, stage: TrainStage, collected: Mapping[str, Any]) -> None:
        stage.start(collected, self.runtime.device)
        job = StageJob(
            stage=stage,
            key=planned.key,
            seed=self.seed,
            build=self.build,
            train=self.train,
            optim=self.optim,
            evaluate=self.evaluate,
            train_split=self._train_split(stage, collected),
            val_split=self.splits["val"],
        )
        trained = StageTrainer(job, self.runtime, self.observer).run()
        if self.runtime.collective.rank == 0:
            _write_trained(planned.folder(self.store), planned.depends, trained)
        self._everyone_here()
        self.runtime.clear_checkpoints()

    def _train_split(self, stage: TrainStage, collected: Mapping[str, Any]) -> Source:
        split = self.splits["train"]
        if stage.labels_from is None:
            return split
        labels: RefinedLabels = collected[stage.labels_from]
        return split.with_refined(labels, labels.classes, f"stage {stage.labels_from}")

    def _collect(self, planned: PlannedStage, stage: CollectStage, source: Trained) -> None:
        collective, split = self.runtime.collective, self.splits["train"]
        if collective.rank == 0:
            self.observer.stage_started(stage.name, 1, None)
        model = self.build().to(self.runtime.device).eval()
        model.load_state_dict(source.weights)
        bfloat16 = self.train.precision == "bfloat16"
        batches = split.once(
            self.evaluate.batch_size, collective.rank, collective.world_size, stage.partners, stage.partner_seed
        )
        autocast = torch.autocast(self.runtime.device.type, torch.bfloat16, enabled=bfloat16)
        with closing(batches), torch.inference_mode(), autocast:
            for batch in batches:
                stage.collect([model(each, cross_modal=stage.cross_modal) for each in stage.inputs(batch)], batch)
            artefact = stage.finish(collective, split.labels.ids)
        if collective.rank == 0:
            _write_collected(planned.folder(self.store), planned.depends, artefact)
        self._everyone_here()

    def _everyone_here(self) -> None:
        """Waits until rank 0 has written what the others are about to read."""
        self.runtime.collective.all_reduce_sum(torch.zeros(1, device=self.runtime.device))


def read_weights(url: str) -> dict[str, Tensor]:
    """Weights of a safetensors file."""
    return safetensors.torch.load(storage.read_bytes(url))


def write_weights(url: str, weights: Mapping[str, Tensor]) -> None:
    """Weights as a safetensors file."""
    storage.write_bytes(url, safetensors.torch.save({name: value.contiguous() for name, value in weights.items()}))


def _write_trained(folder: str, depends: Mapping[str, Any], trained: Trained) -> None:
    write_weights(storage.join(folder, "model.safetensors"), trained.weights)
    if trained.removed is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, removed=trained.removed)
        storage.write_bytes(storage.join(folder, "removed.npz"), buffer.getvalue())
    content = {"stage": depends["stage"], "depends": depends, "best": trained.best, "history": trained.history}
    storage.write_text(storage.join(folder, _DONE), json.dumps(content, indent=1))


def _write_collected(folder: str, depends: Mapping[str, Any], artefact: dict[str, Any] | RefinedLabels) -> None:
    name = depends["stage"]
    if isinstance(artefact, RefinedLabels):
        storage.write_bytes(storage.join(folder, _REFINED), artefact.to_bytes())
    else:
        storage.write_text(storage.join(folder, f"{name}.json"), json.dumps(artefact, indent=1))
    storage.write_text(storage.join(folder, _DONE), json.dumps({"stage": name, "depends": depends}, indent=1))


def _read_collected(folder: str, name: str) -> Any:
    plain = storage.join(folder, f"{name}.json")
    return (
        json.loads(storage.read_text(plain)) if storage.exists(plain) else RefinedLabels.load(storage.join(folder, _REFINED))
    )


def _read_trained(folder: str) -> Trained:
    content = json.loads(storage.read_text(storage.join(folder, _DONE)))
    trained = Trained(read_weights(storage.join(folder, "model.safetensors")), content["best"], content["history"])
    if storage.exists(storage.join(folder, "removed.npz")):
        buffer = io.BytesIO(storage.read_bytes(storage.join(folder, "removed.npz")))
        trained.removed = np.load(buffer, allow_pickle=False)["removed"]
    return trained
