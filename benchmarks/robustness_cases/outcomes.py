"""Outcomes of the cases, and the tables that summarize them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.robustness_cases.running import Result

SECTIONS = {
    "faults": ("faults injected", "survived with equal results"),
    "inputs": ("bad inputs tried", "rejected with exit code 2 and one message"),
    "flips": ("single-bit flips tried", "detected, or proven without effect"),
    "secrets": ("secrets inserted", "not leaked"),
}
_MAX_CHARACTERS = 4000  # of a command's output in a report


@dataclass(frozen=True)
class Verdict:
    """The outcome of one case.

    Attributes:
        section: a key of `SECTIONS`.
        kind: kind of case, a row of the second table.
        name: name of the case.
        why: what is wrong; empty if nothing is.
        tried, good: number of faults, inputs, flips or secrets in this case, and how many of them passed.
        notes: further counts by name.
        output: output of the commands, if something is wrong.
    """

    section: str
    kind: str
    name: str
    why: str = ""
    tried: int = 1
    good: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    output: str = ""

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return self.good < self.tried or bool(self.why)


def verdict(section: str, kind: str, name: str, why: str, results: Sequence[Result] = (), tried: int = 1) -> Verdict:
    """Return a verdict on all ``tried`` together, which pass if ``why`` is empty."""
    output = "\n".join(describe(result) for result in results) if why else ""
    return Verdict(section, kind, name, why, tried, 0 if why else tried, output=output)


def describe(result: Result) -> str:
    """Return a command and its output, shortened."""
    text = result.text.strip()
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[: _MAX_CHARACTERS // 2]}\n[...]\n{text[-_MAX_CHARACTERS // 2 :]}"
    ended = "killed at its time limit" if result.timed_out else f"exit code {result.code}"
    return f"$ avvp {shlex.join(result.words)}\n{text}\n({ended}, {result.size} bytes, {result.seconds:.1f} s)"


def summarize(verdicts: Iterable[Verdict], left: dict[str, int]) -> dict[str, Any]:
    """Return counts by section and kind, and every failed case; ``left``: cases that were not run for lack of time."""
    rows: dict[str, Any] = {
        section: {"tried": 0, "good": 0, "cases": 0, "left": number, "kinds": {}} for section, number in left.items()
    }
    failures = []
    for result in verdicts:
        row = rows[result.section]
        kind = row["kinds"].setdefault(result.kind, {"tried": 0, "good": 0, "cases": 0})
        for counts in (row, kind):
            counts["tried"] += result.tried
            counts["good"] += result.good
            counts["cases"] += 1
        for name, number in result.notes.items():
            kind[name] = kind.get(name, 0) + number
        if result.failed:
            failures.append(
                {
                    "section": result.section,
                    "kind": result.kind,
                    "case": result.name,
                    "why": result.why,
                    "output": result.output,
                }
            )
    order = [name for name in SECTIONS if name in rows]
    return {"rows": {name: rows[name] for name in order}, "failures": failures}


def table(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the table: a header, and one row per section."""
    lines = [("cases", "tried", "passed", "failed")]
    for name, row in summary["rows"].items():
        tested, passed = SECTIONS[name]
        left = f" ({row['left']} cases not run for lack of time)" if row["left"] else ""
        lines.append(
            (f"{tested}; {passed}{left}", f"{row['tried']:,}", f"{row['good']:,}", f"{row['tried'] - row['good']:,}")
        )
    return lines


def plain(lines: Sequence[Sequence[str]]) -> str:
    """Return the table for a terminal."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def markdown(summary: dict[str, Any]) -> str:
    """Return the table, and one table per section, as Markdown."""
    head, *rows = table(summary)
    lines = [f"| {' | '.join(head)} |", "|---|--:|--:|--:|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    for name, row in summary["rows"].items():
        lines += [
            f"**{SECTIONS[name][0].capitalize()}, by kind**",
            "",
            "| kind | tried | passed | |",
            "|---|--:|--:|---|",
        ]
        for kind, counts in row["kinds"].items():
            more = ", ".join(f"{value:,} {key}" for key, value in counts.items() if key not in ("tried", "good", "cases"))
            lines.append(f"| {kind} | {counts['tried']:,} | {counts['good']:,} | {more} |")
        lines.append("")
    return "\n".join(lines)
