"""Bytes that an attacker chose become text that is safe to show; paths are joined by name alone."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_detector.engine.text import join_path, normalise, split_args
from vedette_detector.text import safe_text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"/usr/bin/nmap -sS", "/usr/bin/nmap -sS"),
        (b"\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        (b"a\nb\tc\x00d\x7f", "a\\x0ab\\x09c\\x00d\\x7f"),
        ("Grüße 日本".encode(), "Grüße 日本"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\u202etxt.exe".encode(), "\\u202etxt.exe"),
        ("\u200b\ufeff".encode(), "\\u200b\\ufeff"),
        ("\x9b2J".encode(), "\\x9b2J"),
        ("\U000e0001".encode(), "\\U000e0001"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
    ],
)
def test_what_is_unsafe_is_escaped(raw: bytes, shown: str) -> None:
    assert safe_text(raw) == shown


@given(st.binary(max_size=60))
def test_no_bytes_make_unsafe_text(raw: bytes) -> None:
    text = safe_text(raw)
    assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(b"", []), (b"a\0", [b"a"]), (b"a\0\0", [b"a", b""]), (b"\0", [b""]), (b"a\0b", [b"a", b"b"])],
)
def test_arguments_are_split_at_their_ends(raw: bytes, expected: list[bytes]) -> None:
    assert split_args(raw) == expected


@pytest.mark.parametrize(
    ("directory", "path", "joined"),
    [
        (b"/tmp", b"x", b"/tmp/x"),
        (b"/tmp/", b"./x", b"/tmp/x"),
        (b"/tmp", b"/etc/passwd", b"/etc/passwd"),
        (b"/tmp", b"../etc//shadow", b"/etc/shadow"),
        (b"/", b"../../../x", b"/x"),
        (b"", b"a/../../b", b"../b"),
        (b"", b"", b""),
        (b"/tmp/x", b"", b"/tmp/x"),
        (b"/a", b"b/..", b"/a"),
        (b"/a\xff", b"\xfe", b"/a\xff/\xfe"),
    ],
)
def test_paths_are_joined_by_name(directory: bytes, path: bytes, joined: bytes) -> None:
    assert join_path(directory, path) == joined


@given(st.lists(st.sampled_from([b"/", b"..", b".", b"a", b"bc"]), max_size=12).map(b"".join))
def test_a_normal_path_stays_as_it_is(path: bytes) -> None:
    once = normalise(path)
    assert normalise(once) == once
    assert b".." not in once.split(b"/") or not once.startswith(b"/")
