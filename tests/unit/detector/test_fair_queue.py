"""Turns: no node waits for what another has put in."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_detector.fair_queue import FairQueue


def drained(queue: FairQueue[str]) -> str:
    return "".join(queue.get() for _ in range(len(queue)))


def test_nodes_take_turns_whatever_one_has_put_in() -> None:
    queue: FairQueue[str] = FairQueue(turn=10)
    for _ in range(8):
        queue.put("bad", "b", 10)
    for node in "xy":
        queue.put(node, node, 10)
        queue.put(node, node, 10)
    order = drained(queue)
    assert sorted(order[:3]) == ["b", "x", "y"]
    assert sorted(order[3:6]) == ["b", "x", "y"]
    assert order[6:] == "bbbbbb"


def test_a_turn_is_worth_the_same_bytes_for_each() -> None:
    queue: FairQueue[str] = FairQueue(turn=10)
    for _ in range(3):
        queue.put("large", "L", 40)
    for _ in range(30):
        queue.put("small", "s", 5)
    order = drained(queue)
    # By the time that the third large one comes, as many bytes of the other node have come.
    assert abs(order.rindex("L") - 2 - 3 * 40 // 5) <= 8


def test_one_that_is_alone_collects_neither_credit_nor_debt() -> None:
    queue: FairQueue[str] = FairQueue(turn=10)
    for _ in range(100):
        queue.put("a", "a", 1000)
    assert [queue.get() for _ in range(50)] == ["a"] * 50
    queue.put("b", "b", 10)
    assert "b" in {queue.get(), queue.get()}


def test_an_empty_queue_says_so() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.empty()
    with pytest.raises(IndexError):
        queue.get()


async def test_waiting_ends_with_an_item_or_when_woken() -> None:
    queue: FairQueue[str] = FairQueue()
    waiting = asyncio.create_task(queue.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.put("a", "a", 1)
    await waiting
    await queue.wait()
    assert queue.get() == "a"
    waiting = asyncio.create_task(queue.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.wake()
    await waiting
    assert queue.empty()
    waiting = asyncio.create_task(queue.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


_PUTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100)), max_size=40)


@given(_PUTS, st.lists(st.booleans(), max_size=60))
def test_each_node_keeps_its_order_and_nothing_is_lost(puts: list[tuple[str, int]], takes: list[bool]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(turn=10)
    waiting = list(enumerate(puts))
    got: list[tuple[str, int]] = []
    for take in takes:
        if take and not queue.empty():
            got.append(queue.get())
        elif waiting:
            number, (node, size) = waiting.pop(0)
            queue.put(node, (node, number), size)
    got += [queue.get() for _ in range(len(queue))]
    put = [(node, number) for number, (node, _) in enumerate(puts)][: len(puts) - len(waiting)]
    assert sorted(got) == sorted(put)
    for name in "abc":
        assert [n for node, n in got if node == name] == [n for node, n in put if node == name]
