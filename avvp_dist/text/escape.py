"""Makes untrusted text safe to display: visible control characters, and the escapes of each output format.

Ids, class names, paths and config values come from other people's files and command lines. A terminal executes escape
sequences in them, rich interprets ``[markup]``, a spreadsheet evaluates ``=cells``, and Markdown and LaTeX have their own
special characters.
"""

from __future__ import annotations

import logging
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing rich takes 0.1 s, which programs without a terminal should not spend
    from rich.text import Text

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, formatting (bidi), lone surrogates, line and paragraph separators
_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
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
    **{character: f"\\{character}" for character in "\\|*_`~"},
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
}


def visible(text: object, keep: str = "\n") -> str:
    r"""Replace invisible characters and those that control a terminal by escapes such as ``\x1b``.

    Args:
        text: any object; its ``str`` is used.
        keep: control characters to keep.
    """
    found = str(text)
    if found.isprintable():
        return found
    return "".join(
        character if character in keep or unicodedata.category(character) not in _HIDDEN else _escape(character)
        for character in found
    )


def line(text: object) -> str:
    r"""`visible`, on one line: a line break becomes ``\n``."""
    return visible(text, keep="")


def cell(text: object, style: str = "") -> Text:
    """Text that rich prints unchanged where it would interpret a string as markup."""
    from rich.text import Text

    return Text(visible(text), style=style)


def markdown(text: object) -> str:
    """Escape text for a line or a table cell of Markdown."""
    found = "".join(_MARKDOWN.get(character, character) for character in visible(" ".join(str(text).split())))
    found = found.replace("](", "]\\(").replace("]:", "]\\:")  # links and link definitions
    return f"\\{found}" if found.startswith(("#", "+ ", "- ", "=")) else found


def latex(text: object) -> str:
    """Escape text for one line of LaTeX."""
    return "".join(_LATEX.get(character, character) for character in visible(" ".join(str(text).split())))


def csv(text: object) -> str:
    """Escape text for a cell of a CSV file: what a spreadsheet would evaluate gets a leading apostrophe; numbers do not."""
    found = str(text)
    if found.lstrip().startswith(("=", "+", "-", "@")) or found.startswith(("\t", "\r", "\n")):
        try:
            float(found)
        except ValueError:
            found = f"'{found}"
    return line(found)


def mathtext(text: object) -> str:
    """Escape text for matplotlib, which typesets text between two dollar signs as mathematics."""
    return visible(text).replace("$", r"\$")


def shortened(text: str, width: int) -> str:
    """Shorten ``text`` to ``width`` characters by removing its middle, since the end of a message states the remedy."""
    if len(text) <= width:
        return text
    tail = width // 3
    return f"{text[: width - tail - 3]} … {text[-tail:]}"


class VisibleRecords(logging.Filter):
    """Makes the messages of a handler's log records `visible`; filters none of them out."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        message = record.getMessage()
        shown = visible(message, keep="\n\t")
        if shown != message:  # later handlers get unaffected records unchanged
            record.msg, record.args = shown, ()
        return True


def _escape(character: str) -> str:
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    number = ord(character)
    if number < 0x100:
        return named or f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
