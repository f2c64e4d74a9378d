"""Raw events from the journal: by filters, and by SQL."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.detector.detector_parts import SECOND, SESSION, WALL_OFFSET, batch, scan
from vedette_detector.errors import QueryError
from vedette_detector.events_query import EventQuery, Problems, rows, sql, table_names, texts_of
from vedette_detector.journal import Journal
from vedette_detector.text import safe_text
from vedette_events import schema
from vedette_events.columns import Heap
from vedette_events.encode import encode_event
from vedette_events.framing import decode_header

CONTAINER = "ab" * 32
DNS = bytes.fromhex("000101000001000000000000") + b"\x03c2\x00"[:1] + b"c2x" + b"\x07example\x00" + b"\x00\x01\x00\x01"


def at(second: int) -> int:
    return WALL_OFFSET + SESSION + second * SECOND


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal with a container, an exec in it, a connect of the host, a dns query, and a second node."""
    journal = Journal(tmp_path)
    journal.open()
    cgroup = encode_event("cgroup", time=SESSION, cgroup=77, path=f"/system.slice/docker-{CONTAINER}.scope")
    connect = encode_event(
        "connect", time=SESSION + 3 * SECOND, cgroup=1, pid=9, comm="curl", family=2, raddr="198.51.100.7", rport=443
    )
    dns = encode_event("dns", time=SESSION + 4 * SECOND, cgroup=77, pid=1002, direction=1, payload=DNS)
    hostile = scan(5, path="/tmp/\x1b[31m\n", argv=[b"a\xff", b"--x=\x00"[:-1]])
    for framed in (
        batch(1, cgroup),
        batch(2, scan(2)),
        batch(3, connect),
        batch(4, dns),
        batch(5, hostile),
        batch(1, scan(1, cgroup=1), node="node-b"),
    ):
        journal.append([(decode_header(framed)[0], framed)])
    return tmp_path


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (EventQuery(), ["cgroup", "exec", "connect", "dns", "exec", "exec"]),
        (EventQuery(types=("connect", "dns")), ["connect", "dns"]),
        (EventQuery(node="node-b"), ["exec"]),
        (EventQuery(since_ns=at(3), until_ns=at(4)), ["connect", "dns"]),
        (EventQuery(until_ns=at(1)), ["cgroup", "exec"]),
        (EventQuery(since_ns=at(100)), []),
        (EventQuery(until_ns=-(2**63)), []),
        (EventQuery(container="abab"), ["cgroup", "exec", "dns", "exec"]),
        (EventQuery(container="docker-"), ["cgroup", "exec", "dns", "exec"]),
        (EventQuery(container="host"), ["connect", "exec"]),
        (EventQuery(container="abab", since_ns=at(2), types=("exec",), until_ns=at(2)), ["exec"]),
        (EventQuery(process="1002"), ["exec", "dns"]),
        (EventQuery(process="scanner", types=("exec",)), ["exec", "exec"]),
        (EventQuery(process="curl"), ["connect"]),
    ],
    ids=str,
)
def test_filters(journal: Path, query: EventQuery, expected: list[str]) -> None:
    assert [r["type"] for r in rows(journal, query)] == expected


def test_a_row_is_readable_and_safe(journal: Path) -> None:
    (row,) = rows(journal, EventQuery(since_ns=at(5), types=("exec",)))
    assert (row["wall"], row["node"], row["container"]) == ("2026-09-21T14:13:26.000Z", "node-a", CONTAINER)
    assert row["path"] == "/tmp/\\x1b[31m\\x0a"
    assert row["argv"] == ["a\\xff", "--x="]
    (row,) = rows(journal, EventQuery(types=("dns",)))
    assert (row["question"], row["direction"]) == ("c2x.example", "QUERY")


def test_an_unknown_type_is_named(journal: Path) -> None:
    with pytest.raises(QueryError, match="no event type nonsense; there are: accept, bind"):
        list(rows(journal, EventQuery(types=("nonsense",))))


def test_a_batch_that_cannot_be_read_is_counted_and_the_others_are_given(journal: Path) -> None:
    broken = bytearray(batch(6))
    broken[-1] ^= 0xFF
    with (journal / "0000000000000001.vdj").open("ab") as file:
        file.write(bytes(broken) + batch(7) + batch(8)[:50])
    problems = Problems()
    found = list(rows(journal, EventQuery(since_ns=at(6)), problems))
    assert [r["pid"] for r in found] == [1007]
    assert (problems.unreadable_batches, problems.reasons) == (1, {"PayloadChecksum"})


