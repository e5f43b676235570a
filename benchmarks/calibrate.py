"""Searches the parameters of the synthetic LLP with which HAN, MA and JoMoLD come closest to their published scores.

    python -m benchmarks.calibrate OUT [--annotations DIR] [--splits 1600,300,600] [--trials 40] [--free 12] [--seed 0]
        [--given FILE] [--full] [--set KEY=VALUE ...]

Every trial draws parameters (`datasets.synthetic_evidence.Evidence`), generates features for LLP's annotation files, trains
the three methods with their recipes, and scores the test split under each method's protocol. Its error is the root mean
square of the differences between the 30 scores and the published ones, plus a penalty where segment or event Type are not
in the published order. Trials are appended to OUT/trials.jsonl; a search that is started again continues after the last of
them.

With --given, parameters are not drawn but read from FILE, one JSON object of parameters per line. To be fast, networks and
batches are half as large as published; with --full, they have their published sizes. The trials behind version 2 of the
features are in benchmarks/results/calibration.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from avvp_dist.datasets import synthetic
from avvp_dist.datasets.synthetic_evidence import VERSIONS, Evidence
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.paper_tables import read as read_table
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import run_experiment

METHODS = ("HAN", "MA", "JoMoLD")
"""Rows of the table ``main`` that parameters are chosen for."""
ORDER = ("segment.type", "event.type")
"""Scores in which the methods must be in the order of `METHODS`."""
SMALLEST_BATCH = 16
MARGIN = 1.0  # points by which a method should be ahead of the previous one
SEPARATION = {"vggish": (4.0, 11.0), "res152": (4.0, 10.0), "r2plus1d_18": (4.0, 10.0)}
"""Range of the length of a class's evidence by stream, s * sqrt(d); noise has a deviation of 1 in any direction."""
WIDTHS = {"vggish": 128, "res152": 2048, "r2plus1d_18": 512}
ALWAYS = ("train.precision=bfloat16", "tracking=none", "train.device=cpu")
FAST = ("model.width=256", "model.feedforward=256")


def draw(rng: Generator, best: Evidence | None) -> Evidence:
    """Draw parameters: around the best trial so far, or anywhere."""
    latent = int(rng.choice([32, 48, 64, 96, 128]))
    strength = {
        name: float(rng.uniform(*span)) / min(latent or WIDTHS[name], WIDTHS[name]) ** 0.5
        for name, span in SEPARATION.items()
    }
    fresh = Evidence(
        strength=tuple(strength.items()),
        latent=latent,
        clutter=float(rng.uniform(0.5, 2.0)),
        scenes=int(rng.choice([16, 32, 64, 128])),
        context=float(rng.uniform(0, 0.5)),
        leak=float(rng.uniform(0, 0.5)),
        speech=float(rng.uniform(0.8, 2.0)),
    )
    if best is None or rng.random() < 0.25:
        return fresh
    changes: dict[str, Any] = {"scenes": fresh.scenes} if rng.random() < 0.2 else {}
    for name in ("clutter", "context", "leak", "speech"):
        if rng.random() < 0.6:
            changes[name] = float(max(0.0, getattr(best, name) + 0.25 * (getattr(fresh, name) - getattr(best, name))))
    changes["strength"] = tuple((name, value * float(rng.uniform(0.8, 1.25))) for name, value in best.strength)
    return replace(best, **changes)


def published() -> dict[str, tuple[str, str, dict[str, float]]]:
    """Return recipe, view and published scores of each method."""
    rows = {row.label: row for row in read_table("main")[1].rows}
    return {name: (rows[name].recipe, rows[name].view, rows[name].published) for name in METHODS}


def error(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Return the root mean square of the differences from the published scores, with the penalty for a wrong order."""
    differences = [
        scores[name][metric] - value for name, (_, _, figures) in published().items() for metric, value in figures.items()
    ]
    behind = [
        max(0.0, MARGIN + scores[worse][metric] - scores[better][metric])
        for metric in ORDER
        for worse, better in itertools.pairwise(METHODS)
    ]
    return float(np.sqrt(np.mean(np.square(differences))) + np.sum(behind))


def trial(out: Path, evidence: Evidence, arguments: argparse.Namespace, seed: int = 1) -> dict[str, dict[str, float]]:
    """Generate data with these parameters, train the three methods, and return the test scores of each."""
    data, runs = out / "data", out / "runs"
    for folder in (data, runs):
        shutil.rmtree(folder, ignore_errors=True)
    splits = tuple(map(int, arguments.splits.split(",")))
    synthetic.write(
        str(data),
        videos=None,
        splits=splits,
        seed=0,
        annotations=arguments.annotations,
        layout="shards",
        evidence=evidence,
        workers=1,
    )
    found = {}
    for name, (recipe, view, figures) in published().items():
        settings = [f"data={data}", f"output={runs / recipe}", f"seed={seed}", *ALWAYS, *arguments.set]
        if not arguments.full:
            settings += [*FAST, f"train.batch_size={max(SMALLEST_BATCH, load(recipe).train.batch_size // 2)}"]
        config = load(recipe, settings)
        result = run_experiment(config, LocalRuntime(config.output, "cpu"))
        metrics = result["scores"]["test"][view]["metrics"]
        found[name] = {metric: metrics[metric] for metric in figures}
    return found


def search(out: Path, arguments: argparse.Namespace) -> None:
    """Run the trials that OUT/trials.jsonl does not have."""
    log = out / "trials.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    given = [parameters(json.loads(line)) for line in arguments.given.read_text().splitlines()] if arguments.given else []
    for number in range(len(done), len(given) or arguments.trials):
        evidence = given[number] if given else _drawn(done, number, arguments)
        scores = trial(out, evidence, arguments)
        row = {
            "trial": number,
            "error": round(error(scores), 2),
            "videos": arguments.splits,
            "full": arguments.full,
            "evidence": vars(evidence),
            "scores": {name: {key: round(value, 2) for key, value in each.items()} for name, each in scores.items()},
        }
        done.append(row)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        types = {name: round(each["segment.type"], 1) for name, each in scores.items()}
        print(json.dumps({"trial": number, "error": row["error"], **types}), flush=True)


def _drawn(done: Sequence[Mapping[str, Any]], number: int, arguments: argparse.Namespace) -> Evidence:
    """Return the parameters of a trial: those of version 1 for the first, then random ones."""
    if number == 0:
        return VERSIONS[1]
    best = min(done, key=lambda row: row["error"]) if number >= arguments.free else None
    return draw(np.random.default_rng([arguments.seed, number]), parameters(best["evidence"]) if best else None)


def parameters(content: Mapping[str, Any]) -> Evidence:
    """Return parameters as trials.jsonl records them."""
    strength = tuple((name, value) for name, value in content["strength"])
    return Evidence(**{**content, "strength": strength})


def main() -> None:
    """Parse the command line and search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--annotations")
    parser.add_argument("--splits", default="1600,300,600")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--free", type=int, default=12, help="trials that are drawn anywhere, before those around the best")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--given", type=Path, metavar="FILE", help="parameters to try, instead of random ones")
    parser.add_argument("--full", action="store_true", help="published sizes of networks and batches")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    arguments.out.mkdir(parents=True, exist_ok=True)
    search(arguments.out, arguments)


if __name__ == "__main__":
    main()
