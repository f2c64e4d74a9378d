"""The ledger's accounting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.detector.detector_parts import BOOT, SECOND, SESSION, WALL_OFFSET
from vedette_detector.ledger import Account, Note, NoteKind, Report, end, enter
from vedette_events.framing import BatchFlags, BatchHeader, Counters


def header(sequence: int, count: int = 10, **more: object) -> BatchHeader:
    counters = more.pop("counters", Counters(emitted=sequence * count))
    made = BatchHeader(
        node="n",
        boot_id=BOOT,
        session=SESSION,
        sequence=sequence,
        count=count,
        ring_from=sequence * 100,
        ring_to=sequence * 100 + 50,
        wall_offset_ns=WALL_OFFSET,
        created_ns=SESSION + sequence * SECOND,
        first_time=SESSION + sequence * SECOND - 5,
        last_time=SESSION + sequence * SECOND,
        counters=counters,  # type: ignore[arg-type]
    )
    return replace(made, **more)  # type: ignore[arg-type]


def run(*headers: BatchHeader) -> tuple[Account, list[Note]]:
    account, notes = None, []
    for item in headers:
        account, more = enter(account, item, 0)
        notes += more
    assert account is not None
    return account, notes


def kinds(notes: list[Note]) -> list[NoteKind]:
    return [n.kind for n in notes if n.kind is not NoteKind.SESSION_STARTED]


def test_an_undisturbed_session_balances() -> None:
    account, notes = run(header(1), header(2), header(3, flags=BatchFlags.FINAL))
    assert (account.received, account.emitted, account.outstanding, account.balance) == (30, 30, 0, "balanced")
    assert kinds(notes) == [NoteKind.SESSION_ENDED]


def test_events_on_the_way_are_outstanding_until_the_session_ends() -> None:
    account, _ = run(header(1, counters=Counters(emitted=17)))
    assert (account.outstanding, account.balance) == (7, "outstanding")
    account, _ = run(header(1, counters=Counters(emitted=17), flags=BatchFlags.FINAL))
    assert account.balance == "unbalanced"


def test_what_the_agent_makes_itself_is_not_counted_against_the_kernel() -> None:
    account, _ = run(header(1, ring_to=100, counters=Counters()), header(2, counters=Counters(emitted=10)))
    assert (account.received, account.received_other, account.balance) == (10, 10, "balanced")


def test_a_gap_that_the_agent_reports_is_a_loss() -> None:
    lost = Counters(emitted=50, spool_lost_batches=3, spool_lost_events=30)
    account, notes = run(header(1), header(5, counters=lost))
    assert (account.missing_batches, account.unexplained_batches, account.outstanding) == (3, 0, 0)
    assert account.balance == "lost"
    assert kinds(notes) == [NoteKind.BATCHES_MISSING, NoteKind.SPOOL_LOSS]
    assert (notes[1].batches, notes[1].message) == (3, "batches 2 to 4 never arrived")
    assert (notes[2].events, notes[2].batches) == (30, 3)


def test_a_gap_that_nobody_reports_is_unbalanced() -> None:
    account, _ = run(header(1), header(3, counters=Counters(emitted=20)))
    assert (account.unexplained_batches, account.outstanding, account.balance) == (1, 0, "unbalanced")


def test_more_received_than_emitted_is_unbalanced() -> None:
    account, _ = run(header(1, counters=Counters(emitted=9)))
    assert (account.outstanding, account.balance) == (-1, "unbalanced")


def test_kernel_drops_are_told_with_the_time_they_happened_in() -> None:
    account, notes = run(header(1), header(2, counters=Counters(emitted=20, dropped=4)))
    assert account.balance == "lost"
    (note,) = [n for n in notes if n.kind is NoteKind.KERNEL_DROPS]
    assert (note.events, note.from_ns, note.to_ns) == (
        4,
        WALL_OFFSET + SESSION + SECOND,
        WALL_OFFSET + SESSION + 2 * SECOND,
    )


@pytest.mark.parametrize(
    ("step_s", "message"),
    [
        (-3600, "the node's wall clock was set back by 3600.000 s"),
        (7200, "the node's wall clock was set forward by 7200.000 s"),
        (1, None),
    ],
)
def test_a_clock_that_is_set_is_told_and_one_that_is_slewed_is_not(step_s: int, message: str | None) -> None:
    _, notes = run(header(1), header(2, wall_offset_ns=WALL_OFFSET + step_s * SECOND))
    assert [n.message for n in notes if n.kind is NoteKind.CLOCK_STEP] == ([message] if message else [])


def test_counters_never_go_back_in_the_account() -> None:
    account, notes = run(header(1, counters=Counters(emitted=10, dropped=5)), header(2, counters=Counters(emitted=3)))
    assert (account.emitted, account.dropped) == (10, 5)
    assert NoteKind.COUNTERS_WENT_BACK in kinds(notes)


LATER = SESSION + 60 * SECOND


@pytest.mark.parametrize(
    ("headers", "report", "from_s", "message"),
    [
        # The last batch from the ring is what is sure of an agent that was killed and sent no heartbeat.
        ([header(1), header(2)], Report(), 2, "no agent watched for 58.000 s, the agent before was killed"),
        # An idle node sends no batches; its heartbeats say that the ring was empty.
        (
            [header(1)],
            Report(drained=SESSION + 50 * SECOND, emitted=10),
            50,
            "no agent watched for 10.000 s, the agent",
        ),
        # What the agent makes itself says nothing about the ring.
        ([header(1), header(9, ring_to=900, count=0)], Report(), 1, "no agent watched for 59.000 s, the agent before"),
        # An agent that ends says when the programs were detached; what it drained then is older.
        (
            [
                header(1),
                header(20),
                header(21, 0, ring_to=2100, created_ns=SESSION + 15 * SECOND, flags=BatchFlags.FINAL),
            ],
            Report(drained=SESSION + 30 * SECOND),
            15,
            "no agent watched for 45.000 s",
        ),
    ],
    ids=["killed", "idle", "own batches", "ended"],
)
def test_a_gap_lies_between_the_last_drain_and_the_next_load(
    headers: list[BatchHeader], report: Report, from_s: int, message: str
) -> None:
    before, _ = run(*headers)
    ended, _ = end(before, report, 0)
    _, notes = enter(None, header(1, session=LATER, created_ns=LATER + SECOND), 0, ended)
    (note,) = [n for n in notes if n.kind is NoteKind.WITHOUT_AGENT]
    assert note.message.startswith(message)
    assert (note.from_ns, note.to_ns) == (WALL_OFFSET + SESSION + from_s * SECOND, WALL_OFFSET + LATER)


def test_a_gap_ends_when_the_last_program_is_attached_and_no_clock_changes_its_length() -> None:
    before, _ = run(header(2))
    ended, _ = end(before, Report(), 0)
    began = header(1, session=LATER, created_ns=LATER + SECOND, wall_offset_ns=WALL_OFFSET - 3600 * SECOND)
    _, notes = enter(None, began, 0, ended, Report(attached=LATER + SECOND // 2))
    (note,) = [n for n in notes if n.kind is NoteKind.WITHOUT_AGENT]
    assert note.to_ns is not None
    assert note.from_ns is not None
    assert note.to_ns - note.from_ns == 58 * SECOND + SECOND // 2
    # An attachment before the load, or after the batch, is none.
    for attached in (LATER - 1, LATER + 2 * SECOND):
        _, notes = enter(None, began, 0, ended, Report(attached=attached))
        assert [n.to_ns for n in notes if n.kind is NoteKind.WITHOUT_AGENT] == [began.wall_offset_ns + LATER]


def test_what_was_in_the_ring_of_a_killed_agent_is_lost() -> None:
    before, _ = run(header(1, counters=Counters(emitted=12)))
    ended, notes = end(before, Report(emitted=17), 0)
    assert (ended.ring_lost_events, ended.outstanding, ended.balance) == (7, 0, "lost")
    assert [(n.kind, n.events, n.message) for n in notes] == [
        (NoteKind.RING_LOST, 7, "the agent was killed: 7 events in its ring are lost")
    ]
    # Ended once, it is not told again; and what comes after all was not lost.
    again, notes = end(ended, Report(emitted=17), 0)
    assert (again, notes) == (ended, [])
    more, _ = enter(ended, header(2, 5, counters=Counters(emitted=17)), 0)
    assert (more.ring_lost_events, more.outstanding, more.balance) == (2, 0, "lost")


def test_an_agent_that_ended_in_order_has_lost_nothing_in_its_ring() -> None:
    before, _ = run(header(1), header(2, 0, ring_to=200, counters=Counters(emitted=10), flags=BatchFlags.FINAL))
    assert end(before, Report(emitted=10), 0) == (before, [])


@pytest.mark.parametrize(
    ("heartbeat", "report"),
    [
        ({}, Report()),
        ({"drained_ns": 5, "attached_ns": None, "counters": {"emitted": 7}}, Report(5, 0, 7)),
        ({"drained_ns": -1, "attached_ns": 2**63, "counters": {"emitted": True}}, Report()),
        ({"drained_ns": "5", "attached_ns": 1.5, "counters": [1]}, Report()),
    ],
)
def test_a_heartbeat_says_what_is_a_number(heartbeat: dict[str, object], report: Report) -> None:
    assert Report.of(heartbeat) == report


def test_a_new_boot_is_a_restart_of_the_node() -> None:
    before, _ = run(header(1))
    _, notes = enter(None, header(1, boot_id=bytes(16)), 0, before)
    assert kinds(notes) == [NoteKind.NODE_RESTARTED]
