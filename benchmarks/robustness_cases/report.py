"""What became of every case, and the table of all."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.robustness_cases.running import Result

SECTIONS = {
    "faults": ("faults injected", "survived with equal results"),
    "inputs": ("bad inputs tried", "answered with exit code 2 and one message"),
    "flips": ("single-bit flips tried", "caught, or proven without effect"),
    "secrets": ("secrets planted", "not leaked"),
}
_SHOWN = 4000


@dataclass(frozen=True)
class Verdict:
    """What became of one case.

    Attributes:
        section: a key of `SECTIONS`.
        kind: what the case is one of.
        name: the case.
        why: what is wrong; empty where nothing is.
        tried, good: how many faults, inputs, flips or secrets it stands for, and how many of them ended well.
        notes: further counts by name.
        output: what the commands wrote, where something is wrong.
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
    """A verdict on all ``tried`` at once: good where there is no ``why``."""
    output = "\n".join(told(result) for result in results) if why else ""
    return Verdict(section, kind, name, why, tried, 0 if why else tried, output=output)


def told(result: Result) -> str:
    """A command and what it wrote, as far as a reader wants it."""
    text = result.text.strip()
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]}\n[...]\n{text[-_SHOWN // 2 :]}"
    ended = "ended at its time limit" if result.timed_out else f"exit code {result.code}"
    return f"$ avvp {shlex.join(result.words)}\n{text}\n({ended}, {result.size} bytes, {result.seconds:.1f} s)"


def summarize(verdicts: Iterable[Verdict], left: dict[str, int]) -> dict[str, Any]:
    """Counts by section and kind, and every failed case; ``left`` counts cases for which time did not suffice."""
    rows: dict[str, Any] = {
        section: {"tried": 0, "good": 0, "cases": 0, "left": number, "kinds": {}} for section, number in left.items()
    }
    failures = []
    for each in verdicts:
        row = rows[each.section]
        kind = row["kinds"].setdefault(each.kind, {"tried": 0, "good": 0, "cases": 0})
        for counts in (row, kind):
            counts["tried"] += each.tried
            counts["good"] += each.good
            counts["cases"] += 1
        for name, number in each.notes.items():
            kind[name] = kind.get(name, 0) + number
        if each.failed:
            failures.append(
                {"section": each.section, "kind": each.kind, "case": each.name, "why": each.why, "output": each.output}
            )
    order = [name for name in SECTIONS if name in rows]
    return {"rows": {name: rows[name] for name in order}, "failures": failures}


def table(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The table, a header and a row each section."""
    lines = [("what", "tried", "ended well", "not")]
    for name, row in summary["rows"].items():
        what, well = SECTIONS[name]
        left = f" ({row['left']} cases not tried: no time left)" if row["left"] else ""
        lines.append((f"{what}; {well}{left}", f"{row['tried']:,}", f"{row['good']:,}", f"{row['tried'] - row['good']:,}"))
    return lines


def plain(lines: Sequence[Sequence[str]]) -> str:
    """The table for a terminal."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def markdown(summary: dict[str, Any]) -> str:
    """The table and its kinds in Markdown."""
    head, *rows = table(summary)
    lines = [f"| {' | '.join(head)} |", "|---|--:|--:|--:|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    for name, row in summary["rows"].items():
        lines += [
            f"**{SECTIONS[name][0].capitalize()}, by kind**",
            "",
            "| kind | tried | ended well | |",
            "|---|--:|--:|---|",
        ]
        for kind, counts in row["kinds"].items():
            more = ", ".join(f"{value:,} {key}" for key, value in counts.items() if key not in ("tried", "good", "cases"))
            lines.append(f"| {kind} | {counts['tried']:,} | {counts['good']:,} | {more} |")
        lines.append("")
    return "\n".join(lines)
