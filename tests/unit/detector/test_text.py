"""Hostile text made fit to show, and secrets taken out of it."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_detector.config import DEFAULT_REDACTED_OPTIONS, DEFAULT_REDACTION
from vedette_detector.text import REDACTED, Redactor, safe, safe_text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"/usr/bin/true", "/usr/bin/true"),
        (b"a\x1b[31mred", "a\\x1b[31mred"),
        (b"line\nbreak\0nul", "line\\x0abreak\\x00nul"),
        (b"not utf-8 \xff\xfe", "not utf-8 \\xff\\xfe"),
        ("rtl \u202egpj.exe", "rtl \\u202egpj.exe"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("sur\ud800rogate", "sur\\ud800rogate"),
        ("Übergröße 漢字", "Übergröße 漢字"),
    ],
)
def test_what_steers_a_terminal_or_a_reader_is_spelt_out(raw: bytes | str, shown: str) -> None:
    assert safe_text(raw) == shown


def test_a_long_text_says_how_much_is_missing() -> None:
    assert safe_text("x" * 5000, 10) == "x" * 10 + "…[+4990]"


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_no_input_gives_anything_but_printable_text(raw: bytes | str) -> None:
    shown = safe_text(raw)
    shown.encode("utf-8")
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert safe_text(shown) == shown


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=20,
)


@given(_JSON)
def test_any_nesting_becomes_json(value: object) -> None:
    json.dumps(safe(value)).encode("utf-8")


REDACTOR = Redactor(DEFAULT_REDACTION, DEFAULT_REDACTED_OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["mysql", "--password=hunter2"], ["mysql", f"--password={REDACTED}"]),
        (["mysql", "--password", "hunter2", "-u", "root"], ["mysql", "--password", REDACTED, "-u", "root"]),
        (["curl", "-H", "Authorization: Bearer abc.def"], ["curl", "-H", f"Authorization: Bearer {REDACTED}"]),
        (["git", "clone", "https://me:s3cret@example.org/x"], ["git", "clone", f"https://me:{REDACTED}@example.org/x"]),
        (["env", "AWS_SECRET_ACCESS_KEY=abcd/efg"], ["env", f"AWS_SECRET_ACCESS_KEY={REDACTED}"]),
        (["x", "AKIAIOSFODNN7EXAMPLE"], ["x", REDACTED]),
        (["nmap", "-sS", "-p", "1-1024", "198.51.100.7"], ["nmap", "-sS", "-p", "1-1024", "198.51.100.7"]),
        (["ssh", "-o", "PasswordAuthentication no"], ["ssh", "-o", "PasswordAuthentication no"]),
    ],
)
def test_secrets_are_taken_out_of_arguments(arguments: list[str], shown: list[str]) -> None:
    assert REDACTOR.arguments(arguments) == shown


def test_a_pattern_that_is_not_re2_is_refused() -> None:
    with pytest.raises(ValueError, match="redaction pattern"):
        Redactor([r"(?<=a)b"], [])


def test_a_hostile_argument_does_not_stall_redaction() -> None:
    # Nested quantifiers take exponential time in backtracking engines.
    assert Redactor([r"(a+)+$"], []).text("a" * 4000 + "!") == "a" * 4000 + "!"
