"""What an attacker chose must never act on a terminal or mislead an eye."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from vedette_cli.text import safe, shorten


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain /usr/bin/ls", "plain /usr/bin/ls"),
        ("größe 字 🦀", "größe 字 🦀"),
        ("\x1b[31mred", "\\e[31mred"),
        ("\x1b]0;title\x07", "\\e]0;title\\x07"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x9b31m", "\\x9b31m"),
        ("\x7f\x00", "\\x7f\\x00"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("line\u2028line", "line\\u2028line"),
        (b"\xff\xfe".decode("utf-8", "surrogateescape"), "\\xff\\xfe"),
        ("[bold red]not markup[/]", "[bold red]not markup[/]"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_shows_the_printable_and_escapes_the_rest(raw: str, shown: str) -> None:
    assert safe(raw) == shown


def test_keeps_newlines_only_on_request() -> None:
    assert safe("a\nb\x1b", keep_newlines=True) == "a\nb\\e"


@given(st.text(st.characters()), st.integers(0, 40))
def test_is_printable_and_never_wider_than_asked(raw: str, limit: int) -> None:
    shown = safe(raw, limit=limit)
    assert shown.isprintable()
    assert cell_len(shown) <= limit


@given(st.text(st.characters(), min_size=1))
def test_says_when_something_was_left_out(raw: str) -> None:
    whole = safe(raw)
    shown = safe(raw, limit=5)
    assert shown == whole if cell_len(whole) <= 5 else shown.endswith("…")


def test_cuts_wide_characters_whole() -> None:
    assert shorten("字字字字", 5) == "字字…"
    assert shorten("字字字字", 4) == "字…"


def test_a_megabyte_is_cut_before_it_is_escaped() -> None:
    assert safe("\x1b" * 1_000_000, limit=10) == "\\e\\e\\e\\e\\…"
