"""A table of text, shown in a terminal or written as Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from avvp_dist.text import escape
from avvp_dist.text.escape import cell, visible

_TEXT_WIDTH = 12  # to which columns of text can be narrowed before columns of numbers continue in another block
_GAP, _EDGES = 2, 2  # between two columns, and outside the first and the last


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


class TerminalTable:
    """A `TextTable` for a terminal; columns of numbers that do not fit beside each other continue in further blocks."""

    def __init__(self, table: TextTable) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one block, or several that repeat the columns of text."""
        title = self.table.title
        for columns in self._blocks(options.max_width):
            yield cell(title, style="bold")
            yield self._block(columns)
            title = f"{self.table.title} (continued)"

    def _blocks(self, width: int) -> Iterator[list[int]]:
        """Yield the columns of numbers of each block, at least one."""
        texts, block = self.table.text_columns, list[int]()
        available = width - _EDGES - sum(min(self._width(number), _TEXT_WIDTH) + _GAP for number in range(texts))
        for number in range(texts, len(self.table.headers)):
            if block and sum(self._width(column) + _GAP for column in [*block, number]) > available:
                yield block
                block = []
            block.append(number)
        yield block

    def _width(self, column: int) -> int:
        cells = [self.table.headers[column], *(row[column] for row in self.table.rows)]
        return max(cell_len(line) for content in cells for line in visible(content).split("\n"))

    def _block(self, columns: Sequence[int]) -> Table:
        rendered = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        shown = [*range(self.table.text_columns), *columns]
        for number in shown:
            text = number < self.table.text_columns
            rendered.add_column(
                cell(self.table.headers[number]),
                justify="left" if text else "right",
                overflow="fold",
                no_wrap=not text,
                min_width=min(self._width(number), _TEXT_WIDTH) if text else None,
            )
        for row in self.table.rows:
            rendered.add_row(*(cell(row[number]) for number in shown))
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
