"""The store, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.unit.detector.detector_parts import BOOT, SESSION
from vedette_detector import store as store_module
from vedette_detector.errors import QueryError, StorageFullError, StoreBusyError, StoreError, StoreVersionError
from vedette_detector.findings.model import FindingUpdate
from vedette_detector.ledger import Account, Note, NoteKind
from vedette_detector.store import Effects, Filters, Losses, Store, metadata, severity_band

SECOND = 10**9


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/findings.db"
    return str(request.getfixturevalue("postgresql"))


def update(
    identity: str = "a" * 32,
    *,
    seen: int = SECOND,
    count: int = 1,
    severity: float = 5.0,
    kind: str = "Execution:Runtime/SuspiciousTool",
    resource: str = "node-a",
    title: str = "t",
) -> FindingUpdate:
    document: dict[str, Any] = {"id": identity, "severity": severity, "title": title, "service": {"count": count}}
    return FindingUpdate(
        identity, kind, "node-a", "Instance", resource, document, [(seen, document)], count, seen, seen
    )


def account(sequence: int) -> Account:
    return Account("node-a", BOOT, SESSION, last_sequence=sequence, batches=sequence)


def test_an_update_is_stored_with_its_account_note_and_outbox_entry(url: str) -> None:
    store = Store(url)
    note = Note(NoteKind.CLOCK_STEP, "node-a", BOOT, SESSION, 5, "set back", 1, 2)
    applied = store.apply(Effects([account(1)], [note], [update()]), 7)
    assert (applied.created, applied.updated) == (1, 0)
    (finding,) = store.list()
    assert (finding.id, finding.count, finding.first_seen_ns, finding.created_at_ns) == ("a" * 32, 1, SECOND, 7)
    assert store.applied() == {("node-a", BOOT, SESSION): 1}
    assert store.accounts() == [account(1)]
    assert store.notes("node-a") == [note]
    assert [(e.finding_id, e.kind, e.document["id"]) for e in store.outbox()] == [("a" * 32, "created", "a" * 32)]
    store.close()


def test_repeats_count_and_keep_the_last_occurrences(url: str) -> None:
    store = Store(url, occurrences=3)
    for number in range(1, 6):
        store.apply(Effects([account(number)], [], [update(seen=number * SECOND, severity=9.0 - number)]), number)
    (finding,) = store.list()
    assert (finding.count, finding.severity, finding.first_seen_ns, finding.last_seen_ns) == (
        5,
        8.0,
        SECOND,
        5 * SECOND,
    )
    assert finding.document["service"]["count"] == 5
    assert [(o.number, o.seen_at_ns) for o in store.occurrences(finding.id)] == [(n, n * SECOND) for n in (3, 4, 5)]
    store.close()


def test_the_outbox_holds_the_newest_state_of_each_finding_until_it_is_delivered(url: str) -> None:
    store = Store(url)
    store.apply(Effects([account(1)], [], [update("a" * 32), update("b" * 32)]), 1)
    store.apply(Effects([account(2)], [], [update("a" * 32)]), 2)
    entries = store.outbox()
    assert [(e.finding_id[0], e.kind, e.document["service"]["count"]) for e in entries] == [
        ("b", "created", 1),
        ("a", "created", 2),
    ]
    store.apply(Effects([account(3)], [], [update("a" * 32)]), 3)
    store.settle(entries)
    assert [(e.finding_id[0], e.kind) for e in store.outbox()] == [("a", "updated")]
    store.settle(store.outbox())
    assert store.outbox() == []
    store.close()


def test_what_was_committed_is_not_applied_again(url: str) -> None:
    # A connection can be lost between the commit and its answer: then the same effects come again.
    store = Store(url)
    effects = Effects([account(3)], [], [update()])
    store.apply(effects, 1)
    store.apply(effects, 1)
    assert [f.count for f in store.list()] == [1]
    store.close()


def test_two_detectors_on_one_database_are_noticed(url: str) -> None:
    store = Store(url)
    store.apply(Effects([account(3)], [], []), 1)
    other = replace(account(1), node="node-b")
    with pytest.raises(StoreError, match="another detector writes the same nodes"):
        store.apply(Effects([account(2), other], [], [update()]), 1)
    assert store.list() == []
    store.close()


def test_a_cursor_sees_each_change_once_and_in_order(url: str) -> None:
    store = Store(url)
    start = store.cursor()
    store.apply(Effects([account(1)], [], [update("a" * 32), update("b" * 32)]), 1)
    found, cursor = store.since(start)
    assert [f.id[0] for f in found] == ["a", "b"]
    assert store.since(cursor) == ([], cursor)
    store.apply(Effects([account(2)], [], [update("a" * 32)]), 2)
    found, cursor = store.since(cursor)
    assert [(f.id[0], f.count) for f in found] == [("a", 2)]
    assert cursor == store.cursor()
    store.close()


def test_revisions_rise_in_the_order_of_commits_with_several_writers(url: str) -> None:
    stores = [Store(url, timeout_s=30) for _ in range(4)]
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        cursor = 0
        while True:
            last = done.is_set()
            found, cursor = stores[0].since(cursor)
            seen.extend(f.revision for f in found)
            if last and not found:
                return

    def write(number: int) -> None:
        for sequence in range(1, 11):
            item = replace(account(sequence), node=f"node-{number}")
            stores[number].apply(Effects([item], [], [update(f"{number}{sequence:031x}")]), 1)

    watcher = threading.Thread(target=watch)
    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in (watcher, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    watcher.join()
    assert seen == list(range(1, 41))
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), "dcb"),
        (Filters(archived=True), "a"),
        (Filters(archived=None), "dcba"),
        (Filters(types=("Execution:*",)), "cb"),
        (Filters(types=("Backdoor:Runtime/C&CActivity.B",)), "d"),
        (Filters(types=("Backdoor:Runtime/C_CActivity.B",)), ""),
        (Filters(types=("*!DNS", "Execution:*")), "cb"),
        (Filters(min_severity=7.0), "d"),
        (Filters(since_ns=3 * SECOND), "dc"),
        (Filters(until_ns=3 * SECOND), "cb"),
        (Filters(node="node-b"), ""),
        (Filters(resource="0ff"), "c"),
        (Filters(resource="0_f"), ""),
        (Filters(resource_type="Container"), ""),
        (Filters(ids=("b" * 32,)), "b"),
    ],
    ids=str,
)
def test_filters(filters: Filters, expected: str, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/findings.db")
    findings = [
        update("a" * 32, seen=SECOND),
        update("b" * 32, seen=2 * SECOND),
        update("c" * 32, seen=3 * SECOND, resource="0ff1ce"),
        update("d" * 32, seen=4 * SECOND, severity=8.0, kind="Backdoor:Runtime/C&CActivity.B"),
    ]
    store.apply(Effects([account(1)], [], findings), 1)
    store.archive(["a" * 32], True, 2)
    assert "".join(f.id[0] for f in store.list(filters)) == expected
    store.close()


def test_archiving_is_a_change_that_watchers_see(url: str) -> None:
    store = Store(url)
    store.apply(Effects([account(1)], [], [update()]), 1)
    cursor = store.cursor()
    assert store.archive(["a" * 32], True, 2) == 1
    assert store.archive(["a" * 32], True, 3) == 0
    ((finding,), _) = store.since(cursor, Filters(archived=None))
    assert finding.document["service"]["archived"] is True
    store.apply(Effects([account(2)], [], [update()]), 4)
    assert store.get("a" * 32).archived is True  # type: ignore[union-attr]
    store.close()


def test_a_finding_is_found_by_a_unique_beginning_of_its_id(url: str) -> None:
    store = Store(url)
    store.apply(Effects([account(1)], [], [update("abcd" + "0" * 28), update("abcd" + "1" * 28)]), 1)
    assert store.get("ABCD0").id == "abcd" + "0" * 28  # type: ignore[union-attr]
    assert store.get("abc") is None
    assert store.get("%%%%") is None
    assert store.get("ffff") is None
    with pytest.raises(QueryError) as raised:
        store.get("abcd")
    assert raised.value.reason == "AmbiguousFindingId"
    store.close()


def test_retention_removes_a_finding_with_its_occurrences(url: str) -> None:
    store = Store(url)
    store.apply(Effects([account(1)], [], [update("a" * 32)]), 100 * SECOND)
    store.apply(Effects([account(2)], [], [update("b" * 32)]), 200 * SECOND)
    assert store.retain(250 * SECOND, 100) == 1
    assert [f.id[0] for f in store.list()] == ["b"]
    assert store.occurrences("a" * 32) == []
    store.close()


def test_the_detector_id_and_the_data_survive_reopening(url: str) -> None:
    store = Store(url)
    store.apply(Effects([account(1)], [], [update()]), 1)
    store.put_heartbeat("node-a", BOOT.hex(), {"pid": 1}, 5)
    store.put_heartbeat("node-a", BOOT.hex(), {"pid": 2}, 6)
    identity = store.detector_id()
    store.close()
    again = Store(url, read_only=True)
    assert (again.detector_id(), len(identity)) == (identity, 32)
    assert again.heartbeats() == {"node-a": (6, {"pid": 2})}
    assert [f.id for f in again.list()] == ["a" * 32]
    again.close()


def test_a_database_of_a_newer_version_is_left_alone(url: str) -> None:
    Store(url).close()
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE settings SET value = '99' WHERE name = 'version'"))
    engine.dispose()
    for read_only in (False, True):
        with pytest.raises(StoreVersionError, match="has version 99; this Vedette knows up to 3: upgrade it"):
            Store(url, read_only=read_only)


def test_a_database_of_version_1_is_brought_up_to_date_with_what_is_in_it(url: str) -> None:
    store = Store(url)
    store.apply(Effects([account(1)], [], [update()]), 1)
    store.close()
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for table in ("ledger_folded", "ledger_totals", "refused_batches"):
            connection.execute(sa.text(f"DROP TABLE {table}"))
        connection.execute(sa.text("DROP INDEX ix_ledger_notes_at_ns"))
        for column in ("drained", "ring_lost_events"):
            connection.execute(sa.text(f"ALTER TABLE ledger DROP COLUMN {column}"))
        connection.execute(sa.text("UPDATE settings SET value = '1' WHERE name = 'version'"))
    with pytest.raises(StoreError, match="has version 1, not 3: start the detector to bring it up to date"):
        Store(url, read_only=True)
    store = Store(url)
    assert store.applied() == {("node-a", BOOT, SESSION): 1}
    store.apply(Effects([replace(account(1), session=7)], [], [], fold=[account(1)]), 2)
    assert store.totals()["node-a"].batches == 1
    with engine.begin() as connection:
        made = sa.MetaData()
        made.reflect(connection)
        names = {index.name for table in made.tables.values() for index in table.indexes}
        assert {"ix_ledger_notes_at_ns", "ix_ledger_folded_last_at_ns", "ix_refused_batches_at_ns"} <= names
        # Migrated and new databases have the same columns.
        for wanted in metadata.tables.values():
            assert {c.name for c in wanted.columns} == {c.name for c in made.tables[wanted.name].columns}
            assert {c.name for c in wanted.primary_key} == {c.name for c in made.tables[wanted.name].primary_key}
    engine.dispose()
    store.close()


def test_folding_keeps_the_sums_and_the_last_sequence(url: str) -> None:
    store = Store(url)
    old = [replace(account(n), session=n, emitted=2**63 - 1, dropped=1, first_at_ns=n, last_at_ns=n) for n in (1, 2, 3)]
    store.apply(Effects(old, [], []), 1)
    effects = Effects([replace(account(4), session=4)], [], [], fold=old[:2])
    store.apply(effects, 2)
    store.apply(effects, 2)  # as after a lost connection
    assert [a.session for a in store.accounts()] == [4, 3]
    assert store.folded() == {("node-a", BOOT, 1): 1, ("node-a", BOOT, 2): 2}
    assert store.applied() == {("node-a", BOOT, n): n for n in (1, 2, 3, 4)}
    sums = store.totals()["node-a"]
    assert (sums.sessions, sums.dropped, sums.emitted, sums.first_at_ns, sums.last_at_ns) == (2, 2, 2**63 - 1, 1, 2)
    store.apply(Effects([replace(account(5), session=5)], [], [], forget=[("node-a", BOOT, 1)]), 3)
    assert store.folded() == {("node-a", BOOT, 2): 2}
    # One that goes on is no longer folded.
    store.apply(Effects([replace(account(9), session=2)], [], []), 4)
    assert store.folded() == {}
    store.close()


@pytest.mark.parametrize(("journal_begins", "left"), [(None, {1, 2, 3}), (150, {2, 3}), (400, {3}), (0, {1, 2, 3})])
def test_a_folded_session_is_remembered_while_the_journal_or_findings_may_hold_it(
    url: str, journal_begins: int | None, left: set[int]
) -> None:
    store = Store(url)
    old = [replace(account(n), session=n, last_at_ns=n * 100 * SECOND) for n in (1, 2, 3)]
    store.fold(old)
    store.refuse([(("node-a", BOOT, n), 1) for n in (1, 2, 3)], [], 200 * SECOND)
    store.retain(400 * SECOND, 150.0, None if journal_begins is None else journal_begins * SECOND)
    assert {session for _, _, session in store.folded()} == left
    assert len(store.refused()) == (0 if journal_begins == 400 else 3)
    assert store.totals()["node-a"].sessions == 3
    store.close()


def test_losses_are_summed_by_node_and_kind_within_a_time(url: str) -> None:
    store = Store(url)

    def note(at: int, kind: NoteKind, node: str = "node-a", events: int = 2**63 - 1) -> Note:
        return Note(kind, node, BOOT, SESSION, at, "m", None, None, events, 1)

    drops = NoteKind.KERNEL_DROPS
    store.add_notes([note(1, drops), note(5, drops, events=3), note(6, drops, events=4), note(7, drops, "b", 9)])
    assert store.losses(5) == {"node-a": {drops: Losses(2, 7, 2, 6)}, "b": {drops: Losses(1, 9, 1, 7)}}
    store.add_notes([note(8, drops), note(8, drops)])
    assert store.losses(8)["node-a"][drops].events == 2**64
    store.close()


def test_notes_of_losses_are_not_pushed_out_by_others(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "NOTES_KEPT", 2)
    store = Store(url)
    for number in range(5):
        for kind in (NoteKind.SPOOL_LOSS, NoteKind.SESSION_STARTED, NoteKind.SESSION_ENDED):
            store.add_notes([Note(kind, "node-a", BOOT, number, number, "m")])
    store.add_notes([Note(NoteKind.SESSION_STARTED, "b", BOOT, n, n, "m") for n in range(3)])
    store.trim_notes(["node-a"])
    kept = [(n.kind, n.session) for n in store.notes("node-a")]
    assert kept == [
        (NoteKind.SESSION_ENDED, 4),
        (NoteKind.SESSION_STARTED, 4),
        (NoteKind.SPOOL_LOSS, 4),
        (NoteKind.SPOOL_LOSS, 3),
    ]
    assert len(store.notes("b")) == 3
    store.retain(10, 1.0)
    assert len(store.notes("b")) == 2
    store.close()


def test_lengths_of_gaps_are_added_up(url: str) -> None:
    store = Store(url)
    gap = NoteKind.WITHOUT_AGENT
    spans = [(10, 15), (20, 40), (None, 9), (-(2**63), 2**63 - 1)]
    store.add_notes([Note(gap, "a", BOOT, n, n, "m", *span) for n, span in enumerate(spans)])
    assert store.losses(0)["a"][gap].span_ns > 2**63
    store.trim_notes(["a"])
    with store.exclusive() as connection:
        connection.execute(sa.text("DELETE FROM ledger_notes WHERE at_ns = 3"))
    assert store.losses(0)["a"][gap] == Losses(3, 0, 0, 2, 25, 20)
    store.close()


def test_reading_does_not_create_a_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        Store(f"sqlite:///{tmp_path}/none/findings.db", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_counters_beyond_64_bits_signed_do_not_stop_the_transaction(url: str) -> None:
    store = Store(url)
    huge = replace(account(1), emitted=2**64 - 1, spool_lost_events=2**64 - 1)
    note = Note(NoteKind.SPOOL_LOSS, "node-a", BOOT, 2**64 - 1, 0, "m", -(2**64), 2**65, 2**64, 2**64)
    store.apply(Effects([huge], [note], []), 1)
    assert store.accounts()[0].emitted == 2**63 - 1
    store.close()


def test_a_locked_sqlite_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "findings.db"
    store = Store(f"sqlite:///{path}", timeout_s=20)
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    outcome: list[Any] = []
    writer = threading.Thread(target=lambda: outcome.append(store.apply(Effects([account(1)], [], [update()]), 1)))
    writer.start()
    time.sleep(1.5)  # longer than the driver's own patience, so that the store's retry is what is tested
    assert outcome == []
    assert store.list() == []
    blocker.execute("ROLLBACK")
    writer.join(20)
    assert outcome[0].created == 1
    assert [f.count for f in store.list()] == [1]
    blocker.close()
    store.close()


def test_a_sqlite_that_stays_locked_is_an_error_that_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "findings.db"
    store = Store(f"sqlite:///{path}", timeout_s=0.1)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusyError, match="is locked by another process"):
        store.apply(Effects([account(1)], [], [update()]), 1)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert (store.list(), store.applied()) == ([], {})
    store.close()


def test_a_full_disk_is_an_error_that_keeps_nothing(small_disk: Path) -> None:
    store = Store(f"sqlite:///{small_disk}/findings.db", timeout_s=0.5)
    sequence = 0
    error: StoreError | None = None
    while error is None:
        sequence += 1
        try:
            store.apply(Effects([account(sequence)], [], [update(f"{sequence:032x}", title="x" * 50_000)]), 1)
        except StoreError as raised:
            error = raised
    assert isinstance(error, StorageFullError), error.message
    assert store.applied() == {("node-a", BOOT, SESSION): sequence - 1}
    assert len(store.list()) == sequence - 1
    store.close()


@pytest.mark.postgresql
def test_a_postgresql_that_drops_the_connection_is_asked_again(postgresql: str) -> None:
    store = Store(postgresql, timeout_s=10)
    store.apply(Effects([account(1)], [], [update()]), 1)
    engine = sa.create_engine(postgresql.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    engine.dispose()
    store.apply(Effects([account(2)], [], [update()]), 2)
    assert [f.count for f in store.list()] == [2]
    store.close()


@pytest.mark.parametrize(
    ("severity", "band"),
    [(1.0, "low"), (3.9, "low"), (4.0, "medium"), (6.9, "medium"), (7.0, "high"), (8.9, "high"), (9.0, "critical")],
)
def test_severity_bands(severity: float, band: str) -> None:
    assert severity_band(severity) == band
