"""From the ring to the spool exactly once: with the real ring code on a file, and kills between any two steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_ring import BUSY, DISCARD, FileRing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vedette_agent.drain import BACKLOG_BATCH_S, Batches, Drain, KernelCounters, resume
from vedette_agent.spool import Spool
from vedette_events._native import Ring
from vedette_events.encode import decode_event, encode_event
from vedette_events.framing import BatchFlags, BatchHeader, decode_batch, iter_batches

BOOT = bytes(range(16))


def event(number: int, path: bytes = b"") -> bytes:
    return encode_event("unlink", pid=number, time=1000 + number, path=path)


def everything(spool: Spool) -> list[tuple[BatchHeader, list[int]]]:
    """All unsettled batches with the numbers of their events; settles them."""
    found = []
    while (chunk := spool.read(1 << 20)) is not None:
        for _, frame in iter_batches(chunk.body):
            header, records = decode_batch(frame)
            found.append((header, list(numbers(records))))
        spool.acknowledge({(r.session, r.sequence) for r in chunk.refs})
    return found


def numbers(records: bytes) -> Iterator[int]:
    at = 0
    while at < len(records):
        size = int.from_bytes(records[at : at + 4], "little")
        yield decode_event(records[at : at + size])[1]["pid"]
        at += size


class World:
    """A ring, a spool and what an agent makes of them; `restart` is kill -9 and a new agent."""

    def __init__(self, directory: Path, ring_bytes: int = 1 << 16) -> None:
        self.directory = directory
        self.kernel = FileRing(ring_bytes)
        self.emitted = 0
        self.dropped = 0
        self.begin()

    def begin(self) -> None:
        self.ring = Ring(self.kernel.fd, self.kernel.size)
        self.spool = Spool(self.directory)
        self.batches = Batches(
            self.spool,
            node="n",
            boot_id=BOOT,
            session=7,
            counters=lambda: KernelCounters(self.emitted, 3, self.dropped),
        )
        self.left_out = resume(self.ring, self.batches)
        self.away = False
        self.drain = Drain(self.ring, self.batches, ring_bytes=self.kernel.size, unhurried=lambda: self.away)

    def emit(self, count: int = 1, path: bytes = b"") -> None:
        for _ in range(count):
            if self.kernel.put(event(self.emitted + 1, path)):
                self.emitted += 1
            else:
                self.dropped += 1

    def restart(self) -> None:
        self.ring.close()
        self.spool.close()
        self.begin()

    def close(self) -> None:
        self.ring.close()
        self.spool.close()
        self.kernel.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_one_look_makes_one_numbered_batch(world: World) -> None:
    world.emit(3)
    world.drain.step(100.0)

    ((header, found),) = everything(world.spool)
    assert found == [1, 2, 3]
    assert (header.sequence, header.session, header.count, header.ring_from) == (1, 7, 3, 0)
    assert header.ring_to == world.ring.consumer == world.ring.producer
    assert (header.first_time, header.last_time) == (1001, 1003)
    assert (header.counters.emitted, header.counters.deduplicated) == (3, 3)


def test_an_empty_ring_makes_no_batch_and_is_looked_at_less_often(world: World) -> None:
    waits = [world.drain.step(float(n)) for n in range(Drain.IDLE_LOOKS + 2)]

    assert (waits[0], waits[-1]) == (0.02, 0.04)
    assert everything(world.spool) == []


def test_a_second_batch_waits_for_its_time(world: World) -> None:
    world.emit()
    world.drain.step(100.0)
    world.emit()

    assert world.drain.step(100.03) == pytest.approx(0.01)
    assert len(everything(world.spool)) == 1
    world.drain.step(100.041)
    assert len(everything(world.spool)) == 1


def test_batches_are_fewer_while_the_detector_is_away_but_the_ring_never_runs_short(world: World) -> None:
    world.away = True
    world.emit()
    world.drain.step(100.0)
    world.emit()
    world.drain.step(100.1)
    assert len(everything(world.spool)) == 1

    world.emit(20, path=bytes(2000))
    world.drain.step(100.2)
    assert len(everything(world.spool)) == 1
    world.emit()
    world.drain.step(100.2 + BACKLOG_BATCH_S)
    assert len(everything(world.spool)) == 1


def test_killed_between_append_and_commit_nothing_is_doubled(world: World) -> None:
    world.emit(3)
    start = world.ring.consumer
    records, position, count = world.ring.drain(1 << 20)
    assert world.batches.append(records, count, ring_from=start, ring_to=position)
    world.restart()

    assert world.left_out == position - start
    world.emit()
    world.drain.step(100.0)
    assert [(h.sequence, found) for h, found in everything(world.spool)] == [(1, [1, 2, 3]), (2, [4])]


def test_killed_before_the_append_nothing_is_lost(world: World) -> None:
    world.emit(3)
    world.ring.drain(1 << 20)
    world.restart()

    world.drain.step(100.0)
    assert [found for _, found in everything(world.spool)] == [[1, 2, 3]]


def test_a_record_that_is_being_written_holds_back_what_follows(world: World) -> None:
    world.emit()
    position = world.kernel.producer
    world.kernel.put(event(2), BUSY)
    world.kernel.put(event(3))
    world.drain.step(100.0)
    world.drain.step(101.0)
    assert [found for _, found in everything(world.spool)] == [[1]]

    world.kernel.finish(position)
    world.drain.step(102.0)
    assert [found for _, found in everything(world.spool)] == [[2, 3]]


def test_discarded_samples_are_given_back_without_a_batch(world: World) -> None:
    world.kernel.put(event(1), DISCARD)
    world.drain.step(100.0)

    assert everything(world.spool) == []
    assert world.ring.consumer == world.ring.producer


def test_a_full_disk_leaves_the_events_in_the_ring(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.emit(2)
    with monkeypatch.context() as patch:
        patch.setattr(world.spool, "append", lambda header, batch: False)
        assert world.drain.step(100.0) == Drain.FULL_WAIT_S
        assert world.drain.spool_full
    world.drain.step(101.0)

    assert not world.drain.spool_full
    assert [(h.sequence, found) for h, found in everything(world.spool)] == [(1, [1, 2])]


def test_a_ring_that_contradicts_itself_is_passed_over(world: World) -> None:
    world.emit()
    world.kernel.put(b"\xff" * 64, 1 << 20)
    world.drain.step(100.0)
    world.drain.step(101.0)
    world.emit()
    world.drain.step(102.0)

    assert world.drain.corrupt == 1
    assert [n for _, found in everything(world.spool) for n in found][-1] == world.emitted


def test_own_batches_take_nothing_from_the_ring_and_count_on(world: World) -> None:
    world.emit()
    world.drain.step(100.0)
    assert world.batches.append(event(50), 1, flags=BatchFlags.SNAPSHOT)
    world.emit()
    world.drain.step(101.0)

    first, own, last = [header for header, _ in everything(world.spool)]
    assert (first.sequence, own.sequence, last.sequence) == (1, 2, 3)
    assert own.ring_from == own.ring_to == first.ring_to == last.ring_from
    assert own.flags == BatchFlags.SNAPSHOT


def test_the_end_is_marked_after_everything_was_moved(world: World) -> None:
    world.emit(5)
    assert world.drain.finish(1.0, BatchFlags.FINAL)

    batches = everything(world.spool)
    assert [n for _, found in batches for n in found] == [1, 2, 3, 4, 5]
    assert [h.flags for h, _ in batches] == [BatchFlags(0), BatchFlags.FINAL]


def test_a_batch_says_up_to_when_the_ring_is_in_it(world: World) -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    world.emit(2)
    world.drain.step(100.0)
    emptied = world.drain.drained_ns
    world.kernel.put(event(3))
    position = world.kernel.producer
    world.kernel.put(event(4), BUSY)
    world.drain.step(101.0)
    held_back = world.drain.drained_ns
    world.kernel.finish(position)
    world.drain.step(102.0)
    idle = world.drain.step(103.0)

    all_of_it, some_of_it, rest = [header for header, _ in everything(world.spool)]
    assert before < all_of_it.created_ns == emptied == held_back
    assert some_of_it.created_ns == some_of_it.last_time == 1003  # what follows may be as old
    assert emptied < rest.created_ns < world.drain.drained_ns  # an idle look moves it on, without a batch
    assert idle == 0.02


def test_what_could_not_be_spooled_is_not_drained(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.emit()
    with monkeypatch.context() as patch:
        patch.setattr(world.spool, "append", lambda header, batch: False)
        world.drain.step(100.0)
    assert world.drain.drained_ns == 0


def test_the_end_carries_when_the_programs_were_stopped(world: World) -> None:
    world.emit()
    assert world.drain.finish(1.0, BatchFlags.FINAL, stopped_ns=4711)

    assert [h.created_ns == 4711 for h, _ in everything(world.spool)] == [False, True]


def test_programs_that_go_on_do_not_hold_up_the_end(world: World) -> None:
    def busy() -> KernelCounters:
        world.emit()  # while each batch is made, the next event comes
        return KernelCounters(world.emitted, 0, 0)

    world.batches._counters = busy
    world.emit(3)

    assert world.drain.finish(0.01)
    moved = [n for _, events in everything(world.spool) for n in events]
    assert moved == list(range(1, world.emitted))


def test_a_record_that_never_gets_finished_does_not_hold_up_the_end(world: World) -> None:
    world.kernel.put(event(1), BUSY)

    assert not world.drain.finish(0.01, BatchFlags.FINAL)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("emit"), st.integers(1, 60)),
        st.tuples(st.just("look"), st.just(0)),
        st.tuples(st.just("killed before append"), st.just(0)),
        st.tuples(st.just("killed before commit"), st.just(0)),
        st.tuples(st.just("killed"), st.just(0)),
    ),
    max_size=30,
)


@given(steps=STEPS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_each_event_comes_exactly_once_whatever_is_killed_when(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    world = World(tmp_path_factory.mktemp("world"), ring_bytes=1 << 13)
    now = 0.0
    arrived: list[int] = []
    sequences: list[int] = []
    for what, count in [*steps, ("look", 0)]:
        now += 1.0
        if what == "emit":
            world.emit(count)
            continue
        if what == "killed before append":
            world.ring.drain(1 << 20)
        elif what == "killed before commit":
            start = world.ring.consumer
            records, position, events = world.ring.drain(1 << 20)
            if events:
                world.batches.append(records, events, ring_from=start, ring_to=position)
        else:
            world.drain.step(now)
        if what != "look":
            world.restart()
        for header, found in everything(world.spool):
            sequences.append(header.sequence)
            arrived += found
    world.close()

    assert arrived == list(range(1, world.emitted + 1))
    assert sequences == list(range(1, len(sequences) + 1))
