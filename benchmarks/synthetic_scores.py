"""All methods over several seeds on a synthetic LLP: test scores under the method's protocol, and labels that were removed.

    python -m benchmarks.synthetic_scores OUT [--annotations DIR] [--splits 5000,649,1200] [--version N] [--seeds 1,2,3]
        [--only han,ma] [--data URL] [--finished] [--json FILE] [--markdown FILE] [--set KEY=VALUE ...]

Published hyperparameters except for bfloat16. VALOR uses the ground truth with 18 % of its segments flipped instead of
labels from CLIP and CLAP. A finished run in OUT (<variant>-<seed>) is not trained again; a run of another config or on
other data is rejected. The labels that its refiner removed are scored again from the files in its folder, since older
commits did not score them. With --finished nothing is trained, and missing runs are left out. Scores on synthetic data say
nothing about LLP.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avvp_dist.errors import AvvpError, ConfigError
from avvp_dist.experiments.recipe import RunConfig, describe_changes, load
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.metrics.denoising import SEGMENTS, WHOLE, WINDOWS, compare_labels, refinement_row
from avvp_dist.metrics.names import LEVELS, METRIC_HEADS, METRICS
from avvp_dist.shards.index import Index, Labels, read_labels
from avvp_dist.tasks.earlier import present_result
from avvp_dist.tasks.parsing import ParsingConfig
from avvp_dist.types import MODALITIES

ELEMENTS = {WHOLE: "whole videos", WINDOWS: "windows", SEGMENTS: "segments"}
NOISE = {"flip": 0.18, "seed": 0}


@dataclass(frozen=True)
class Variant:
    """One row of the table: its title, its recipe, and overrides of the recipe."""

    title: str
    recipe: str
    overrides: tuple[str, ...] = ()
    segment_labels: bool = False


VARIANTS = {
    "han": Variant("HAN", "han"),
    "lr": Variant("HAN + LR", "lr"),
    "ma": Variant("MA", "ma"),
    "matype": Variant("MA, best epoch by segment Type", "ma", ("evaluate.select=segment.type",)),
    "jomold": Variant("JoMoLD", "jomold"),
    "jomoldtype": Variant("JoMoLD, best epoch by segment Type", "jomold", ("evaluate.select=segment.type",)),
    "jomoldbare": Variant(
        "JoMoLD without contrastive loss, best epoch by segment Type",
        "jomold",
        ("evaluate.select=segment.type", "method.contrastive_weight=0"),
    ),
    "jomoldcarry": Variant(
        "JoMoLD with carried fractions of budgets, best epoch by segment Type",
        "jomold",
        ("evaluate.select=segment.type", "method.rounding=carry"),
    ),
    "hanave": Variant("AVE (reconstruction), trained as HAN", "han", ("model=ave-llp", "task.protocol=modality")),
    "hanavslowfast": Variant(
        "AVSlowFast (reconstruction), trained as HAN", "han", ("model=avslowfast", "task.protocol=modality")
    ),
    "ave": Variant("JoMoLD on AVE (reconstruction)", "jomold", ("model=ave-llp", "model.visual_dropout=0.5")),
    "avebare": Variant(
        "JoMoLD without contrastive loss on AVE (reconstruction)",
        "jomold",
        ("model=ave-llp", "model.visual_dropout=0.5", "method.contrastive_weight=0"),
    ),
    "avslowfast": Variant(
        "JoMoLD on AVSlowFast (reconstruction)", "jomold", ("model=avslowfast", "model.visual_dropout=0.5")
    ),
    "avslowfastbare": Variant(
        "JoMoLD without contrastive loss on AVSlowFast (reconstruction)",
        "jomold",
        ("model=avslowfast", "model.visual_dropout=0.5", "method.contrastive_weight=0"),
    ),
    "coteaching": Variant("HAN + Co-teaching+ (reconstruction)", "coteaching"),
    "jocor": Variant("HAN + JoCoR (reconstruction)", "jocor"),
    "emmil": Variant("HAN + EM-MIL (reconstruction)", "em-mil"),
    "poibin": Variant("HAN + PoiBin (reconstruction)", "poibin"),
    "pplh": Variant("PPL_H (reconstruction)", "ppl", ("method.hard=true",)),
    "ppl": Variant("PPL (reconstruction)", "ppl"),
    "valor": Variant("VALOR, ground truth with 18 % noise", "valor", segment_labels=True),
}


class Bench:
    """The runs of one folder on one data set."""

    def __init__(self, out: Path, data: str, overrides: Sequence[str]) -> None:
        self.out = out
        self.data = data
        self.overrides = ("train.precision=bfloat16", *overrides)
        self.index = Index.load(data)
        self.labels = read_labels(data, self.index)

    def folder(self, name: str, seed: int) -> Path:
        """Return the folder of a run."""
        return self.out / f"{name}-{seed}"

    def settings(self, name: str, seed: int) -> list[str]:
        """Return the overrides of a run, except data and folder."""
        return [*VARIANTS[name].overrides, *self.overrides, f"seed={seed}"]

    def train(self, name: str, seed: int) -> None:
        """Train a run to its end."""
        settings = [f"data={self.data}", f"output={self.folder(name, seed)}", "tracking=none", *self.settings(name, seed)]
        if VARIANTS[name].segment_labels:
            given = self.out / "noisy18.npz"
            if not given.exists():
                noise = [word for key, value in NOISE.items() for word in (f"--{key}", str(value))]
                _avvp("data", "noisy-labels", "--data", self.data, "--out", str(given), *noise)
            settings.append(f"data.refined={given}")
        _avvp("train", VARIANTS[name].recipe, *settings)

    def read(self, name: str, seed: int) -> dict[str, Any]:
        """Return the result.json of a finished run, with the removed labels scored again.

        Raises:
            ConfigError: it is a run of another config or on other data; lists every difference.
        """
        folder = self.folder(name, seed)
        config = load(str(folder / "config.yaml"))
        result = present_result(json.loads((folder / "result.json").read_text()), config.task.model_dump)
        given = RefinedLabels.load(config.data.refined) if config.data.refined else None
        problems = describe_changes(
            _result_config(config), _result_config(load(VARIANTS[name].recipe, self.settings(name, seed)))
        )
        if result["data"]["fingerprint"] != self.index.fingerprint:
            problems.append(f"data: trained on other data than {self.data}")
        problems += self._wrong_labels(VARIANTS[name], given)
        if problems:
            raise ConfigError(problems, f"{folder}: not a run of {name} with seed {seed}")
        own = _own_labels(folder, self.labels["train"], self.index)
        removed = self._removed(own) | self._budgets(result["artifacts"].get("ratios"))
        return {**result, "denoising": removed, "denoising_given": self._removed(given)}

    def _budgets(self, ratios: dict[str, dict[str, float]] | None) -> dict[str, float]:
        """Return the number of labels that a run's noise ratios would remove if they were applied completely."""
        if ratios is None:
            return {}
        labels = dict(zip(self.index.classes, self.labels["train"].weak.sum(axis=0).tolist(), strict=True))
        return {
            f"{WHOLE}/{modality}_budget": sum(share * labels[name] for name, share in ratios[modality].items())
            for modality in MODALITIES
        }

    def _wrong_labels(self, variant: Variant, given: RefinedLabels | None) -> list[str]:
        if not variant.segment_labels:
            return [] if given is None else ["data.refined: set, but this variant has none"]
        if given is None:
            return ["data.refined: missing"]
        wanted = {"maker": "truth with noise", "fingerprint": self.index.fingerprint, **NOISE}
        return [
            f"data.refined: {key} {given.provenance.get(key)!r} there, {value!r} here"
            for key, value in wanted.items()
            if given.provenance.get(key) != value
        ]

    def _removed(self, refined: RefinedLabels | None) -> dict[str, float]:
        if refined is None:
            return {}
        train = self.labels["train"]
        kept = refined.aligned(train.ids, self.index.classes, self.index.segments, "labels of the run")
        return refinement_row(compare_labels(train.weak, kept.tracks, train.truth, kept.windows))


