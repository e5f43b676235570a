"""Commands into which faults are injected, and the comparison of their results with those of undisturbed runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.robustness_cases.fixtures import Fixtures
from benchmarks.robustness_cases.running import Result

TRACEBACK = "Traceback (most recent call last)"
TRAININGS = {
    "jomold": ("train", "jomold", "data={data}", "{small}", "train.epochs=5", "train.checkpoint_every=2"),
    "ma": ("train", "ma", "data={data}", "{small}", "train.epochs=3"),
    "streaming": (
        *("train", "han", "data={data}", "{small}", "train.epochs=4", "train.checkpoint_every=2"),
        *("data.mode=streaming", "data.streams=4", "data.window=8", "data.workers=0"),
    ),
}
PACK = ("data", "pack", "llp", "--annotations", "{raw}", "--features", "{raw}", "--shard-videos", "4", "--workers", "1")


class Bench:
    """Runs commands and compares their results with those of undisturbed runs."""

    def __init__(self, fixtures: Fixtures, folder: Path) -> None:
        self.fixtures = fixtures
        self.runner = fixtures.runner
        self.folder = folder
        self.reference: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

    def run_references(self) -> None:
        """Run every command once without a fault."""
        jobs = [*((name, words) for name, words in TRAININGS.items()), ("pack", PACK)]

        def one(job: tuple[str, Sequence[str]]) -> None:
            name, words = job
            here = self.case_folder(f"reference-{name}")
            result = self.run(words, here)
            if result.code:
                raise RuntimeError(f"undisturbed {name}: exit code {result.code}\n{result.text}")
            self.reference[name], self.seconds[name] = outputs_of(here / "out"), result.seconds

        self.runner.map(one, jobs)

    def case_folder(self, name: str) -> Path:
        """Create and return the folder of a case."""
        here = self.folder / name
        here.mkdir(parents=True)
        return here

    def run(self, words: Sequence[str], here: Path, **more: Any) -> Result:
        """Run a command whose output is ``here/out``."""
        target = ("--out", "{here}/out") if words[0] == "data" else ("output={here}/out",)
        return self.runner.run(self.fixtures.expand([*words, *target], here), here, figures=False, **more)

    def run_to_end(
        self, name: str, words: Sequence[str], here: Path, before: Sequence[Result], wrong: str = ""
    ) -> tuple[str, list[Result]]:
        """Run the command to its end without a fault; return what is wrong, if anything, and all results."""
        last = self.run(words, here, seconds=90)
        results = [*before, last]
        if wrong:
            return wrong, results
        if any(TRACEBACK in result.text for result in results):
            return "traceback", results
        if last.code:
            return f"exit code {last.code} of the same command without a fault", results
        found = outputs_of(here / "out")
        if found != self.reference[name]:
            return "result differs from an undisturbed run", results
        if stale := [path.name for path in (here / "out").rglob(".aside-*")]:
            return f"temporary files of killed writers are left: {stale[:3]}", results
        shutil.rmtree(here, ignore_errors=True)
        return "", results


def outputs_of(out: Path) -> Any:
    """Return what must not depend on faults: the scores of a run, or the bytes of packed data."""
    if (out / "result.json").exists():
        result = json.loads((out / "result.json").read_text())
        return {key: result[key] for key in ("scores", "best", "denoising", "artifacts")}
    return {path.name: path.read_bytes() for path in sorted(out.glob("*")) if path.is_file() and "lock" not in path.name}
