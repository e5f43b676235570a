"""A table of text, shown in a terminal or written as Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from avvp_dist.text import escape
from avvp_dist.text.escape import cell, visible


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        title: one line.
        headers: name of each column.
        rows: a cell for each column; line breaks inside a cell separate, for example, a mean and its interval.
        text_columns: number of columns at the left that hold text; the others hold numbers.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


def terminal(table: TextTable) -> Table:
    """Return the table for a terminal."""
    title = cell(table.title, style="bold")
    rendered = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for number, header in enumerate(table.headers):
        text = number < table.text_columns
        rendered.add_column(
            cell(header),
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=not text,
            min_width=8 if text else None,
        )
    for row in table.rows:
        rendered.add_row(*map(cell, row))
    return rendered


def markdown(tables: Sequence[TextTable], notes: Sequence[str]) -> str:
    """Return Markdown tables under their titles, followed by the notes as a list."""
    parts = []
    for table in tables:
        lines = [f"**{escape.markdown(table.title)}**", "", _markdown_row(table.headers)]
        lines.append(f"|{'---|' * table.text_columns}{'--:|' * (len(table.headers) - table.text_columns)}")
        parts.append("\n".join([*lines, *(_markdown_row(row) for row in table.rows)]) + "\n")
    parts.append("\n".join(f"- {escape.markdown(note)}" for note in notes) + "\n")
    return "\n".join(parts)


def latex(tables: Sequence[TextTable], notes: Sequence[str]) -> str:
    """Return LaTeX tables, which need ``booktabs``, preceded by the notes as comments."""
    lines = [f"% {visible(' '.join(note.split()))}" for note in notes]
    for table in tables:
        columns = "l" * table.text_columns + "r" * (len(table.headers) - table.text_columns)
        lines += ["", r"\begin{table}[t]", r"\centering", r"\small", rf"\caption{{{escape.latex(table.title)}}}"]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(table.headers), r"\midrule"]
        lines += [_latex_row(row) for row in table.rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(escape.markdown(content) for content in cells)} |"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(_latex_cell(content) for content in cells) + r" \\"


def _latex_cell(content: str) -> str:
    lines = [escape.latex(line) for line in content.split("\n")]
    # {} keeps the [ of an interval from being read as an argument of the preceding line break
    if len(lines) == 1:
        return "{}" * lines[0].startswith("[") + lines[0]
    return r"\shortstack[r]{" + r"\\{}".join(lines) + "}"
