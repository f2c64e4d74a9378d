"""The spool keeps every batch exactly once through kills, torn files and full disks, and counts what it gives up."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vedette_agent.errors import SpoolBusyError, SpoolError
from vedette_agent.spool import MINIMUM_LIMIT, Loss, Position, Spool
from vedette_events.encode import encode_event
from vedette_events.framing import BatchHeader, decode_header, encode_batch, iter_batches

BOOT = bytes(range(16))


def batch(sequence: int, *, events: int = 3, session: int = 7, filler: int = 0, own: bool = False) -> tuple[Any, bytes]:
    """A framed batch of ``events`` exits; ``filler`` bytes of incompressible payload make it large."""
    records = b"".join(encode_event("exit", pid=sequence, time=i) for i in range(events))
    if filler:
        records += encode_event("dns", payload=os.urandom(min(filler, 1472)))
        events += 1
    header = BatchHeader(
        node="n",
        boot_id=BOOT,
        session=session,
        sequence=sequence,
        count=events,
        ring_from=0 if own else sequence * 100,
        ring_to=0 if own else sequence * 100 + 100,
    )
    framed = encode_batch(header, records)
    return decode_header(framed)[0], framed


def sequences(spool: Spool, max_bytes: int = 1 << 20) -> list[int]:
    """Read everything that is unsettled, acknowledging as it goes."""
    found: list[int] = []
    while (chunk := spool.read(max_bytes)) is not None:
        assert [h.sequence for h, _ in iter_batches(chunk.body)] == [r.sequence for r in chunk.refs]
        found += [r.sequence for r in chunk.refs]
        assert spool.acknowledge({(r.session, r.sequence) for r in chunk.refs}) == len(chunk.refs)
    return found


def test_batches_come_back_in_order_and_leave_when_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for n in (1, 2, 3):
        assert spool.append(*batch(n))

    first = spool.read(1)
    assert first is not None
    assert [r.sequence for r in first.refs] == [1]
    assert spool.read(1) == first
    assert spool.acknowledge({(7, 1)}) == 1
    assert sequences(spool) == [2, 3]
    assert spool.read(1) is None
    assert spool.stats().batches == 0


def test_an_acknowledgement_settles_nothing_behind_a_hole(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for n in (1, 2, 3):
        spool.append(*batch(n))
    spool.read(1 << 20)

    assert spool.acknowledge({(7, 2), (7, 3)}) == 0
    assert sequences(spool) == [1, 2, 3]


def test_a_restart_continues_where_the_last_append_and_acknowledgement_stood(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for n in (1, 2, 3):
        spool.append(*batch(n))
    spool.read(1)
    spool.acknowledge({(7, 1)})
    spool.close()

    again = Spool(tmp_path)
    position = again.position(BOOT, 7)
    assert position is not None
    assert (position.sequence, position.ring_to) == (3, 400)
    assert again.stats().batches == 2
    assert sequences(again) == [2, 3]


def test_the_position_survives_when_every_batch_is_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=1)
    for n in (1, 2, 3):
        spool.append(*batch(n))
    assert sequences(spool) == [1, 2, 3]
    assert len(list(tmp_path.glob("*.segment"))) == 1
    spool.close()

    again = Spool(tmp_path)
    position = again.position(BOOT, 7)
    assert position is not None
    assert position.sequence == 3
    assert again.read(1) is None
    again.append(*batch(4))
    assert sequences(again) == [4]


def test_sessions_keep_their_order_and_their_own_positions(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(*batch(8, session=1))
    spool.append(*batch(1, session=2))
    spool.append(*batch(2, session=2))
    spool.close()

    again = Spool(tmp_path)
    old, new = again.position(BOOT, 1), again.position(BOOT, 2)
    assert old is not None
    assert new is not None
    assert (old.sequence, new.sequence) == (8, 2)
    assert again.position(BOOT, 3) is None
    assert again.position(bytes(16), 2) is None
    assert sequences(again) == [8, 1, 2]


def test_a_second_agent_is_kept_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(SpoolBusyError, match="another agent uses the spool directory"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_too_small_a_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="at least 262144 are needed"):
        Spool(tmp_path, MINIMUM_LIMIT - 1)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="cannot use the spool directory"):
        Spool(tmp_path / "file" / "spool")


def test_a_full_spool_gives_up_the_oldest_and_counts_them(tmp_path: Path) -> None:
    warnings: list[str] = []
    spool = Spool(tmp_path, MINIMUM_LIMIT, warn=lambda reason, details: warnings.append(reason))
    total = 400
    for n in range(1, total + 1):
        assert spool.append(*batch(n, filler=1472))

    assert spool.stats().bytes <= MINIMUM_LIMIT
    loss = spool.loss(BOOT, 7)
    left = sequences(spool)
    assert left == list(range(loss.batches + 1, total + 1))
    assert loss.events == loss.batches * 4
    assert spool.reasons() == {"SpoolFull": loss.batches}
    assert set(warnings) == {"SpoolLoss"}


def test_batches_that_the_agent_made_itself_count_no_kernel_events(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MINIMUM_LIMIT)
    for n in range(1, 401):
        spool.append(*batch(n, filler=1472, own=True))

    loss = spool.loss(BOOT, 7)
    assert loss.batches > 0
    assert loss.events == 0


def test_losses_survive_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MINIMUM_LIMIT)
    for n in range(1, 401):
        spool.append(*batch(n, filler=1472))
    before, reasons = spool.loss(BOOT, 7), spool.reasons()
    spool.close()

    again = Spool(tmp_path, MINIMUM_LIMIT)
    assert again.loss(BOOT, 7) == before
    assert again.reasons() == reasons


def test_an_acknowledgement_that_comes_after_giving_up_takes_the_loss_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MINIMUM_LIMIT, segment_bytes=1)
    spool.append(*batch(1, filler=1472))
    chunk = spool.read(1)
    assert chunk is not None
    n = 1
    while spool.loss(BOOT, 7) == Loss():
        n += 1
        spool.append(*batch(n, filler=1472))
    assert spool.loss(BOOT, 7) == Loss(1, 4)

    assert spool.acknowledge({(7, 1)}) == 1
    assert spool.loss(BOOT, 7) == Loss(0, 0)
    assert sequences(spool) == list(range(2, n + 1))


def test_a_refused_batch_is_counted_with_its_reason_and_the_next_follows(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for n in (1, 2):
        spool.append(*batch(n))
    spool.read(1)

    refused = spool.refuse("BadRecord")
    assert refused is not None
    assert refused.sequence == 1
    assert spool.loss(BOOT, 7) == Loss(1, 3)
    assert spool.reasons() == {"BadRecord": 1}
    assert sequences(spool) == [2]


def test_notes_survive(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.note("snapshot") is None
    spool.set_note("snapshot", [7, True])
    spool.close()

    assert Spool(tmp_path).note("snapshot") == [7, True]


def test_a_state_slot_that_was_torn_leaves_the_one_before(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.set_note("n", 1)
    spool.set_note("n", 2)
    spool.close()
    state = bytearray((tmp_path / "state").read_bytes())
    newest = 4096 if b'"n":2' in state[4096:] else 0
    state[newest + 20] ^= 0xFF
    (tmp_path / "state").write_bytes(state)

    assert Spool(tmp_path).note("n") == 1


# ---- torn and damaged files ------------------------------------------------------------------------------------------


@given(cut=st.integers(min_value=0), count=st.integers(min_value=1, max_value=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_file_cut_anywhere_keeps_every_whole_batch(tmp_path: Path, cut: int, count: int) -> None:
    directory = tmp_path / "spool"
    shutil.rmtree(directory, ignore_errors=True)
    spool = Spool(directory)
    ends = [0]
    for n in range(1, count + 1):
        header, framed = batch(n)
        spool.append(header, framed)
        ends.append(ends[-1] + len(framed))
    spool.close()
    (path,) = directory.glob("*.segment")
    cut %= ends[-1] + 1
    os.truncate(path, cut)
    whole = sum(1 for end in ends[1:] if end <= cut)

    warnings: list[tuple[str, dict[str, Any]]] = []
    again = Spool(directory, warn=lambda reason, details: warnings.append((reason, details)))
    assert sequences(again) == list(range(1, whole + 1))
    torn = cut - ends[whole]
    assert [w[1]["bytes"] for w in warnings if w[0] == "SpoolTailCut"] == ([torn] if torn else [])
    again.append(*batch(whole + 1))
    assert sequences(again) == [whole + 1]
    again.close()


@given(position=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_byte_costs_the_batch_it_is_in_and_those_behind_it_and_nothing_else(
    tmp_path: Path, position: int, flip: int
) -> None:
    directory = tmp_path / "spool"
    shutil.rmtree(directory, ignore_errors=True)
    spool = Spool(directory)
    ends = [0]
    for n in range(1, 5):
        header, framed = batch(n)
        spool.append(header, framed)
        ends.append(ends[-1] + len(framed))
    spool.close()
    (path,) = directory.glob("*.segment")
    data = bytearray(path.read_bytes())
    position %= len(data)
    data[position] ^= flip
    path.write_bytes(data)
    intact = sum(1 for end in ends[1:] if end <= position)

    again = Spool(directory)
    assert sequences(again) == list(range(1, intact + 1))
    again.close()


@given(st.binary(max_size=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_garbage_behind_the_batches_is_cut(tmp_path: Path, garbage: bytes) -> None:
    directory = tmp_path / "spool"
    shutil.rmtree(directory, ignore_errors=True)
    spool = Spool(directory)
    spool.append(*batch(1))
    spool.close()
    (path,) = directory.glob("*.segment")
    with path.open("ab") as file:
        file.write(garbage)

    again = Spool(directory)
    assert sequences(again) == [1]
    again.close()


def test_damage_that_appears_while_running_is_counted_and_passed_over(tmp_path: Path) -> None:
    warnings: list[str] = []
    spool = Spool(tmp_path, segment_bytes=1, warn=lambda reason, details: warnings.append(reason))
    for n in (1, 2, 3):
        spool.append(*batch(n))
    first = sorted(tmp_path.glob("*.segment"))[0]
    first.write_bytes(b"\0" * first.stat().st_size)

    assert sequences(spool) == [2, 3]
    assert spool.loss(BOOT, 7) == Loss(1, 3)
    assert spool.reasons() == {"BadMagic": 1}
    assert warnings == ["SpoolDamaged"]


# ---- a disk that is full ---------------------------------------------------------------------------------------------


class FullDisk:
    """Lets ``pwrite`` of segments write ``room`` more bytes; the operating system's own refusal afterwards."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._pwrite: Callable[..., int] = os.pwrite

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        if not name.endswith(".segment"):
            return self._pwrite(fd, data, offset)
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._pwrite(fd, memoryview(data)[: self.room], offset)
        self.room -= written
        return written


