"""What a finished run leaves: result.json, the model, pictures, and the end of its tracked run."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avvp_dist import storage
from avvp_dist.data.index import Index, Labels, LeftOut
from avvp_dist.data.refined import RefinedLabels
from avvp_dist.metrics.denoising import removal_row
from avvp_dist.metrics.parsing import Probabilities
from avvp_dist.recipe import RunConfig
from avvp_dist.report.pictures import draw
from avvp_dist.tracking.base import Tracker
from avvp_dist.train.evaluate import all_scores, decide
from avvp_dist.train.loop import Trained
from avvp_dist.train.stages import write_weights


@dataclass(frozen=True)
class Outcome:
    """A run after its last stage.

    Attributes:
        probabilities: of the best network, by evaluated split.
        trained, collected: what each stage left, by its name, in order.
        left_out: bad videos that the run did without.
    """

    config: RunConfig
    index: Index
    labels: Mapping[str, Labels]
    probabilities: Mapping[str, Probabilities]
    trained: Mapping[str, Trained]
    collected: Mapping[str, Any]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def final(self) -> Trained:
        """The stage whose network is evaluated."""
        return list(self.trained.values())[-1]

    def removed(self) -> np.ndarray | None:
        """Training labels taken away as noise, bool [N,2,C]: in the last epoch, or by a refining stage; None without."""
        if self.final.removed is not None:
            return self.final.removed
        weak = self.labels["train"].weak
        for found in self.collected.values():
            if isinstance(found, RefinedLabels) and found.audio.ndim == 2:
                return np.stack([weak & (found.audio == 0), weak & (found.visual == 0)], axis=1)
        return None

    def result(self) -> dict[str, Any]:
        """The content of result.json."""
        config, index, train = self.config, self.index, self.labels["train"]
        removed = self.removed()
        return {
            "recipe": config.recipe,
            "method": config.method.name,
            "seed": config.seed,
            "data": {
                "url": config.data.url,
                "fingerprint": index.fingerprint,
                "dataset": index.dataset,
                "synthetic": index.synthetic,
                "left_out": {"count": len(self.left_out), "videos": [asdict(bad) for bad in self.left_out]},
            },
            "best": self.final.best,
            "scores": {
                name: all_scores(found, self.labels[name], config.evaluate, index.classes)
                for name, found in self.probabilities.items()
            },
            "denoising": {} if removed is None else removal_row(train.weak, removed, train.audio, train.visual),
            "artefacts": {name: found for name, found in self.collected.items() if isinstance(found, dict)},
            "provenance": provenance(index),
        }

    def publish(self, result: Mapping[str, Any], tracker: Tracker) -> None:
        """Writes and tracks everything, result.json last."""
        output = self.config.output
        write_weights(storage.join(output, "model.safetensors"), self.final.weights)
        history = [row for stage in self.trained.values() for row in stage.history]
        storage.write_text(storage.join(output, "history.json"), json.dumps(history, indent=1))
        with tempfile.TemporaryDirectory() as scratch:
            for picture in self._draw(Path(scratch), history, result):
                storage.write_bytes(storage.join(output, "pictures", picture.name), picture.read_bytes())
                tracker.artifact(picture, "pictures")
            weights = Path(scratch) / "model.safetensors"
            write_weights(str(weights), self.final.weights)
            tracker.artifact(weights, "checkpoints")
        storage.write_text(storage.join(output, "result.json"), json.dumps(result, indent=1))
        tracker.text("result.json", json.dumps(result, indent=1))
        tracker.metrics(_final_metrics(self.config, result), step=0)

    def _draw(self, folder: Path, history: list[dict[str, Any]], result: Mapping[str, Any]) -> list[Path]:
        return draw(
            folder,
            classes=self.index.classes,
            history=history,
            result=result,
            protocol=self.config.evaluate.protocol,
            truth=self.labels["test"],
            predicted=decide(self.probabilities["test"], self.config.evaluate),
            train=self.labels["train"],
            removed=self.removed(),
        )


def provenance(index: Index) -> dict[str, str]:
    """What it takes to make the run again: commit, data, versions."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "-C", str(here), "status", "--porcelain"], capture_output=True, text=True, check=False)
    known = commit.returncode == 0 and dirty.returncode == 0
    return {
        "git_commit": commit.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "") if known else "unknown",
        "data_fingerprint": index.fingerprint,
        "data_synthetic": str(index.synthetic).lower(),
        "avvp_dist": metadata.version("avvp_dist"),
        "torch": torch.__version__,
    }


def _final_metrics(config: RunConfig, result: Mapping[str, Any]) -> dict[str, float]:
    """The final figures under the run's own protocol, under names that MLflow's table sorts well."""
    found: dict[str, float] = {}
    for split, protocols in result["scores"].items():
        scores = protocols[config.evaluate.protocol]
        for level in ("segment", "event"):
            found |= {f"{split}/{level}.{name}": value for name, value in scores[level].items()}
            without = scores.get("without_speech", {}).get(level, {})
            found |= {f"{split}_without_speech/{level}.{name}": value for name, value in without.items()}
    return found
