"""Bad inputs: every command answers them with exit code 2 and one message that names what is wrong, and leaves nothing."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.robustness_cases.material import Material
from benchmarks.robustness_cases.report import Verdict, verdict
from benchmarks.robustness_cases.running import Result

LARGEST = 64 * 1024
"""Bytes that an answer may have."""
_MESSAGE = re.compile(r"^(\[rank \d+\] )?error: ", re.MULTILINE)
_USAGE = re.compile(r"^(Usage:|.*╭─ Error)", re.MULTILINE)
_NOISE = re.compile(r"Traceback \(most recent call last\)|Exception ignored in|was never (retrieved|awaited)|core dumped")
_LOCKS = re.compile(r"(^|/)\.?[^/]*lock[^/]*$")
_BUG = re.compile(r"this is a bug", re.IGNORECASE)


@dataclass(frozen=True)
class BadInput:
    """One command that is asked for something that cannot be.

    Attributes:
        kind: what it is one of.
        words: command line with the placeholders of `Material`.
        says: pattern of what the answer must name, whatever the case of its letters.
        prepare: what is made in the case's folder first.
        codes: exit codes that are right; 0 where the input is to be accepted.
        env: on top of the environment.
        may_leave: pattern of paths, relative to the case's folder, that the command may leave or change.
        seconds: within which it has to answer.
        cold: whether a new process is needed, since imports or the start of Python matter.
        note: tells the case from others of the same command line.
        table: whether the answer is a table of what is wrong in place of a message.
    """

    kind: str
    words: str | Sequence[str]
    says: str
    prepare: Sequence[Callable[[Path, Material], object]] = ()
    codes: tuple[int, ...] = (2,)
    env: Mapping[str, str | None] = field(default_factory=dict)
    may_leave: str = ""
    seconds: float = 20.0
    cold: bool = False
    note: str = ""
    table: bool = False

    @property
    def name(self) -> str:
        """The case in a line."""
        words = self.words if isinstance(self.words, str) else " ".join(self.words)
        env = "".join(f"{name}={value} " for name, value in self.env.items())
        note = f" ({self.note})" if self.note else ""
        return f"{env}{words if len(words) < 200 else words[:200] + '...'}{note}"


def run(
    material: Material, folder: Path, seed: int, cases: Sequence[BadInput] | None = None
) -> Iterator[Callable[[], Verdict]]:
    """A function for each case, in random order, so that a run that is cut short has tried a bit of everything."""
    chosen = list(all_cases() if cases is None else cases)
    random.Random(seed).shuffle(chosen)
    for number, case in enumerate(chosen):
        yield lambda case=case, here=folder / str(number): _try(case, material, here)


def all_cases() -> list[BadInput]:
    """Every case there is."""
    from benchmarks.robustness_cases import input_contents, input_documents, input_files, input_settings

    return [*input_settings.cases(), *input_files.cases(), *input_contents.cases(), *input_documents.cases()]


def _try(case: BadInput, material: Material, here: Path) -> Verdict:
    here.mkdir(parents=True)
    for step in case.prepare:
        step(here, material)
    before = _seen(here)
    run = material.runner.cold if case.cold else material.runner.run
    result = run(material.expand(case.words, here), here, case.env, seconds=case.seconds)
    why = judge(case, result, _changes(before, _seen(here)))
    if not why:
        shutil.rmtree(here, ignore_errors=True)
    return verdict("inputs", case.kind, case.name, why, [result])


def judge(case: BadInput, result: Result, changes: Sequence[str] = ()) -> str:
    """What is wrong with an answer; empty where nothing is."""
    problems = []
    if result.timed_out:
        problems.append(f"no answer within {case.seconds:.0f} s")
    elif result.code not in case.codes:
        problems.append(f"exit code {result.code}, expected {' or '.join(map(str, case.codes))}")
    if found := _NOISE.search(result.text):
        problems.append(f"{found.group()!r} in the output")
    if _BUG.search(result.text):
        problems.append("answered as a bug of the program")
    if result.size > LARGEST:
        problems.append(f"{result.size:,} bytes of output")
    if "\x1b" in result.text:
        problems.append("terminal escapes in the output")
    if result.code == 2 and not result.timed_out and not case.table:
        messages = len(_MESSAGE.findall(result.err))
        if messages != 1 and not (messages == 0 and _USAGE.search(result.err)):
            problems.append(f"{messages} messages")
    if result.code in case.codes and not re.search(case.says, " ".join(result.text.split()), re.IGNORECASE):
        problems.append(f"nothing in the answer matches {case.says!r}")
    left = [path for path in changes if not _LOCKS.search(path) and not (case.may_leave and re.match(case.may_leave, path))]
    if left and result.code != 0:
        problems.append(f"left or changed {', '.join(sorted(left)[:5])}")
    return "; ".join(problems)


def _seen(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What tells every file and folder below ``folder`` from another version of it."""
    found = {}
    for path in folder.rglob("*"):
        about = path.lstat()
        found[str(path.relative_to(folder))] = (
            (0, 0, 0) if path.is_dir() else (about.st_ino, about.st_size, about.st_mtime_ns)
        )
    return found


def _changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    return [path for path in {*before, *after} if before.get(path) != after.get(path)]
