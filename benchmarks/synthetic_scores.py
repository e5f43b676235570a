"""Recipes over seeds on a synthetic LLP: means and deviations of the test scores, each under its recipe's protocol.

    python -m benchmarks.synthetic_scores OUT [--annotations DIR] [--splits 5000,649,1200] [--seeds 1,2,3] [--json FILE]

Published hyper-parameters but for bfloat16. Finished runs in OUT are not run again. Scores on planted data say how methods
behave there, nothing about LLP.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

VARIANTS = {
    "han": ["han"],
    "jomold": ["jomold"],
    "jomold, best epoch by segment Type": ["jomold", "evaluate.select=segment.type"],
}


def train(out: Path, variant: str, seed: int) -> dict:
    """The result.json of one run, trained unless it is there."""
    folder = out / f"{variant.replace(', best epoch by segment Type', 'type')}-{seed}"
    if not (folder / "result.json").is_file():
        settings = [f"data={out / 'data'}", f"output={folder}", f"seed={seed}", "train.precision=bfloat16", "tracking=none"]
        subprocess.run([sys.executable, "-m", "avvp_dist", "train", *VARIANTS[variant], *settings], check=True)
    return json.loads((folder / "result.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--annotations")
    parser.add_argument("--splits", default="5000,649,1200")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not (arguments.out / "data" / "index.json").is_file():
        synth = ["data", "synth", str(arguments.out / "data"), "--layout", "shards", "--splits", arguments.splits]
        source = ["--annotations", arguments.annotations] if arguments.annotations else []
        subprocess.run([sys.executable, "-m", "avvp_dist", *synth, *source], check=True)
    report = {"splits": arguments.splits, "annotated": bool(arguments.annotations), "rows": {}}
    for variant in VARIANTS:
        results = [train(arguments.out, variant, int(seed)) for seed in arguments.seeds.split(",")]
        protocol = "joint" if VARIANTS[variant][0] == "han" else "modality"
        row: dict = {
            "protocol": protocol,
            "seeds": arguments.seeds,
            "commits": [r["provenance"]["git_commit"] for r in results],
        }
        for level in ("segment", "event"):
            for name in ("audio", "visual", "audio_visual", "type", "event"):
                values = [result["scores"]["test"][protocol][level][name] for result in results]
                row[f"{level}.{name}"] = {"mean": statistics.mean(values), "std": statistics.stdev(values), "all": values}
        for name in ("removed/visual", "removed/visual_precision", "removed/visual_recall"):
            found = [result["denoising"][name] for result in results if name in result["denoising"]]
            if found:
                row[name] = statistics.mean(found)
        report["rows"][variant] = row
        names = [f"segment.{name}" for name in ("audio", "visual", "audio_visual", "type", "event")]
        figures = [f"{row[name]['mean']:.1f}±{row[name]['std']:.1f}" for name in names]
        print(f"{variant:36} {protocol:9}", *figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
