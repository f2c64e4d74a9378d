"""The sieve in C lets through what the masks say on columns, and finds short literals as the search does."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vedette_detector.detectors.watch import WatchedValues
from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.prefilter import Prefilter
from vedette_detector.engine.segments import Segment
from vedette_detector.engine.selector import AnyLiteral, Mask, Selector
from vedette_detector.threat_lists import ThreatLists
from vedette_events import _native
from vedette_events.columns import split_batch
from vedette_events.encode import encode_event

FIELDS = {"stdin_kind": 8, "exec_bits": 16, "uid": 32, "ino": 64, "result": -32, "ctime": 64}
OPS = ("eq", "ne", "lt", "le", "gt", "ge", "any_bits", "all_bits", "no_bits")
VALUES = [0, 1, 2, 5, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, -1, -13]


def fits(field: str, value: int) -> bool:
    bits = FIELDS[field]
    return -(1 << (-bits - 1)) <= value < 1 << (-bits - 1) if bits < 0 else 0 <= value < 1 << bits


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    field = draw(st.sampled_from([*FIELDS, "raddr"]))
    if field == "raddr":
        networks = draw(
            st.lists(st.sampled_from(["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "203.0.113.7/32"]), min_size=1)
        )
        return Mask(field, "net", tuple(networks))
    if draw(st.booleans()):
        op = draw(st.sampled_from(("in_", "not_in")))
        return Mask(field, op, tuple(draw(st.lists(st.sampled_from(VALUES), max_size=8))))
    return Mask(field, draw(st.sampled_from(OPS)), draw(st.sampled_from(VALUES)))


@st.composite
def execs(draw: st.DrawFn) -> bytes:
    values: dict[str, Any] = {}
    for field in FIELDS:
        values[field] = draw(st.sampled_from([v for v in VALUES if fits(field, v)]))
    addresses = {2: ("10.1.2.3", "203.0.113.7"), 10: ("2001:db8::1", "::ffff:10.1.2.3", "::1"), 1: ("0.0.0.0",)}
    family = draw(st.sampled_from([2, 10, 1]))
    values |= {"family": family, "raddr": draw(st.sampled_from(addresses[family]))}
    argv = draw(st.lists(st.sampled_from(["-p", "-P", "x", "a-p", "--port", "p", "a b", "-o", ""]), max_size=4))
    values |= {name: draw(st.sampled_from(["", "", "/", "-p", "/usr/.x"])) for name in ("cwd", "filename")}
    return encode_event("exec", time=1, path=draw(st.sampled_from(["/bin/sh", "/usr/bin/nmap"])), argv=argv, **values)


def segment_of(records: list[bytes]) -> Segment:
    return NodeHistory("node").append(split_batch(b"".join(records)), 0)["exec"]


def expected(segment: Segment, mask: Mask) -> np.ndarray[Any, Any]:
    if mask.op == "net":
        return mask.evaluate(segment.rows[mask.field], segment.column("family"))
    return mask.evaluate(segment.column(mask.field))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(masks(), max_size=3), min_size=1, max_size=12), st.lists(execs(), min_size=1, max_size=8))
def test_masks_in_c_agree_with_masks_on_columns(of_units: list[list[Mask]], records: list[bytes]) -> None:
    segment = segment_of(records)
    selected = Prefilter([[Selector("exec", tuple(given))] for given in of_units]).select(
        "exec", segment, ThreatLists()
    )
    for unit, given_masks in enumerate(of_units):
        wanted = np.ones(len(records), dtype=bool)
        for mask in given_masks:
            wanted &= expected(segment, mask)
        assert selected.get(unit, np.empty(0)).tolist() == np.flatnonzero(wanted).tolist()


@settings(max_examples=100, deadline=None)
@given(
    short=st.lists(
        st.sampled_from([b"-p", b" -p", b"-p ", b"\0-p", b"p\0", b"x", b"a b", b"-P"]), min_size=1, max_size=3
    ),
    records=st.lists(execs(), min_size=1, max_size=6),
)
def test_short_literals_are_found_where_the_search_finds_them(short: list[bytes], records: list[bytes]) -> None:
    segment = segment_of(records)
    heap = segment.tails["argv"]
    lower = [literal.lower() for literal in short]
    raw, _ = _native.Matcher(lower).search(heap.data, heap.offsets)
    everywhere = set(np.frombuffer(raw, dtype=np.uint32).tolist())
    shells = {row for row in range(len(records)) if segment.tail("path", row) == b"/bin/sh"}
    selector = Selector(
        "exec",
        literals=(AnyLiteral(("path",), frozenset({b"/bin/sh\0"})), AnyLiteral(("argv",), frozenset(short))),
    )
    prefilter = Prefilter([[selector]])
    assert prefilter.describe()["exec"]["literals"]["argv"] == 0, "they cost no search"
    found = prefilter.select("exec", segment, ThreatLists()).get(0, np.empty(0))
    assert set(found.tolist()) == everywhere & shells


def told(heap: bytes, start: int, end: int, literal: bytes) -> bool:
    """What `AnyLiteral` says, read plainly: an occurrence that takes in at most the NUL before and behind the tail."""
    text = heap[start - 1 : end]
    wanted = literal.lower()
    for at in range(len(text) - len(wanted) + 1):
        there = text[at : at + len(wanted)].lower()
        if all(c == w or (w == 0x20 and c == 0) for c, w in zip(there, wanted, strict=True)):
            return True
    return False


LITERALS = [
    b"-p",
    b" -p",
    b"\0-p",
    b"p\0",
    b"x",
    b"a b",
    b"-P",
    b"/bin/sh\0",
    b"nmap",
    b"/",
    b"--port",
    b"\0/usr",
    b".",
]
groups = st.builds(
    lambda tails, literals: AnyLiteral(tuple(tails), frozenset(literals)),
    st.lists(st.sampled_from(["path", "argv", "cwd", "filename"]), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(LITERALS), min_size=1, max_size=3),
)


@pytest.mark.timeout(600)
@settings(
    max_examples=int(os.environ.get("VEDETTE_SIEVE_EXAMPLES", "250")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    of_units=st.lists(
        st.lists(
            st.tuples(st.lists(masks(), max_size=2), st.lists(groups, max_size=3), st.booleans(), st.booleans()),
            min_size=1,
            max_size=3,
        ),
        min_size=1,
        max_size=12,
    ),
    records=st.lists(execs(), min_size=1, max_size=8),
    watching=st.lists(st.sampled_from(VALUES[:14]), max_size=3),
)
def test_plans_select_what_masks_literals_and_lists_say(
    of_units: list[list[tuple[list[Mask], list[AnyLiteral], bool, bool]]], records: list[bytes], watching: list[int]
) -> None:
    """Groups shared between units, short literals, tails without text, watched values, threats: as read plainly."""
    segment = segment_of(records)
    threats = ThreatLists.of(["203.0.113.0/24"])
    listed = threats.match_ips(segment.column("family"), segment.rows["raddr"])
    watched = WatchedValues("ino")
    units = [
        [
            Selector("exec", (*of, *([watched] if asks else [])), tuple(literals), "ip" if threat else None)
            for of, literals, asks, threat in selectors
        ]
        for selectors in of_units
    ]
    prefilter = Prefilter(units)
    for value in watching:
        watched.add(value)
    selected = prefilter.select("exec", segment, threats)

    def passes(selector: Selector, row: int) -> bool:
        return (
            all(expected(segment, mask)[row] for mask in selector.masks)
            and (selector.threat is None or bool(listed[row]))
            and all(
                any(
                    told(heap.data, int(heap.offsets[row]), int(heap.offsets[row + 1]), literal)
                    for heap in map(segment.tails.__getitem__, group.tails)
                    for literal in group.literals
                )
                for group in selector.literals
            )
        )

    for unit, selectors in enumerate(units):
        wanted = [row for row in range(len(records)) if any(passes(selector, row) for selector in selectors)]
        assert selected.get(unit, np.empty(0)).tolist() == wanted, (unit, selectors)


def test_a_unit_that_rests_on_lists_alone_keeps_its_rows_beside_one_with_literals() -> None:
    """Unit 1 has no place in the sieve, whose answer for unit 0 must not be taken for unit 1's."""
    segment = segment_of([encode_event("exec", time=1, path="/bin/nmap", argv=[], family=2, raddr="203.0.113.7")])
    group = AnyLiteral(("path",), frozenset({b"nothing"}))
    prefilter = Prefilter([[Selector("exec", literals=(group,), threat="ip")], [Selector("exec", threat="ip")]])
    selected = prefilter.select("exec", segment, ThreatLists.of(["203.0.113.0/24"]))
    assert {unit: rows.tolist() for unit, rows in selected.items()} == {1: [0]}


