"""Robustness benchmark: injects faults, bad inputs, bit flips and secrets into commands, and counts which of them pass.

    python -m benchmarks.robustness [--only faults,inputs,flips,secrets] [--seed S] [--minutes 10] [--verbose]
        [--out FILE] [--markdown FILE]

faults   kill -9, SIGTERM and Ctrl-C at random moments of train, pack and evaluate; full disks; an object store and a
         tracking server that fail, stall or send wrong responses; damaged checkpoints, stage artifacts and shards; two
         writers. Afterwards the same command runs to its end; its result must equal that of an undisturbed run exactly
inputs   bad settings, files, URLs, targets and environments: exit code 2 and one message that names the problem, no
         traceback, less than 64 KB of output, no incomplete files
flips    one bit flipped in shards, labels, index, stage artifacts, checkpoints, models, scores and configs: the file is
         rejected, or recomputed with a message that names it; or the bit has no effect, proven by an independent
         reader
secrets  unique passwords and tokens in addresses, environment and files: all files, output and databases that commands
         write are searched for them

The data are small and synthetic. Two warm processes fork for every command, since importing torch takes seconds; cases that
need a new process start one. Each part has a share of the minutes, which is sufficient on two otherwise idle CPU cores;
cases that do not start in time are counted. Exit code 1 if any case failed: those cases are listed, with --verbose including
their commands and output.
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

from benchmarks.robustness_cases import faults, flips, inputs, outcomes, secrets
from benchmarks.robustness_cases.fixtures import Fixtures
from benchmarks.robustness_cases.outcomes import Verdict
from benchmarks.robustness_cases.running import Runner

Cases = Callable[[Fixtures, Path, int], Iterator[Callable[[], Verdict]]]
PARTS: dict[str, tuple[Cases, float]] = {
    "inputs": (inputs.run, 0.33),
    "flips": (flips.run, 0.1),
    "faults": (faults.run, 0.3),
    "secrets": (secrets.run, 0.18),
}
"""Part -> generator of its cases, and the share of the time in which they can start; the rest is for setup."""


class Progress:
    """Prints progress lines and, if verbose, failed cases."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.started = self._last_line = time.monotonic()
        self._counts: dict[str, list[int]] = {}

    def log(self, text: str) -> None:
        """Print one line with the elapsed time."""
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", file=sys.stderr, flush=True)

    def count(self, verdict: Verdict) -> None:
        """Count a finished case, and print it if it failed and the output is verbose."""
        counts = self._counts.setdefault(verdict.section, [0, 0])
        counts[0] += 1
        counts[1] += verdict.failed
        if verdict.failed and self.verbose:
            self.log(f"FAILED {verdict.section}, {verdict.kind}: {verdict.name}\n    {verdict.why}")
            print("".join(f"    {line}\n" for line in verdict.output.splitlines()), file=sys.stderr, flush=True)
        if time.monotonic() - self._last_line > 10:
            self._last_line = time.monotonic()
            self.log(f"{verdict.section}: {counts[0]} cases, {counts[1]} of them failed")


def run_parts(parts: Sequence[str], seed: int, seconds_in_all: float, folder: Path, progress: Progress) -> dict[str, Any]:
    """Run the cases of the parts that can start in time; return the summary."""
    verdicts: list[Verdict] = []
    left: dict[str, int] = {}
    seconds: dict[str, float] = {}
    with Runner(folder / "runner") as runner:
        progress.log("warm processes are ready; creating data sets and runs")
        fixtures = Fixtures(folder / "fixtures", runner)
        for part in parts:
            cases, share = PARTS[part]
            started = time.monotonic()
            progress.log(f"{part}: started")
            todo = list(cases(fixtures, folder / part, seed))

            def one(case: Callable[[], Verdict], until: float = started + share * seconds_in_all) -> Verdict | None:
                return case() if time.monotonic() < until else None

            def done(verdict: Verdict | None) -> None:
                if verdict:
                    progress.count(verdict)

            found = [verdict for verdict in runner.map(one, todo, done) if verdict]
            verdicts += found
            left[part] = len(todo) - len(found)
            seconds[part] = time.monotonic() - started
    summary = outcomes.summarize(verdicts, left)
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
    print(outcomes.plain(outcomes.table(summary)))
    progress.log("done")
    if arguments.out:
        arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(outcomes.markdown(summary))
    return 1 if summary["failures"] else 0


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="seed of random moments, positions and bits")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all parts; cases that do not fit are counted")
    parser.add_argument("--verbose", action="store_true", help="show each failed case's commands and output")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write counts and failed cases as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    arguments = parser.parse_args(words)
    arguments.only = arguments.only.split(",")
    if unknown := [part for part in arguments.only if part not in PARTS]:
        parser.error(f"--only: unknown parts {', '.join(unknown)}; valid: {', '.join(PARTS)}")
    return arguments


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
