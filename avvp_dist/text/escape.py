"""Makes foreign text safe to show: control characters made visible, and the escapes of each format that is written.

Ids, class names, paths and config values come from files and command lines of others. A terminal obeys escape sequences in
them, rich obeys ``[markup]``, a spreadsheet evaluates ``=cells``, Markdown and LaTeX have signs of their own.
"""

from __future__ import annotations

import logging
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich takes a tenth of a second that programs without a terminal need not spend
    from rich.text import Text

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, formatting (bidi marks), lone surrogates, line and paragraph separators
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "★": r"$\star$",
    "\N{DAGGER}": r"$\dagger$",
}
_MARKDOWN = {
    **{sign: f"\\{sign}" for sign in "\\|*_`~"},
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
}


def visible(text: object, keep: str = "\n") -> str:
    r"""``text`` with characters that a terminal obeys, or that nobody sees, as ``\x1b``-like escapes.

    Args:
        text: anything; its ``str`` is taken.
        keep: control characters that stay.
    """
    found = str(text)
    if found.isprintable():
        return found
    return "".join(sign if sign in keep or unicodedata.category(sign) not in _HIDDEN else _escape(sign) for sign in found)


def line(text: object) -> str:
    r"""`visible` in one line: a line break becomes ``\n``."""
    return visible(text, keep="")


def cell(text: object, style: str = "") -> Text:
    """A text that rich prints as it is, wherever it would read a string as markup."""
    from rich.text import Text

    return Text(visible(text), style=style)


def markdown(text: object) -> str:
    """For a line or a table cell of Markdown, without effect on what stands around it."""
    found = "".join(_MARKDOWN.get(sign, sign) for sign in visible(" ".join(str(text).split())))
    found = found.replace("](", "]\\(").replace("]:", "]\\:")  # a link, and what defines one
    return f"\\{found}" if found.startswith(("#", "+ ", "- ", "=")) else found


def latex(text: object) -> str:
    """For one line of LaTeX."""
    return "".join(_LATEX.get(sign, sign) for sign in visible(" ".join(str(text).split())))


def csv(text: object) -> str:
    """For a cell of a CSV file: what a spreadsheet would evaluate as a formula gets a leading apostrophe; numbers stay."""
    found = str(text)
    if found.lstrip().startswith(("=", "+", "-", "@")) or found.startswith(("\t", "\r", "\n")):
        try:
            float(found)
        except ValueError:
            found = f"'{found}"
    return line(found)


def mathtext(text: object) -> str:
    """For matplotlib, which takes text between two dollar signs for mathematics."""
    return visible(text).replace("$", r"\$")


def shortened(text: str, width: int) -> str:
    """``text`` in at most ``width`` characters; of a longer one the middle is left out, as a remedy stands at the end."""
    if len(text) <= width:
        return text
    tail = width // 3
    return f"{text[: width - tail - 3]} … {text[-tail:]}"


class VisibleRecords(logging.Filter):
    """Makes the messages of a handler's log records `visible`; lets all of them through."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        message = record.getMessage()
        shown = visible(message, keep="\n\t")
        if shown != message:  # handlers that come later get the others as they are
            record.msg, record.args = shown, ()
        return True


def _escape(sign: str) -> str:
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(sign)
    number = ord(sign)
    if number < 0x100:
        return named or f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