def ask(journal: Path, statement: str, **more: Any) -> list[tuple[Any, ...]]:
    return list(sql(journal, statement, **more).rows)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "SELECT wall, container_id, path, argv FROM exec WHERE pid = 1002",
            [(datetime(2026, 9, 21, 14, 13, 23), CONTAINER, "/usr/bin/scanner", "scanner -p 1-65535 198.51.100.7")],
        ),
        (
            "SELECT type, count(*) FROM events GROUP BY ALL ORDER BY ALL",
            [("cgroup", 1), ("connect", 1), ("dns", 1), ("exec", 3)],
        ),
        ("SELECT raddr, rport, laddr, container_id FROM connect", [("198.51.100.7", 443, "0.0.0.0", None)]),
        ("SELECT question FROM dns", [("c2x.example",)]),
        ("SELECT path FROM exec WHERE pid = 1005", [("/tmp/\\x1b[31m\\x0a",)]),
        ("SELECT d.question, e.path FROM dns d JOIN exec e USING (node, pid)", [("c2x.example", "/usr/bin/scanner")]),
        ("SELECT count(*) FROM ptrace", [(0,)]),
        ("SELECT comm FROM events WHERE type = 'connect'", [("curl",)]),
        ("WITH x AS (SELECT 1 AS one) SELECT one FROM x", [(1,)]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_sql(journal: Path, statement: str, expected: list[tuple[Any, ...]]) -> None:
    assert ask(journal, statement) == expected


def test_sql_sees_the_asked_range_and_node_only(journal: Path) -> None:
    assert ask(journal, "SELECT count(*) FROM events", since_ns=at(3), until_ns=at(4)) == [(2,)]
    assert ask(journal, "SELECT count(*) FROM events", node="node-b") == [(1,)]
    # The container's path was told before the range.
    assert ask(journal, "SELECT DISTINCT container_id FROM dns", since_ns=at(4)) == [(CONTAINER,)]


def test_sql_takes_each_batch_once(journal: Path) -> None:
    with (journal / "0000000000000001.vdj").open("ab") as file:
        file.write(batch(2, scan(2)))
    assert ask(journal, "SELECT count(*) FROM exec WHERE pid = 1002") == [(1,)]


def test_every_type_has_a_table(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    records = [encode_event(name, time=SESSION + SECOND) for name in schema.BY_NAME]
    framed = batch(1, *records)
    journal.append([(decode_header(framed)[0], framed)])
    for name in table_names():
        wanted = len(schema.BY_NAME) if name == "events" else 1
        assert ask(tmp_path, f'SELECT count(*) FROM "{name}"') == [(wanted,)], name
        assert ask(tmp_path, f'SELECT * FROM "{name}"')


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("SELECT 1; SELECT 2", "NotASelect"),
        ("CREATE TABLE x (a int)", "NotASelect"),
        ("COPY exec TO '/tmp/out.csv'", "NotASelect"),
        ("ATTACH '/tmp/x.db'", "NotASelect"),
        ("INSTALL httpfs", "NotASelect"),
        ("SET enable_external_access = true", "NotASelect"),
        ("", "NotASelect"),
        ("SELECT * FROM read_csv('/etc/passwd')", "SqlError"),
        ("SELECT * FROM read_text('/etc/passwd')", "SqlError"),
        ("SELECT * FROM '/etc/passwd'", "SqlError"),
        ("SELECT nonsense FROM exec", "SqlError"),
        ("SELEC", "SqlError"),
    ],
)
def test_sql_reads_events_and_nothing_else(journal: Path, statement: str, reason: str) -> None:
    with pytest.raises(QueryError) as raised:
        ask(journal, statement)
    assert raised.value.reason == reason


def test_a_range_that_does_not_fit_memory_is_refused(journal: Path) -> None:
    with pytest.raises(QueryError) as raised:
        ask(journal, "SELECT * FROM exec", max_bytes=100)
    assert raised.value.reason == "RangeTooLarge"


def test_an_empty_journal_has_empty_tables(tmp_path: Path) -> None:
    assert ask(tmp_path, "SELECT count(*) FROM events") == [(0,)]
    assert list(rows(tmp_path, EventQuery())) == []


@given(st.lists(st.binary(max_size=12), max_size=8))
def test_text_of_a_heap_is_the_safe_text_of_each_tail(tails: list[bytes]) -> None:
    assert texts_of(Heap.of(tails), "path").to_pylist() == [safe_text(t) for t in tails]


@given(st.lists(st.text("ab /-", max_size=12), max_size=8))
def test_plain_text_of_a_heap_is_given_unchanged(tails: list[str]) -> None:
    assert texts_of(Heap.of([t.encode() for t in tails]), "path").to_pylist() == tails