def _result_config(config: RunConfig) -> dict[str, Any]:
    """Return the part of a config that determines the result of a run."""
    content = config.model_dump(include={"seed", "task", "model", "method", "train", "optim", "evaluate"}, mode="json")
    for section, keys in {"train": ("device", "check_every", "checkpoint_every"), "evaluate": ("batch_size",)}.items():
        content[section] = {key: value for key, value in content[section].items() if key not in keys}
    return content


def _own_labels(folder: Path, train: Labels, index: Index) -> RefinedLabels | None:
    """Return the labels that a run's refiner kept, from its stages; None if it has no refiner."""
    masks, refined = (sorted((folder / "stages").glob(f"*/{name}.npz")) for name in ("removed", "refined"))
    if len(masks) > 1 or len(refined) > 1:
        raise ConfigError(
            [str(path) for path in (*masks, *refined)], f"{folder}: removed labels of several stages; delete all but one"
        )
    if not masks:
        return RefinedLabels.load(str(refined[0])) if refined else None
    with np.load(masks[0], allow_pickle=False) as file:
        return RefinedLabels.from_removed(file["removed"], train.weak, train.ids, index.classes, {})


def _avvp(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "avvp_dist", *words], check=True)


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": spread, "all": list(values)}


def row(name: str, results: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return one variant's entry of the report, from the results of its seeds."""
    protocol = load(VARIANTS[name].recipe, VARIANTS[name].overrides).task.protocol
    entry: dict[str, Any] = {
        "title": VARIANTS[name].title,
        "protocol": protocol,
        "seeds": list(results),
        "commits": [result["provenance"]["git_commit"] for result in results.values()],
    }
    scores = [result["scores"]["test"] for result in results.values()]
    for prefix, view in (("", protocol), ("without_speech.", f"{protocol}/without_speech")):
        for metric in ParsingConfig.metrics:
            entry[f"{prefix}{metric.name}"] = _over_seeds([each[view]["metrics"][metric.name] for each in scores])
    for modality in MODALITIES:
        speech = [each[protocol]["per_class"]["Speech"][f"segment.{modality}"] for each in scores]
        entry[f"speech.segment.{modality}"] = None if None in speech else _over_seeds(speech)
    for source in ("denoising", "denoising_given"):
        rows = [result[source] for result in results.values()]
        keys = dict.fromkeys(key for each in rows for key in each)
        entry[source] = {key: _over_seeds([each[key] for each in rows if key in each]) for key in keys}
    return entry


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown: a table of scores for each level, then one of removed labels."""
    splits = ", ".join(f"{count} {split}" for split, count in report["videos"].items())
    lines = [f"Synthetic data ({splits} videos; truth: {report['truth']}). Mean ± standard deviation over seeds, in %.", ""]
    for level in LEVELS:
        lines += [f"**F of {level}s, test split**", "", *_scores(report["rows"], level), ""]
    lines += [
        "**Segment-level F of Speech, pooled over all test videos**",
        "",
        *_speech(report["rows"]),
        "",
    ]
    lines += ["**Labels of the training split that refiners removed**", "", *_removals(report["rows"]), ""]
    return "\n".join(lines)


def _scores(rows: dict[str, Any], level: str) -> Iterator[str]:
    heads = [*METRIC_HEADS.values(), *(f"{head}, no Speech" for head in METRIC_HEADS.values())]
    yield f"| method | protocol | seeds | {' | '.join(heads)} |"
    yield f"|{'---|' * 3}{'--:|' * len(heads)}"
    for entry in rows.values():
        cells = [_cell(entry[f"{prefix}{level}.{metric}"]) for prefix in ("", "without_speech.") for metric in METRICS]
        yield f"| {entry['title']} | {entry['protocol']} | {_seeds(entry)} | {' | '.join(cells)} |"


def _speech(rows: dict[str, Any]) -> Iterator[str]:
    yield "| method | A | V |"
    yield "|---|--:|--:|"
    for entry in rows.values():
        yield f"| {entry['title']} | {' | '.join(_cell(entry[f'speech.segment.{modality}']) for modality in MODALITIES)} |"


def _removals(rows: dict[str, Any]) -> Iterator[str]:
    """Yield rows for whole videos, where all refiners can be compared, then for finer levels."""
    heads = ["removed", "of labels", "budget", "precision", "at random", "recall"]
    yield f"| level | modality | method | {' | '.join(heads)} |"
    yield f"|{'---|' * 3}{'--:|' * len(heads)}"
    for level, elements in ELEMENTS.items():
        for modality in MODALITIES:
            for entry in rows.values():
                for source, note in (("denoising", ""), ("denoising_given", " (given labels)")):
                    found, key = entry[source], f"{level}/{modality}"
                    if key in found:
                        cells = [f"{found[name]['mean']:.0f}" for name in (key, f"{key}_labels")]
                        budget = found.get(f"{key}_budget")
                        cells.append(f"{budget['mean']:.0f}" if budget else "-")
                        cells += [_cell(found.get(f"{key}_{name}")) for name in ("precision", "baseline", "recall")]
                        yield f"| {elements} | {modality} | {entry['title']}{note} | {' | '.join(cells)} |"


def _seeds(entry: dict[str, Any]) -> str:
    return ", ".join(map(str, entry["seeds"]))


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    return f"{value['mean']:.1f}" + (f" ± {value['std']:.1f}" if value["std"] is not None else "")


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--data", help="packed data set; default OUT/data, created if it does not exist")
    parser.add_argument("--annotations", help="LLP's annotation files, from which data are generated")
    parser.add_argument("--splits", default="5000,649,1200", help="videos of each split, if data are generated")
    parser.add_argument("--version", help="of the features, if data are generated; default the newest")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--only", default=",".join(VARIANTS), help=f"some of {', '.join(VARIANTS)}")
    parser.add_argument("--finished", action="store_true", help="report finished runs, train nothing")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of all runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args(words)
    arguments.only = arguments.only.split(",")
    unknown = [name for name in arguments.only if name not in VARIANTS]
    if unknown:
        parser.error(f"--only: unknown variants {', '.join(unknown)}; valid: {', '.join(VARIANTS)}")
    arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    arguments.data = arguments.data or str(arguments.out / "data")
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    arguments = _arguments(words)
    try:
        _work(arguments)
    except AvvpError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _work(arguments: argparse.Namespace) -> None:
    if not arguments.finished and not (Path(arguments.data) / "index.json").is_file():
        source = ["--annotations", arguments.annotations] if arguments.annotations else []
        source += ["--version", arguments.version] if arguments.version else []
        _avvp("data", "synth", arguments.data, "--layout", "shards", "--splits", arguments.splits, *source)
    bench = Bench(arguments.out, arguments.data, arguments.set)
    report: dict[str, Any] = {
        "videos": {split: len(labels.ids) for split, labels in bench.labels.items()},
        "truth": bench.index.provenance.get("truth", "unknown"),
        "version": bench.index.provenance.get("recipe"),
        "data_fingerprint": bench.index.fingerprint,
        "settings": list(bench.overrides),
        "rows": {},
    }
    for name in arguments.only:
        results = {}
        for seed in arguments.seeds:
            result = bench.folder(name, seed) / "result.json"
            if not result.is_file() and not arguments.finished:
                bench.train(name, seed)
            if result.is_file():
                results[seed] = bench.read(name, seed)
        if results:
            report["rows"][name] = row(name, results)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