def test_a_full_disk_leaves_the_batch_to_the_caller_and_tears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append(*batch(1))
    disk = FullDisk(room=100)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", disk.pwrite)
        assert not spool.append(*batch(2))
        assert not spool.append(*batch(2))
    assert spool.append(*batch(2))

    assert sequences(spool) == [1, 2]
    assert spool.loss(BOOT, 7) == Loss()
    spool.close()
    position = Spool(tmp_path).position(BOOT, 7)
    assert position is not None
    assert position.sequence == 2


def test_a_full_disk_gives_up_the_oldest_segments_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, segment_bytes=1)
    for n in (1, 2, 3):
        spool.append(*batch(n))
    disk = FullDisk(room=0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", disk.pwrite)
        assert not spool.append(*batch(4))
    assert spool.reasons() == {"DiskFull": 2}
    assert spool.append(*batch(4))

    assert sequences(spool) == [3, 4]
    assert spool.loss(BOOT, 7) == Loss(2, 6)


@pytest.mark.parametrize("restart", [False, True])
def test_a_full_disk_is_left_again_once_everything_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    spool = Spool(tmp_path)
    for n in (1, 2):
        spool.append(*batch(n))
    (first,) = tmp_path.glob("*.segment")
    real = os.pwrite

    def full_while_the_first_file_is_there(fd: int, data: Any, offset: int) -> int:
        if first.exists() and Path(f"/proc/self/fd/{fd}").readlink().name.endswith(".segment"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full_while_the_first_file_is_there)
    assert not spool.append(*batch(3))
    spool.read(1)
    spool.acknowledge({(7, 1)})
    assert not spool.append(*batch(3))
    assert sequences(spool) == [2]
    assert spool.append(*batch(3))
    if restart:
        spool.close()
        spool = Spool(tmp_path)

    assert sequences(spool) == [3]
    assert spool.position(BOOT, 7) == Position(3, 400)
    assert spool.loss(BOOT, 7) == Loss()


def test_the_position_is_kept_when_the_last_segment_had_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    spool.append(*batch(1))
    assert sequences(spool) == [1]
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", FullDisk(room=0).pwrite)
        assert not spool.append(*batch(2))
    spool.close()

    again = Spool(tmp_path)
    assert again.position(BOOT, 7) == Position(1, 200)
    assert again.append(*batch(2))
    assert sequences(again) == [2]


# ---- a model of everything together ----------------------------------------------------------------------------------


class SpoolMachine(RuleBasedStateMachine):
    """Appends, reads, acknowledges, refuses and kills in any order; compares with a list."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.directory = Path(tempfile.mkdtemp(prefix="spool-"))
        self.spool = Spool(self.directory, MINIMUM_LIMIT, segment_bytes=4096)
        self.next = 1
        self.session = 1
        self.spooled: list[tuple[int, int]] = []
        self.arrived: list[tuple[int, int]] = []
        self.refused = 0
        self.flight: list[tuple[int, int]] = []

    @initialize()
    def begin(self) -> None:
        self.append(1000)

    @rule(filler=st.sampled_from([0, 500, 1472]), times=st.integers(1, 40))
    def append_many(self, filler: int, times: int) -> None:
        for _ in range(times):
            self.append(filler)

    def append(self, filler: int) -> None:
        header, framed = batch(self.next, session=self.session, filler=filler)
        assert self.spool.append(header, framed)
        self.spooled.append((self.session, self.next))
        self.next += 1

    @precondition(lambda self: self.session < 12)
    @rule()
    def new_session(self) -> None:
        self.session += 1
        self.next = 1
        self.append(0)

    @rule(max_bytes=st.sampled_from([1, 3000, 100_000]))
    def read(self, max_bytes: int) -> None:
        chunk = self.spool.read(max_bytes)
        self.flight = [(r.session, r.sequence) for r in chunk.refs] if chunk else []

    @precondition(lambda self: self.flight)
    @rule(share=st.floats(0, 1))
    def acknowledge(self, share: float) -> None:
        taken = self.flight[: round(share * len(self.flight))]
        assert self.spool.acknowledge(set(taken)) == len(taken)
        self.arrived += taken
        self.flight = self.flight[len(taken) :]

    @precondition(lambda self: self.flight)
    @rule()
    def refuse(self) -> None:
        if self.spool.refuse("BadRecord") is not None:
            self.refused += 1
            self.spooled.remove(self.flight[0])
        self.flight = self.flight[1:]

    @rule(torn=st.binary(max_size=300))
    def kill(self, torn: bytes) -> None:
        """What kill -9 leaves: the files as they are, perhaps with the beginning of one more batch."""
        self.spool.close()
        newest = max(self.directory.glob("*.segment"))
        _, framed = batch(self.next, session=self.session)
        with newest.open("ab") as file:
            file.write(framed[: min(len(torn), len(framed) - 1)])
        self.spool = Spool(self.directory, MINIMUM_LIMIT, segment_bytes=4096)
        self.flight = []
        position = self.spool.position(BOOT, self.session)
        assert position is not None
        assert position.sequence == self.next - 1

    @invariant()
    def size_is_bounded(self) -> None:
        assert self.spool.stats().bytes <= MINIMUM_LIMIT

    def teardown(self) -> None:
        self.flight = []
        left: list[tuple[int, int]] = []
        while (chunk := self.spool.read(50_000)) is not None:
            left += [(r.session, r.sequence) for r in chunk.refs]
            self.spool.acknowledge({(r.session, r.sequence) for r in chunk.refs})
        arrived = self.arrived + left
        lost = sum(self.spool.loss(BOOT, s).batches for s in range(1, self.session + 1)) - self.refused
        assert len(set(arrived)) == len(arrived)
        assert arrived == sorted(arrived)
        assert len(arrived) + lost == len(self.spooled)
        self.spool.close()
        shutil.rmtree(self.directory)


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
