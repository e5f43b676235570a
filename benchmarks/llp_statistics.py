"""Counts LLP's annotations into avvp_dist/datasets/llp_statistics.json, from which the synthetic LLP is sampled.

    python -m benchmarks.llp_statistics ANNOTATIONS_FOLDER [--out FILE]

No video ids are kept. Prints the numbers that the literature reports, for comparison.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from avvp_dist.datasets import llp
from avvp_dist.datasets.catalog import LLP
from avvp_dist.datasets.synthetic_labels import Pattern, pattern_of, read_pattern

ABOUT = (
    "Counts from the LLP annotation files (HAN, ECCV 2020). labels: videos with each set of weak labels, in the train split "
    "and in the annotated ones (val and test). seconds: annotated videos that carry a class by the seconds in which it is "
    "audible and visible, 'audio.visual', two hexadecimal numbers whose bit t stands for second t. "
    "Made by benchmarks/llp_statistics.py."
)
TARGET = Path(__file__).parents[1] / "avvp_dist" / "datasets" / "llp_statistics.json"


def count(folder: str) -> dict:
    """Return the content of llp_statistics.json."""
    labels: dict[str, Counter[tuple[int, ...]]] = {"train": Counter(), "annotated": Counter()}
    seconds: list[Counter[Pattern]] = [Counter() for _ in LLP.classes]
    for record in llp.read_annotations(folder).records:
        part = "train" if record.split == "train" else "annotated"
        labels[part][record.weak] += 1
        if part == "annotated":
            for label in record.weak:
                seconds[label][pattern_of(record, label)] += 1
    return {
        "about": ABOUT,
        "labels": {
            part: {",".join(LLP.classes[label] for label in weak): videos for weak, videos in sorted(counts.items())}
            for part, counts in labels.items()
        },
        "seconds": {
            name: {f"{audio:x}.{visual:x}": videos for (audio, visual), videos in sorted(counts.items())}
            for name, counts in zip(LLP.classes, seconds, strict=True)
        },
    }


def describe(patterns: Counter[Pattern]) -> str:
    """Return the usual statistics of a set of patterns of seconds."""
    total = sum(patterns.values())
    audio = sum(n for (a, v), n in patterns.items() if a and not v)
    visual = sum(n for (a, v), n in patterns.items() if v and not a)
    both = {pattern: n for pattern, n in patterns.items() if all(pattern)}
    overlap = sum(n * (a & v).bit_count() / (a | v).bit_count() for (a, v), n in both.items())
    same = sum(n for (a, v), n in both.items() if a == v)
    shared = sum(both.values())
    return (
        f"{total:5d} labels: audio-only {audio / total:.3f}, visual-only {visual / total:.3f}, both {shared / total:.3f}, "
        f"neither {1 - (audio + visual + shared) / total:.3f}; both: "
        f"IoU {overlap / shared:.3f}, identical {same / shared:.3f}"
    )


def main() -> None:
    """Count, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations")
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    content = count(arguments.annotations)
    arguments.out.write_text(json.dumps(content, separators=(",", ":")).replace('":{', '":\n{') + "\n")
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")
    overall: Counter[Pattern] = Counter()
    for name, counts in content["seconds"].items():
        patterns = Counter({read_pattern(key): videos for key, videos in counts.items()})
        overall.update(patterns)
        print(f"{name:24s} {describe(patterns)}")
    print(f"{'all':24s} {describe(overall)}")


if __name__ == "__main__":
    main()
