"""Compares the order of methods on a synthetic LLP with the published order.

    python -m benchmarks.published_order REPORT.json [--markdown FILE]

REPORT.json is that of `benchmarks.synthetic_scores`. Each of its methods that has a row in table `main` is shown with its
published and its synthetic scores; below them, Spearman's rank correlation over the methods: of all, and of those that the
features were not calibrated on (`benchmarks.calibrate`), for which the order is a prediction.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from avvp_dist.experiments.paper_tables import read as read_table
from avvp_dist.metrics.names import LEVELS, METRIC_HEADS, METRICS
from benchmarks.calibrate import METHODS as CALIBRATED  # version 2 of the features

ROWS = {
    "han": "HAN",
    "coteaching": "HAN + Co-teaching+",
    "jocor": "HAN + JoCoR",
    "lr": "HAN + LR",
    "emmil": "HAN + EM-MIL",
    "poibin": "HAN + PoiBin",
    "ma": "MA",
    "jomold": "JoMoLD",
    "ppl": "PPL",
    "valor": "VALOR",
}
"""Label in table `main` of each method of the report."""
FEWEST = 3  # methods, for a rank correlation


def markdown(report: dict[str, Any]) -> str:
    """Return the comparison as Markdown: a table for each level, then the rank correlations."""
    published = {row.label: row.published for row in read_table("main")[1].rows}
    version = report.get("version", 1)
    calibrated = CALIBRATED if version == 2 else ()
    found = {name: published[label] for name, label in ROWS.items() if name in report["rows"]}
    lines = [f"Published on LLP / synthetic (version {version}), F of the test split in %.", ""]
    for level in LEVELS:
        lines += [f"**{level}s**", "", *_scores(report["rows"], found, calibrated, level), ""]
    predicted = [name for name in found if ROWS[name] not in calibrated]
    lines += ["**Rank correlation (Spearman) of published and synthetic scores over methods**", ""]
    lines += [f"| methods | level | {' | '.join(METRIC_HEADS.values())} |", f"|---|---|{'--:|' * len(METRIC_HEADS)}"]
    groups = {f"all {len(found)}": list(found)}
    if calibrated:
        groups[f"the {len(predicted)} not calibrated on"] = predicted
    for title, names in groups.items():
        if len(names) >= FEWEST:
            lines += [f"| {title} | {level} | {_correlations(report['rows'], found, names, level)} |" for level in LEVELS]
    return "\n".join(lines)


def _scores(rows: dict[str, Any], published: dict[str, Any], calibrated: Sequence[str], level: str) -> Iterator[str]:
    yield f"| method | calibrated on | {' | '.join(METRIC_HEADS.values())} |"
    yield f"|---|---|{'--:|' * len(METRIC_HEADS)}"
    for name, figures in published.items():
        label = ROWS[name]
        cells = [f"{figures[f'{level}.{metric}']:.1f} / {rows[name][f'{level}.{metric}']['mean']:.1f}" for metric in METRICS]
        yield f"| {label} | {'yes' if label in calibrated else ''} | {' | '.join(cells)} |"


def _correlations(rows: dict[str, Any], published: dict[str, Any], names: Sequence[str], level: str) -> str:
    cells = []
    for metric in METRICS:
        key = f"{level}.{metric}"
        pairs = [(published[name][key], rows[name][key]["mean"]) for name in names]
        cells.append(f"{spearmanr(*zip(*pairs, strict=True)).statistic:.2f}")
    return " | ".join(cells)


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args(words)
    text = markdown(json.loads(arguments.report.read_text()))
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
