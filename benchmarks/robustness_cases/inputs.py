"""Bad inputs: every command must end with exit code 2 and one message that names the problem, and leave no files."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.robustness_cases.fixtures import Fixtures
from benchmarks.robustness_cases.outcomes import Verdict, verdict
from benchmarks.robustness_cases.running import Result

MAX_OUTPUT = 64 * 1024
"""Bytes of output that a command can write."""
_MESSAGE = re.compile(r"^(\[rank \d+\] )?error: ", re.MULTILINE)
_USAGE = re.compile(r"^(Usage:|.*╭─ Error)", re.MULTILINE)
_NOISE = re.compile(r"Traceback \(most recent call last\)|Exception ignored in|was never (retrieved|awaited)|core dumped")
_LOCKS = re.compile(r"(^|/)\.?[^/]*lock[^/]*$")
_BUG = re.compile(r"this is a bug", re.IGNORECASE)


@dataclass(frozen=True)
class BadInput:
    """One command with an input that it must reject.

    Attributes:
        kind: kind of input, a row of the table.
        words: command line, with the placeholders of `Fixtures`.
        expects: pattern that the output must match, ignoring case.
        prepare: steps that prepare the case's folder.
        codes: accepted exit codes; 0 if the input can be accepted.
        env: additional environment variables.
        may_leave: pattern of paths, relative to the case's folder, that the command can leave or change.
        seconds: time limit.
        cold: whether a new process is needed, because imports or the start of Python matter.
        note: distinguishes the case from others with the same command line.
        table: whether the output is a table of problems instead of a message.
    """

    kind: str
    words: str | Sequence[str]
    expects: str
    prepare: Sequence[Callable[[Path, Fixtures], object]] = ()
    codes: tuple[int, ...] = (2,)
    env: Mapping[str, str | None] = field(default_factory=dict)
    may_leave: str = ""
    seconds: float = 20.0
    cold: bool = False
    note: str = ""
    table: bool = False

    @property
    def name(self) -> str:
        """One line that identifies the case."""
        words = self.words if isinstance(self.words, str) else " ".join(self.words)
        env = "".join(f"{name}={value} " for name, value in self.env.items())
        note = f" ({self.note})" if self.note else ""
        return f"{env}{words if len(words) < 200 else words[:200] + '...'}{note}"


def run(
    fixtures: Fixtures, folder: Path, seed: int, cases: Sequence[BadInput] | None = None
) -> Iterator[Callable[[], Verdict]]:
    """Yield a function for each case, in random order, so that an incomplete run has tried some of every kind."""
    chosen = list(all_cases() if cases is None else cases)
    random.Random(seed).shuffle(chosen)
    for number, case in enumerate(chosen):
        yield lambda case=case, here=folder / str(number): _run_case(case, fixtures, here)


def all_cases() -> list[BadInput]:
    """Return all cases."""
    from benchmarks.robustness_cases import input_contents, input_documents, input_files, input_settings

    return [*input_settings.cases(), *input_files.cases(), *input_contents.cases(), *input_documents.cases()]


def _run_case(case: BadInput, fixtures: Fixtures, here: Path) -> Verdict:
    here.mkdir(parents=True)
    for step in case.prepare:
        step(here, fixtures)
    before = _snapshot(here)
    run = fixtures.runner.cold if case.cold else fixtures.runner.run
    result = run(fixtures.expand(case.words, here), here, case.env, seconds=case.seconds)
    why = check_answer(case, result, _changes(before, _snapshot(here)))
    if not why:
        shutil.rmtree(here, ignore_errors=True)
    return verdict("inputs", case.kind, case.name, why, [result])


def check_answer(case: BadInput, result: Result, changes: Sequence[str] = ()) -> str:
    """Return what is wrong with a command's result; empty if it is as expected."""
    problems = []
    if result.timed_out:
        problems.append(f"not finished within {case.seconds:.0f} s")
    elif result.code not in case.codes:
        problems.append(f"exit code {result.code}, expected {' or '.join(map(str, case.codes))}")
    if found := _NOISE.search(result.text):
        problems.append(f"{found.group()!r} in the output")
    if _BUG.search(result.text):
        problems.append("reported as a bug of the program")
    if result.size > MAX_OUTPUT:
        problems.append(f"{result.size:,} bytes of output")
    if "\x1b" in result.text:
        problems.append("terminal escapes in the output")
    if result.code == 2 and not result.timed_out and not case.table:
        messages = len(_MESSAGE.findall(result.err))
        if messages != 1 and not (messages == 0 and _USAGE.search(result.err)):
            problems.append(f"{messages} messages")
    if result.code in case.codes and not re.search(case.expects, " ".join(result.text.split()), re.IGNORECASE):
        problems.append(f"nothing in the output matches {case.expects!r}")
    left = [path for path in changes if not _LOCKS.search(path) and not (case.may_leave and re.match(case.may_leave, path))]
    if left and result.code != 0:
        problems.append(f"left or changed {', '.join(sorted(left)[:5])}")
    return "; ".join(problems)


def _snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, size and time of every file below ``folder``, by which changes are detected."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        found[str(path.relative_to(folder))] = (0, 0, 0) if path.is_dir() else (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


def _changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    return [path for path in {*before, *after} if before.get(path) != after.get(path)]
