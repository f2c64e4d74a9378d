from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vedette_events import _native, dns
from vedette_events.columns import Heap

FNV_OFFSET, FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def fnv1a(data: bytes) -> int:
    value = FNV_OFFSET
    for byte in data:
        value = (value ^ byte) * FNV_PRIME % 2**64
    return value


def test_fnv1a_of_the_published_vectors() -> None:
    # http://www.isthe.com/chongo/tech/comp/fnv/ (test_fnv.c)
    assert _native.fnv1a(b"") == 0xCBF29CE484222325
    assert _native.fnv1a(b"a") == 0xAF63DC4C8601EC8C
    assert _native.fnv1a(bytearray(b"foobar")) == 0x85944171F73967E8


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"x", b"/")), max_size=20))
def test_hashes_of_tails_and_basenames(tails: list[bytes]) -> None:
    heap = Heap.of(tails)
    whole = np.frombuffer(_native.tail_hashes(heap.data, heap.offsets), np.uint64).tolist()
    names = np.frombuffer(_native.basename_hashes(heap.data, heap.offsets), np.uint64).tolist()
    assert whole == [fnv1a(t) for t in tails]
    assert names == [fnv1a(t.rpartition(b"/")[2]) for t in tails]


FUNCTIONS: list[Any] = [
    _native.basename_hashes,
    _native.tail_hashes,
    _native.dns_names,
    lambda heap, offsets: _native.dns_match(heap, offsets, b"\0" * 8),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("offsets", [[0, 0], [2, 1], [1, 6], [1, 2**32 - 1], [2**32 - 1, 3], [1, 3, 2]])
def test_offsets_outside_the_heap_are_refused(function: Any, offsets: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^offsets do not lie in the heap$"):
        function(b"\0abc\0", np.array(offsets, np.uint32))


@pytest.mark.parametrize("function", [*FUNCTIONS, _native.Matcher([b"a"]).search])
@pytest.mark.parametrize("offsets", [b"", b"123", b"12345"])
def test_offsets_that_are_no_array_are_refused(function: Any, offsets: bytes) -> None:
    with pytest.raises(ValueError, match=f"^offsets: {len(offsets)} bytes are not one or more uint32$"):
        function(b"\0", offsets)


@given(st.binary(max_size=40), st.binary(max_size=40), st.lists(st.binary(min_size=1, max_size=5), max_size=3))
def test_no_offsets_make_anything_crash(heap: bytes, offsets: bytes, literals: list[bytes]) -> None:
    for function in (*FUNCTIONS, _native.Matcher(literals).search):
        try:
            function(heap, offsets)
        except ValueError as error:
            problem = str(error)
        else:
            continue
        assert problem.startswith("offsets")


# ---- matcher ----


def occurs(literal: bytes, tail: bytes) -> bool:
    """What the matcher promises, stated plainly."""
    text, wanted = b"\0" + tail.lower() + b"\0", literal.lower()
    return any(
        all(c == w or (w == 0x20 and c == 0) for c, w in zip(text[i:], wanted, strict=False))
        for i in range(len(text) - len(wanted) + 1)
    )


def search(literals: list[bytes], tails: list[bytes]) -> set[tuple[int, int]]:
    heap = Heap.of(tails)
    rows, found = _native.Matcher(literals).search(heap.data, heap.offsets)
    pairs = list(zip(np.frombuffer(rows, np.uint32).tolist(), np.frombuffer(found, np.uint32).tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    return set(pairs)


LETTERS = st.lists(st.sampled_from(b"abAB \0/_@`"), max_size=12).map(bytes)


@given(st.lists(LETTERS.filter(bool), max_size=8), st.lists(LETTERS, max_size=8))
@example([b"abc"], [b"abc"])
@example([b"\0ab\0"], [b"ab", b"ab\0", b"xab"])
def test_matcher_finds_exactly_what_occurs(literals: list[bytes], tails: list[bytes]) -> None:
    expected = {(r, i) for r, tail in enumerate(tails) for i, literal in enumerate(literals) if occurs(literal, tail)}
    assert search(literals, tails) == expected


@given(st.data(), st.sampled_from([1, 2, 3, 4, 5, 7, 9]), st.integers(0, 40))
def test_matcher_finds_long_literals_at_every_place(data: Any, shortest: int, padding: int) -> None:
    alphabet = st.sampled_from(b"abcdefgh-/.AB ")
    literals = data.draw(
        st.lists(st.lists(alphabet, min_size=shortest, max_size=14).map(bytes), min_size=1, max_size=9)
    )
    tails = [b"x" * padding + literal.upper() + data.draw(st.binary(max_size=9)) for literal in literals]
    expected = {(r, i) for r, tail in enumerate(tails) for i, literal in enumerate(literals) if occurs(literal, tail)}
    assert {(i, i) for i in range(len(literals))} <= expected
    assert search(literals, tails) == expected


@pytest.mark.parametrize("count", [1, 60, 128, 129])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8])
def test_matcher_with_many_literals_of_one_size(count: int, size: int) -> None:
    literals = [bytes([33 + i % 31, 33 + i // 31, *b"qzwvkj"])[:size].ljust(size, b"y") for i in range(count)]
    tails = [b"pre " + literal + b" post" for literal in literals] + [b"pre post"]
    expected = {(r, i) for r, tail in enumerate(tails) for i, literal in enumerate(literals) if occurs(literal, tail)}
    assert search(literals, tails) == expected


@pytest.mark.parametrize(
    ("literal", "tail", "found"),
    [
        (b"-e /bin/sh", b"nc\0-e\0/bin/sh\0", True),
        (b"nc -e", b"NC\0-E\0", True),
        (b"\0nc\0", b"nc\0-e\0", True),
        (b"\0nc\0", b"rsync\0", False),
        (b"\0-e\0", b"nc -e x\0", False),
        (b"/sh\0", b"/bin/sh", True),
        (b"/sh\0", b"/bin/shx", False),
        (b"\0\0", b"", True),
        (b"\0\0", b"a", False),
        (b"@", b"`", False),
        (b"[abc]", b"{abc}", False),
        (b"\xc4rger", b"\xe4rger", False),
    ],
)
def test_matching_rules(literal: bytes, tail: bytes, found: bool) -> None:
    assert search([literal], [tail]) == ({(0, 0)} if found else set())


def test_a_match_never_reaches_into_a_neighbour() -> None:
    assert search([b"a b", b"a\0b", b"a\0\0b"], [b"a", b"b", b"", b"a\0b"]) == {(3, 0), (3, 1)}


def test_matcher_refuses_what_it_cannot_search() -> None:
    with pytest.raises(ValueError, match=r"^literal 1 is empty$"):
        _native.Matcher([b"a", b""])
    with pytest.raises(TypeError, match=r"^literal 0 is not bytes$"):
        _native.Matcher(["a"])  # type: ignore[list-item]
    assert len(_native.Matcher([])) == 0
    assert search([], [b"a"]) == set()
    assert search([b"a"], []) == set()


# ---- DNS ----


def names(payloads: list[bytes]) -> list[bytes]:
    heap = Heap.of(payloads)
    return list(Heap(*_native.dns_names(heap.data, heap.offsets)))


def match(payloads: list[bytes], domains: list[str]) -> list[int]:
    heap = Heap.of(payloads)
    table = np.array(sorted(_native.fnv1a(d.encode()) for d in domains), np.uint64)
    rows: list[int] = np.frombuffer(_native.dns_match(heap.data, heap.offsets, table), np.uint32).tolist()
    return rows


def test_names_are_lower_case_and_unreadable_ones_empty() -> None:
    good = dns.encode_query("WWW.Example.COM")
    assert names([good, b"", good[:20], dns.encode_query(""), dns.encode_answer("a.example", "203.0.113.5")]) == [
        b"www.example.com", b"", b"", b"", b"a.example",
    ]  # fmt: skip


def test_match_takes_the_name_and_its_parents_but_not_its_children() -> None:
    asked = ["bad.example", "x.y.BAD.example", "notbad.example", "example", "bad.example.org", ""]
    queries = [dns.encode_query(n) for n in asked]
    assert match(queries, ["bad.example", "other.example", "unrelated.test"]) == [0, 1]
    assert match(queries, []) == []
    assert match([dns.encode_answer("www.bad.example", "203.0.113.5")], ["bad.example"]) == [0]


def test_a_second_question_is_matched_too() -> None:
    first, second = dns.encode_query("good.example"), dns.encode_query("bad.example")
    both = first[:5] + b"\2" + first[6:] + second[12:]
    assert match([both], ["bad.example"]) == [0]


def test_a_table_that_is_no_array_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^table: 7 bytes are not uint64$"):
        _native.dns_match(b"\0", np.array([1], np.uint32), b"1234567")


def test_parse_answer() -> None:
    message = dns.parse(dns.encode_answer("Www.Example.com", "2001:db8::5", ttl=9))
    assert message is not None
    assert (message.response, message.rcode, message.complete) == (True, 0, True)
    assert message.questions == (dns.Question(b"www.example.com", dns.TYPE_AAAA),)
    assert message.answers == (dns.Answer(b"www.example.com", dns.TYPE_AAAA, 9, "2001:db8::5"),)


def test_parse_of_a_message_cut_short_keeps_what_was_read() -> None:
    message = dns.parse(dns.encode_answer("www.example.com", "203.0.113.5")[:-1])
    assert message is not None
    assert (len(message.questions), message.answers, message.complete) == (1, (), False)
    assert dns.parse(b"12345678901") is None


@given(st.binary(max_size=300))
def test_parse_and_the_native_names_agree_on_anything(payload: bytes) -> None:
    name = names([payload])[0]
    message = dns.parse(payload)
    if message is not None and message.questions:
        assert name == message.questions[0].name
    elif name:
        assert message is not None
        assert not message.complete  # the name is whole, its type and class are not


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=20)), max_size=20))
def test_pointers_end(parts: list[tuple[int, bytes]]) -> None:
    payload = b"\0\1\1\0\0\4\0\4\0\0\0\0" + b"".join(b"\xc0" + bytes([at]) + rest for at, rest in parts)
    assert len(names([payload])[0]) <= 253
    assert match([payload], ["x"]) in ([], [0])
    assert dns.parse(payload) is not None


def test_encode_name_refuses_bad_labels() -> None:
    with pytest.raises(ValueError, match=r"has a label that is empty or longer than 63 bytes"):
        dns.encode_query("a..b")
