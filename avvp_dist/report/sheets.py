"""A table of text, shown on a terminal or written as Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from avvp_dist.text import escape
from avvp_dist.text.escape import cell, visible


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Attributes:
        title: what it shows, in one line.
        heads: name of each column.
        rows: a cell for each column; a line break parts what belongs together, such as a mean and its interval.
        words: how many columns at the left hold words; the others hold numbers.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


def terminal(sheet: Sheet) -> Table:
    """For a terminal."""
    title = cell(sheet.title, style="bold")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for number, head in enumerate(sheet.heads):
        left = number < sheet.words
        table.add_column(
            cell(head), justify="left" if left else "right", overflow="fold", no_wrap=not left, min_width=8 if left else None
        )
    for row in sheet.rows:
        table.add_row(*map(cell, row))
    return table


def markdown(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """As Markdown tables under their titles, the notes as a list below."""
    parts = []
    for sheet in sheets:
        lines = [f"**{escape.markdown(sheet.title)}**", "", _bar(sheet.heads)]
        lines.append(f"|{'---|' * sheet.words}{'--:|' * (len(sheet.heads) - sheet.words)}")
        parts.append("\n".join([*lines, *(_bar(row) for row in sheet.rows)]) + "\n")
    parts.append("\n".join(f"- {escape.markdown(note)}" for note in notes) + "\n")
    return "\n".join(parts)


def latex(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """As LaTeX tables (they need ``booktabs``), the notes as comments above."""
    lines = [f"% {visible(' '.join(note.split()))}" for note in notes]
    for sheet in sheets:
        columns = "l" * sheet.words + "r" * (len(sheet.heads) - sheet.words)
        lines += ["", r"\begin{table}[t]", r"\centering", r"\small", rf"\caption{{{escape.latex(sheet.title)}}}"]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(sheet.heads), r"\midrule"]
        lines += [_row(row) for row in sheet.rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(escape.markdown(each) for each in cells)} |"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(_cell(cell) for cell in cells) + r" \\"


def _cell(content: str) -> str:
    lines = [escape.latex(line) for line in content.split("\n")]
    # {} keeps the [ of an interval from being read as the line break's own argument
    if len(lines) == 1:
        return "{}" * lines[0].startswith("[") + lines[0]
    return r"\shortstack[r]{" + r"\\{}".join(lines) + "}"