def test_watched_values_count_from_the_moment_on_that_they_are_watched() -> None:
    segment = segment_of([encode_event("exec", time=1, ino=n, path="/x", argv=[]) for n in range(6)])
    watched = WatchedValues("ino")
    prefilter = Prefilter([[Selector("exec", (watched,))], [Selector("exec", (watched, Mask("ino", "gt", 3)))]])

    def selected() -> dict[int, list[int]]:
        return {unit: rows.tolist() for unit, rows in prefilter.select("exec", segment, ThreatLists()).items()}

    assert selected() == {}
    watched.add(5)
    watched.add(2)
    watched.add(2**64 - 1)
    assert selected() == {0: [2, 5], 1: [5]}
    watched.discard(5)
    assert selected() == {0: [2]}


SIEVE: dict[str, Any] = {
    "row_size": 8,
    "watched": 0,
    "late_tails": 0,
    "masks": b"",
    "plans": b"",
    "groups": b"",
    "literals": bytes(4),
    "indexes": b"",
    "values": b"",
    "lates": b"",
    "text": b"",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": b"1"}, "masks: 1 bytes are no multiple of 24"),
        ({"masks": np.array([5, 4 << 16, 0, 0, 0, 0], "<u4").tobytes()}, "do not fit"),  # a field beyond the row
        ({"masks": np.array([8 << 16, 99, 0, 0, 0, 0], "<u4").tobytes()}, "do not fit"),  # no such operator
        ({"masks": np.array([8 << 16, 9, 0, 1, 0, 0], "<u4").tobytes()}, "do not fit"),  # a set beyond the values
        ({"masks": np.array([8 << 16, 12, 0, 0, 0, 0], "<u4").tobytes()}, "do not fit"),  # nothing is watched
        ({"plans": np.array([0, 1, 0, 0, 0, 1], "<u4").tobytes()}, "do not fit"),  # a mask beyond the indexes
        ({"plans": np.array([0, 1, 0, 0, 0, 1], "<u4").tobytes(), "indexes": bytes(4)}, "do not fit"),  # no such mask
        ({"groups": np.array([0, 1, 0, 0, 0], "<u4").tobytes(), "indexes": bytes(4)}, "do not fit"),  # no such plan
        ({"groups": np.array([0, 0, 0, 0, 1], "<u4").tobytes()}, "do not fit"),  # no such short literal
        ({"literals": np.array([0, 1], "<u4").tobytes()}, "do not fit"),  # groups beyond the indexes
        ({"lates": np.array([0, 0, 1], "<u4").tobytes(), "text": b"x"}, "do not fit"),  # no such tail
        (
            {"lates": np.array([0, 0, 2], "<u4").tobytes(), "text": b"x", "late_tails": 1},
            "do not fit",
        ),  # beyond the text
        ({"row_size": 0}, "out of bounds"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _native.Sieve(**{**SIEVE, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((bytes(9), (), (), ()), "rows or watched values of another sieve"),
        ((bytes(8), (b"",), (), ()), "rows or watched values of another sieve"),
        ((bytes(8), (), (), ((b"", b""),)), "rows or watched values of another sieve"),
        ((bytes(8), (), ((bytes(4), b"", 0),), ()), "rows and literals do not fit each other"),
        ((bytes(8), (), ((bytes(4), bytes(4), 1),), ()), "rows and literals do not fit each other"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _native.Sieve(**SIEVE).select(*arguments)
