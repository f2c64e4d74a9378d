"""From the ring to the spool: each event exactly once, also across kill -9.

One look (`Drain.step`) copies whole records out of the ring without advancing its consumer position, appends them to
the spool as one numbered batch, and only then commits the position. Killed before the append: the records are still in
the ring. Killed between append and commit: the spool's last batch of the session says up to where it reaches, and
`resume` puts the ring there. No step reads a record.

Batches are made at most every ``batch_s`` unless a MiB is pending, and only when there is something to send: an idle
host sends nothing but heartbeats.

An agent without pins that is killed loses what is in the ring. Up to when nothing was lost is therefore told: a batch
of the ring carries as ``created_ns`` a time before which all that the kernel reported is in it or in an earlier one,
and `Drain.drained_ns` says the same of the last look, also on a host where nothing happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vedette_agent import __version__
from vedette_agent.spool import Spool
from vedette_events._native import RingError, scan
from vedette_events.framing import BatchFlags, BatchHeader, Counters, encode_batch
from vedette_events.schema import SCHEMA_VERSION

BATCH_BYTES = 1 << 20
"""Most bytes of records in one batch, and the amount that is not made to wait."""

BACKLOG_BATCH_S = 0.5
"""Least time between batches while the detector is away: nobody waits for them, and larger batches compress better."""

NO_FLAGS = BatchFlags(0)


class RingSource(Protocol):
    """The ring buffer, as `vedette_events._native.Ring` gives it."""

    @property
    def consumer(self) -> int:
        """Position up to which the kernel may overwrite."""

    @property
    def producer(self) -> int:
        """Position up to which the kernel has reserved."""

    def drain(self, max_bytes: int) -> tuple[bytes, int, int]:
        """Records, the position behind them and their number; does not advance."""

    def commit(self, position: int) -> None:
        """Advance the consumer position."""


@dataclass(frozen=True)
class KernelCounters:
    """What the kernel side has counted in the session, cumulative."""

    emitted: int
    deduplicated: int
    dropped: int


class Batches:
    """Frames and numbers the batches of one session and appends them to the spool."""

    def __init__(
        self,
        spool: Spool,
        *,
        node: str,
        boot_id: bytes,
        session: int,
        counters: Callable[[], KernelCounters],
        schema_version: int = SCHEMA_VERSION,
    ) -> None:
        position = spool.position(boot_id, session)
        self._spool = spool
        self._node = node
        self._boot_id = boot_id
        self._session = session
        self._counters = counters
        self._schema_version = schema_version
        self.sequence = position.sequence if position else 0
        """Number of the last batch in the spool."""
        self.ring_to = position.ring_to if position else 0
        """Ring position behind the last batch in the spool."""

    def append(
        self,
        records: bytes,
        count: int,
        *,
        ring_from: int | None = None,
        ring_to: int | None = None,
        flags: BatchFlags = NO_FLAGS,
        created_ns: int | None = None,
    ) -> bool:
        """Make one batch of ``count`` records; without ring positions, of records that the agent made itself.

        Args:
            records: whole records.
            count: their number.
            ring_from: ring position of the first.
            ring_to: ring position behind the last.
            flags: what is particular about the batch.
            created_ns: boot time up to which the ring is in this batch and those before it; 0: up to the newest
                record. None for records that did not come from the ring: now.

        Returns:
            False when the spool has no room: nothing has happened.
        """
        kernel = self._counters()
        lost = self._spool.loss(self._boot_id, self._session)
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        _, first, last = scan(records)
        header = BatchHeader(
            node=self._node,
            boot_id=self._boot_id,
            session=self._session,
            sequence=self.sequence + 1,
            count=count,
            ring_from=self.ring_to if ring_from is None else ring_from,
            ring_to=self.ring_to if ring_to is None else ring_to,
            wall_offset_ns=time.time_ns() - now,
            created_ns=now if created_ns is None else created_ns or last,
            first_time=first,
            last_time=last,
            flags=flags,
            counters=Counters(kernel.emitted, kernel.deduplicated, kernel.dropped, lost.batches, lost.events),
            agent_version=__version__,
            schema_version=self._schema_version,
        )
        if not self._spool.append(header, encode_batch(header, records)):
            return False
        self.sequence = header.sequence
        self.ring_to = header.ring_to
        return True


def resume(ring: RingSource, batches: Batches) -> int:
    """After a restart: leave out what the spool has already. Returns the bytes of the ring left out."""
    behind = batches.ring_to - ring.consumer
    if behind > 0:
        ring.commit(batches.ring_to)
        return behind
    return 0


class Drain:
    """Decides when to look into the ring and moves what is there into the spool.

    Args:
        ring: the ring buffer.
        batches: where its records go.
        ring_bytes: the ring's size.
        poll_s: time between two looks; twice as much when nothing has happened for a while.
        batch_s: least time between two batches.
        unhurried: says that the detector is away, and batches may be fewer and larger.
    """

    IDLE_LOOKS = 50
    FULL_WAIT_S = 0.1

    def __init__(
        self,
        ring: RingSource,
        batches: Batches,
        *,
        ring_bytes: int,
        poll_s: float = 0.02,
        batch_s: float = 0.04,
        unhurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ring = ring
        self._batches = batches
        self._half = ring_bytes // 2
        self._poll_s = poll_s
        self._batch_s = batch_s
        self._unhurried = unhurried
        self._last_batch = 0.0
        self._idle = 0
        self.events = 0
        """Events moved so far."""
        self.bytes = 0
        """Bytes of records moved so far."""
        self.corrupt = 0
        """How often the ring's contents had to be given up because they contradicted themselves."""
        self.spool_full = False
        """Whether the spool had no room at the last look."""
        self.drained_ns = 0
        """Boot time of the last look after which nothing older was left in the ring; 0 before the first."""

    def step(self, now_s: float) -> float:
        """One look. Returns the seconds to sleep before the next."""
        looked_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        pending = self._ring.producer - self._ring.consumer
        if pending <= 0:
            self.drained_ns = looked_ns
            self._idle += 1
            return self._poll_s * 2 if self._idle > self.IDLE_LOOKS else self._poll_s
        self._idle = 0
        # While the detector is away, batches wait longer, but never until the ring runs short.
        interval = BACKLOG_BATCH_S if pending < self._half and self._unhurried() else self._batch_s
        wait = self._last_batch + interval - now_s
        if wait > 0 and pending < BATCH_BYTES:
            return min(self._poll_s, wait)
        moved = self.move()
        self._last_batch = now_s
        if self.spool_full:
            return self.FULL_WAIT_S
        return 0.0 if moved >= BATCH_BYTES // 2 and self._pending() >= BATCH_BYTES else self._poll_s

    def move(self, flags: BatchFlags = NO_FLAGS) -> int:
        """Move at most one batch from the ring into the spool. Returns the bytes moved."""
        looked_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        start, end = self._ring.consumer, self._ring.producer
        try:
            records, position, count = self._ring.drain(BATCH_BYTES)
        except RingError:
            # Nothing in it can be told apart any more; go on behind it rather than stop watching. The detector sees
            # the events as missing, since the kernel has counted them.
            self.corrupt += 1
            self._ring.commit(self._ring.producer)
            return 0
        emptied = position >= end  # else more is in the ring than one batch takes, or a record is still being written
        if count:
            self.spool_full = not self._batches.append(
                records,
                count,
                ring_from=start,
                ring_to=position,
                flags=flags,
                created_ns=looked_ns if emptied else 0,
            )
            if self.spool_full:
                return 0
        if position > start:
            self._ring.commit(position)
        if emptied:
            self.drained_ns = looked_ns
        self.events += count
        self.bytes += len(records)
        return len(records)

    def finish(self, timeout_s: float, flags: BatchFlags = NO_FLAGS, stopped_ns: int | None = None) -> bool:
        """Move all that is left, then append an empty batch with ``flags`` if there are any.

        Programs that stay attached go on filling the ring: after the timeout, what has come since is left in it.

        Args:
            timeout_s: time to take for it.
            flags: of the empty batch; none: no such batch.
            stopped_ns: boot time at which the programs were told to stop, which the empty batch then carries.

        Returns:
            False when something had to stay in the ring.
        """
        deadline = time.monotonic() + timeout_s
        end = self._ring.producer
        while self._pending() > 0:
            moved = self.move()
            reached = self._ring.consumer >= end
            if self._pending() > 0 and time.monotonic() > deadline and (moved == 0 or reached):
                return reached and not flags
            if moved == 0:
                time.sleep(0.001)  # a record is still being written, or the disk is full
        return not flags or self._batches.append(b"", 0, flags=flags, created_ns=stopped_ns)

    def _pending(self) -> int:
        return self._ring.producer - self._ring.consumer
