"""Untrusted text has no effect on terminals and in files."""

import csv
import io
import logging
import unicodedata

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text
from rich.console import Console

from avvp_dist.text import escape

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b2J",
    "\u202etxt.exe",
    "a\u200bb",
    "a\x00b",
    "\udcff",
    "\u2028",
    "\x7f",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_terminal_control_characters_are_shown_as_escapes(hostile):
    shown = escape.visible(hostile)
    assert shown.isprintable()
    assert "\\" in shown
    shown.encode()


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_becomes_printable_and_printable_text_is_unchanged(given):
    shown = escape.line(given)
    assert not [character for character in shown if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    if given.isprintable():
        assert shown == given


def test_line_breaks_are_kept_only_in_multiline_text():
    assert escape.visible("a\nb\rc") == "a\nb\\rc"
    assert escape.line("a\nb") == "a\\nb"


@pytest.mark.parametrize(
    "markup", ["[/x]", "[red]a[/red]", "[link=file:///etc]x[/link]", "\\[bold]", ":warning:", "[@click=x]"]
)
def test_rich_prints_markup_literally(markup):
    out = io.StringIO()
    Console(file=out, width=200, force_terminal=True).print(escape.cell(markup))
    assert markup in out.getvalue()


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-2+3", "'-2+3"),
        ("  =1", "'  =1"),
        ("\t=1", "'\\t=1"),
        ("\r=1", "'\\r=1"),
        ("-0.25", "-0.25"),
        ("+1e-3", "+1e-3"),
        ("lr=0.1", "lr=0.1"),
        ("Speech, Dog", "Speech, Dog"),
        (None, "None"),
    ],
)
def test_csv_cells_are_not_formulas_and_numbers_are_unchanged(cell, written):
    assert escape.csv(cell) == written
    sink = io.StringIO()
    csv.writer(sink).writerow([escape.csv(cell), "next"])
    assert list(csv.reader([sink.getvalue()])) == [[written, "next"]]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),
        ("`code`", r"\`code\`"),
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y&gt;"),
        ("&lt;", "&amp;lt;"),
        ("a\nb", "a b"),
        ("![x](http://e)", r"![x]\(http://e)"),
        ("# heading", r"\# heading"),
        ("~~gone~~", r"\~\~gone\~\~"),
        ("50.1 [48.0, 52.2]", "50.1 [48.0, 52.2]"),
        ("Frying_(food)", r"Frying\_(food)"),
        ("\x1b[31m", r"\\x1b[31m"),
    ],
)
def test_markdown_is_escaped(given, written):
    assert escape.markdown(given) == written


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("50 %", r"50 \%"),
        ("a\n\\end{document}", r"a \textbackslash{}end\{document\}"),
        ("$x^2$ & #1", r"\$x\textasciicircum{}2\$ \& \#1"),
    ],
)
def test_latex_is_escaped(given, written):
    assert escape.latex(given) == written


@pytest.mark.parametrize("given", ["$x$", "$$", r"\$a$", "$\\frac{$", "cost $5"])
def test_matplotlib_text_is_not_mathematics(given):
    with matplotlib.rc_context({"text.parse_math": True}):
        assert not is_math_text(escape.mathtext(given))
    assert escape.mathtext(given).replace(r"\$", "$") == given


def test_log_records_have_no_control_characters():
    record = logging.LogRecord("x", logging.INFO, "", 0, "video %s:\n  - gone", ("\x1b[2J",), None)
    assert escape.VisibleRecords().filter(record)
    assert record.getMessage() == "video \\x1b[2J:\n  - gone"


def test_shortened_text_keeps_its_end_with_the_remedy():
    shown = escape.shortened("problem " + "x" * 1000 + "; remedy", 60)
    assert len(shown) == 60
    assert shown.startswith("problem ")
    assert shown.endswith("; remedy")
