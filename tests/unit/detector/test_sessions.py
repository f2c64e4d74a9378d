"""Which sessions are remembered: bounds for each node and in all, and nothing that disappears."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.detector.detector_parts import BOOT
from vedette_detector import sessions as module
from vedette_detector.journal import SessionKey
from vedette_detector.ledger import Account, Totals
from vedette_detector.sessions import Sessions, key_of


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test reaches."""
    for name, value in (("PER_NODE", 3), ("TOTAL", 6), ("FOLDED_PER_NODE", 4), ("FOLDED_TOTAL", 8)):
        monkeypatch.setattr(module, name, value)


def account(node: str, session: int, at: int, **values: Any) -> Account:
    return replace(Account(node, BOOT, session), last_sequence=session * 10, last_at_ns=at, first_at_ns=at, **values)


def put(sessions: Sessions, *accounts: Account) -> None:
    changed = {key_of(a): a for a in accounts}
    sessions.commit(changed, sessions.plan(changed))


def shown(sessions: Sessions, node: str) -> list[int]:
    return [a.session for a in sessions.of_node(node)]


def test_the_oldest_sessions_of_a_node_are_folded_into_its_sums() -> None:
    sessions = Sessions()
    for number in range(1, 6):
        put(sessions, account("a", number, number, emitted=number, received=number, dropped=1))
    assert shown(sessions, "a") == [3, 4, 5]
    assert sessions.totals["a"] == Totals(
        "a", sessions=2, emitted=3, received=3, dropped=2, first_at_ns=1, last_at_ns=2
    )
    assert [sessions.last_sequence(("a", BOOT, n)) for n in range(1, 7)] == [10, 20, 30, 40, 50, 0]
    assert sessions.applied() == {("a", BOOT, n): n * 10 for n in range(1, 6)}


def test_many_new_sessions_at_once_leave_as_many_as_may_stay() -> None:
    sessions = Sessions()
    put(sessions, *(account("a", number, 7) for number in range(1, 13)))
    assert len(shown(sessions, "a")) == 3
    assert sessions.newest["a"].session == 12
    assert 12 in shown(sessions, "a")
    assert sessions.totals["a"].sessions == 9
    # Of the folded ones the last are remembered.
    assert [n for n in range(1, 13) if sessions.last_sequence(("a", BOOT, n))] == list(range(6, 13))


def test_in_all_the_node_with_the_most_gives_up_its_oldest_and_keeps_its_newest() -> None:
    sessions = Sessions()
    put(sessions, *(account("a", n, n) for n in (1, 2, 3)))
    put(sessions, account("b", 1, 1))
    for number in range(4):
        put(sessions, account(f"n{number}", 1, 1))
    assert shown(sessions, "a") == [3]
    assert shown(sessions, "b") == [1]
    for number in range(4, 12):
        put(sessions, account(f"n{number}", 1, 1))
    assert shown(sessions, "a") == [3]
    assert shown(sessions, "b") == [1]


def test_a_folded_session_that_goes_on_has_an_account_again() -> None:
    sessions = Sessions()
    for number in range(1, 5):
        put(sessions, account("a", number, number))
    assert sessions.folded(("a", BOOT, 1)) == 10
    put(sessions, account("a", 1, 9))
    assert sessions.folded(("a", BOOT, 1)) is None
    assert shown(sessions, "a") == [3, 4, 1]


def test_what_the_database_holds_makes_the_same_sessions_again() -> None:
    sessions = Sessions()
    for number in range(1, 8):
        put(sessions, account("a", number, number))
    folded = {key: last for key, last in sessions.applied().items() if key not in sessions.accounts}
    again = Sessions(sessions.accounts.values(), folded, sessions.totals)
    assert again.applied() == sessions.applied()
    assert again.newest == sessions.newest


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 30)), max_size=8), max_size=30))
def test_bounds_hold_and_every_session_is_counted_once(groups: list[list[tuple[str, int]]]) -> None:
    sessions = Sessions()
    begun: set[SessionKey] = set()
    for time, group in enumerate(groups, 1):
        fresh = {key_of(a): a for a in (account(node, number, time, emitted=1) for node, number in group)}
        # A session that was folded and comes again is one more in the sums; leave it out to count exactly.
        fresh = {k: a for k, a in fresh.items() if k not in begun or k in sessions.accounts}
        begun |= set(fresh)
        sessions.commit(fresh, sessions.plan(fresh))
        counts = {node: len(shown(sessions, node)) for node in sessions.newest}
        assert all(1 <= count <= 3 for count in counts.values())
        assert len(sessions.accounts) == sum(counts.values()) <= max(6, len(counts))
        assert len(sessions.applied()) - len(sessions.accounts) <= 8
        for node, newest in sessions.newest.items():
            assert sessions.accounts[key_of(newest)] is newest
            assert newest.node == node
        assert len(sessions.accounts) + sum(t.sessions for t in sessions.totals.values()) == len(begun)
