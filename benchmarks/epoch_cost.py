"""Cost of an epoch of PPL, with teacher, prototypes and pseudo-labels, relative to an epoch of HAN with the same batch.

    python -m benchmarks.epoch_cost [--videos 2000] [--batch 64] [--rounds 3] [--precision bfloat16] [--out FILE.json]

Both are trained by the package's own loop on the same synthetic videos, without validation figures: of PPL, epochs after its
warm-up. Rounds alternate, so that a slower machine affects both; medians are compared. The time of an epoch is that of its
steps and, for PPL, of the pass before it and of k-means (``scan_seconds``).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

import torch

from avvp_dist.datasets import synthetic
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import run_experiment

_WARM_UP = 1  # epochs of PPL, and epochs of either that do not count


def seconds(recipe: str, data: str, output: str, settings: list[str]) -> list[dict[str, float]]:
    """Train and return the time of each epoch's parts after the first."""
    own = [f"method.warmup_epochs={_WARM_UP}", "method.write_labels=false"] if recipe == "ppl" else []
    config = load(recipe, [f"data={data}", f"output={output}", "tracking=none", *settings, *own])
    run_experiment(config, LocalRuntime(config.output, config.train.device))
    rows = json.loads((Path(output) / "history.json").read_text())[_WARM_UP:]
    return [{"steps": row["time/step_seconds"], "scan": row.get("scan_seconds", 0.0)} for row in rows]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    settings = ["train.epochs=3", f"train.batch_size={options.batch}", f"train.precision={options.precision}"]
    found: dict[str, list[dict[str, float]]] = {"han": [], "ppl": []}
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "data")
        synthetic.write(data, videos=None, splits=(options.videos, 20, 20), seed=0, layout="shards")
        for number in range(options.rounds):
            for recipe, rows in found.items():
                rows += seconds(recipe, data, str(Path(folder) / f"{recipe}{number}"), settings)
    medians = {
        recipe: {part: statistics.median(row[part] for row in rows) for part in ("steps", "scan")}
        for recipe, rows in found.items()
    }
    ratio = sum(medians["ppl"].values()) / sum(medians["han"].values())
    for recipe, parts in medians.items():
        print(f"{recipe}: steps {parts['steps']:.2f} s, pass before the epoch {parts['scan']:.2f} s")
    print(f"an epoch of PPL takes {ratio:.2f} times an epoch of HAN ({options.videos} videos, batch {options.batch})")
    report = {
        "machine": platform.processor() or platform.machine(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "options": {"videos": options.videos, "batch": options.batch, "precision": options.precision},
        "median_seconds": medians,
        "ratio": ratio,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
