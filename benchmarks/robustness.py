"""Robustness benchmark: injects faults, bad inputs, bit flips and secrets into the commands, and counts how they end.

    python -m benchmarks.robustness [--only faults,inputs,flips,secrets] [--seed S] [--minutes 10] [--verbose]
        [--out FILE] [--markdown FILE]

faults   kill -9, SIGTERM and Ctrl-C at random moments of train, pack and evaluate; full disks; an object store and a
         tracking server that fail, stall or answer wrongly; damaged checkpoints, stage artifacts and shards; two writers.
         Afterwards the same command runs to its end, and its result equals that of an undisturbed run exactly
inputs   bad settings, files, URLs, targets and environments: exit code 2 and one message that names what is wrong, no
         traceback, less than 64 KB of output, nothing half-written
flips    one bit flipped in shards, labels, index, stage artifacts, checkpoints, models, scores and configs: the file is
         refused or recomputed with a message that names it; or the bit has no meaning, proven by reading the file
         independently
secrets  marked passwords and tokens in addresses, environment and files: all files, streams and databases that commands
         leave are searched for them

The data are small and synthetic. Two warm processes fork for every command, since importing torch takes seconds; what
needs a new process has one. Each part has a share of the minutes, which suffice on two otherwise idle CPU cores; cases for
which they did not are counted. Exit code 1 if anything did not end well: those cases are named, with --verbose also their
commands and output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.robustness_cases import faults, flips, inputs, report, secrets
from benchmarks.robustness_cases.material import Material
from benchmarks.robustness_cases.report import Verdict
from benchmarks.robustness_cases.running import Runner

Cases = Callable[[Material, Path, int], Iterator[Callable[[], Verdict]]]
PARTS: dict[str, tuple[Cases, float]] = {
    "inputs": (inputs.run, 0.33),
    "flips": (flips.run, 0.1),
    "faults": (faults.run, 0.3),
    "secrets": (secrets.run, 0.18),
}
"""By part, what yields its cases, and the share of the time within which they may start; the rest is for setting up."""


class Progress:
    """Prints progress lines and, if verbose, failed cases."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.started = self._told = time.monotonic()
        self._counts: dict[str, list[int]] = {}

    def say(self, text: str) -> None:
        """Prints one line with the elapsed time."""
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", file=sys.stderr, flush=True)

    def tell(self, verdict: Verdict) -> None:
        """Counts a finished case."""
        counts = self._counts.setdefault(verdict.section, [0, 0])
        counts[0] += 1
        counts[1] += verdict.failed
        if verdict.failed and self.verbose:
            self.say(f"FAILED {verdict.section}, {verdict.kind}: {verdict.name}\n    {verdict.why}")
            print("".join(f"    {line}\n" for line in verdict.output.splitlines()), file=sys.stderr, flush=True)
        if time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            self.say(f"{verdict.section}: {counts[0]} cases, {counts[1]} of them failed")


def run_parts(parts: Sequence[str], seed: int, seconds_in_all: float, folder: Path, progress: Progress) -> dict[str, Any]:
    """Runs all cases of the parts, as far as time suffices; returns the summary."""
    verdicts: list[Verdict] = []
    left: dict[str, int] = {}
    seconds: dict[str, float] = {}
    with Runner(folder / "runner") as runner:
        progress.say("warm processes are up; making data sets and runs")
        material = Material(folder / "material", runner)
        for part in parts:
            cases, share = PARTS[part]
            started = time.monotonic()
            progress.say(f"{part}: begins")
            todo = list(cases(material, folder / part, seed))

            def one(case: Callable[[], Verdict], until: float = started + share * seconds_in_all) -> Verdict | None:
                return case() if time.monotonic() < until else None

            def done(verdict: Verdict | None) -> None:
                if verdict:
                    progress.tell(verdict)

            found = [verdict for verdict in runner.map(one, todo, done) if verdict]
            verdicts += found
            left[part] = len(todo) - len(found)
            seconds[part] = time.monotonic() - started
    summary = report.summarize(verdicts, left)
    for part, row in summary["rows"].items():
        row["seconds"] = seconds[part]
    return summary


def main(words: Sequence[str] | None = None) -> int:
    arguments = _arguments(words)
    progress = Progress(arguments.verbose)
    with tempfile.TemporaryDirectory(prefix="avvp-robust-", ignore_cleanup_errors=True) as folder:
        summary = run_parts(arguments.only, arguments.seed, 60 * arguments.minutes, Path(folder), progress)
    summary = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "commit": _commit(),
        "seed": arguments.seed,
        "seconds": time.monotonic() - progress.started,
        "cpu_seconds": sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]),
        **summary,
    }
    for failure in summary["failures"]:
        print(f"FAILED {failure['section']}, {failure['kind']}: {failure['case']}: {failure['why']}")
    print(report.plain(report.table(summary)))
    progress.say("done")
    if arguments.out:
        arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown(summary))
    return 1 if summary["failures"] else 0


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of moments, places and bits")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts; cases that do not fit in are counted")
    parser.add_argument("--verbose", action="store_true", help="show each failed case's commands and output")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write counts and failed cases as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    arguments = parser.parse_args(words)
    arguments.only = arguments.only.split(",")
    if unknown := [part for part in arguments.only if part not in PARTS]:
        parser.error(f"--only: no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return arguments


def _commit() -> str:
    told = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
