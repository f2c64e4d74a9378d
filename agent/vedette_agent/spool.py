"""The spool: framed batches on disk, from the moment they leave the ring until the detector has them.

A directory of segment files, each a plain concatenation of framed batches (`vedette_events.framing`) of one session,
plus ``state``: up to where the batches are settled (acknowledged, refused or given up) and what was lost.

    spool/
        lock                        held by the agent that uses the directory
        state                       two slots of 4 KiB, written in turn; the valid one with the higher generation counts
        0000000000000012.segment    oldest batches first; the number only grows

What holds after ``kill -9`` at any instant: a batch whose `Spool.append` has returned is found again; a batch that was
being written is cut off by the next start, and its events are still in the ring, because the ring's position is
committed after the append. The newest segment stays, even when all of it is acknowledged: its last batch says which
sequence number and ring position the session had reached. (Only when the disk is full is it given back as well, and the
position is kept in ``state``.)

Nothing is fsynced: a crash of the *machine* may cost the last seconds of batches that were neither sent nor written
back. The ring is lost with the kernel as well, and the detector sees the gap in the sequence numbers.

What the spool does not do: look into records. It knows a batch's header and nothing of its payload.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vedette_agent.errors import SpoolBusyError, SpoolError
from vedette_events.framing import MAX_HEADER, BatchError, BatchHeader, decode_batch, decode_header, iter_batches

SEGMENT_BYTES = 4 << 20
"""Greatest size of a segment. Small enough that dropping the oldest one loses little, large enough that a full spool
of the default size is 64 files."""

MINIMUM_LIMIT = 256 << 10
_SLOT = 4096
_MAGIC = b"VDS1"
_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SUFFIX = ".segment"

SessionKey = tuple[bytes, int]
"""(boot_id, session): one load of the BPF programs."""


@dataclass(frozen=True)
class BatchRef:
    """One batch as the sender needs to know it. ``size`` is its framed length in bytes.

    ``events`` counts kernel events only: a batch that the agent made itself (snapshot, hashes) has none, so that
    losses can be set against the kernel's own counters.
    """

    boot_id: bytes
    session: int
    sequence: int
    size: int
    events: int

    @property
    def key(self) -> SessionKey:
        """The session it belongs to."""
        return (self.boot_id, self.session)


@dataclass(frozen=True)
class Chunk:
    """Consecutive unsettled batches, oldest first; ``body`` is their concatenation, ready to be posted."""

    body: bytes
    refs: tuple[BatchRef, ...]


@dataclass(frozen=True)
class Loss:
    """What a session has lost in the spool, cumulative: batches, and kernel events in them."""

    batches: int = 0
    events: int = 0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.batches + other.batches, self.events + other.events)

    def __sub__(self, other: Loss) -> Loss:
        return Loss(max(0, self.batches - other.batches), max(0, self.events - other.events))


@dataclass(frozen=True)
class SpoolStats:
    """How full the spool is. ``bytes`` is what lies on disk, ``batches`` what is not settled yet."""

    bytes: int
    batches: int
    limit_bytes: int


@dataclass(frozen=True)
class Position:
    """Where a session stood with its last spooled batch."""

    sequence: int
    ring_to: int


@dataclass
class _Segment:
    index: int
    path: Path
    key: SessionKey | None = None
    size: int = 0
    batches: int = 0
    events: int = 0
    last: BatchHeader | None = None


@dataclass
class _InFlight:
    ref: BatchRef
    segment: int
    end: int
    given_up: bool = False


@dataclass
class _State:
    generation: int = 0
    segment: int = 0
    offset: int = 0
    losses: dict[SessionKey, Loss] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    position: tuple[SessionKey, Position] | None = None


def events_of(header: BatchHeader) -> int:
    """Kernel events in a batch: zero for one that the agent made itself and that took nothing from the ring."""
    return header.count if header.ring_to > header.ring_from else 0


def _ref(header: BatchHeader, size: int) -> BatchRef:
    return BatchRef(header.boot_id, header.session, header.sequence, size, events_of(header))


class Spool:
    """A bounded queue of framed batches on disk. Safe to use from the draining and the sending thread.

    Args:
        directory: made when missing (mode 0700).
        limit_bytes: greatest size of all segments together; exceeded by at most one batch.
        segment_bytes: greatest size of one segment; an eighth of the limit at most.
        warn: called with a CamelCase reason and details whenever something was cut, lost or could not be written.

    Raises:
        SpoolBusyError: another process uses the directory.
        SpoolError: the directory cannot be made, read or written.
    """

    def __init__(
        self,
        directory: Path,
        limit_bytes: int = 256 << 20,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        warn: Callable[[str, dict[str, Any]], None] = lambda reason, details: None,
    ) -> None:
        if limit_bytes < MINIMUM_LIMIT:
            raise SpoolError(f"the spool limit is {limit_bytes} bytes; at least {MINIMUM_LIMIT} are needed")
        self._directory = directory
        self._limit = limit_bytes
        self._segment_bytes = max(1, min(segment_bytes, limit_bytes // 8))
        self._warn = warn
        self._lock = threading.RLock()
        self._pending = threading.Condition(self._lock)
        self._segments: deque[_Segment] = deque()
        self._in_flight: deque[_InFlight] = deque()
        self._settled = (0, 0)  # batches and events before the cursor within the cursor's segment
        self._write_fd = -1
        self._read: tuple[int, int] = (-1, -1)  # (segment index, descriptor) of the segment read last
        self._out_of_space = False
        self._woken = False
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(f"cannot use the spool directory {directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_fd)
            raise SpoolBusyError(f"another agent uses the spool directory {directory}") from error
        try:
            self._state_fd = os.open(directory / "state", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._state = self._load_state()
            self._recover()
        except OSError as error:
            os.close(self._lock_fd)
            raise SpoolError(f"cannot read the spool directory {directory}: {error.strerror}") from error

    # ---- what the draining thread uses ---------------------------------------------------------------------------

    def append(self, header: BatchHeader, batch: bytes) -> bool:
        """Write one framed batch behind the others.

        Args:
            header: the batch's header, as it is encoded in ``batch``.
            batch: the framed batch.

        Returns:
            False when there is no room even after the oldest segments were given up (the disk is full, or not
            writable): nothing was written, and the caller keeps the events in the ring.
        """
        with self._lock:
            self._make_room(len(batch))
            while True:
                try:
                    self._write(header, batch)
                except OSError as error:
                    if not self._out_of_space:
                        self._warn("SpoolWriteFailed", {"error": os.strerror(error.errno or 0)})
                    self._out_of_space = True
                    if error.errno in _OUT_OF_SPACE:
                        if self._may_give_up():
                            self._give_up_oldest("DiskFull")
                            continue
                        if self._give_back_last():
                            continue
                    return False
                break
            self._out_of_space = False
            self._delete_settled()
            self._pending.notify_all()
            return True

    def position(self, boot_id: bytes, session: int) -> Position | None:
        """Where the session stood with its last spooled batch; None when the spool knows nothing of it."""
        with self._lock:
            for segment in reversed(self._segments):
                if segment.key == (boot_id, session) and segment.last is not None:
                    return Position(segment.last.sequence, segment.last.ring_to)
            kept = self._state.position
            return kept[1] if kept is not None and kept[0] == (boot_id, session) else None

    def loss(self, boot_id: bytes, session: int) -> Loss:
        """What the session has lost in the spool so far."""
        with self._lock:
            return self._state.losses.get((boot_id, session), Loss())

    def reasons(self) -> dict[str, int]:
        """Batches lost by reason (SpoolFull, DiskFull, or the reason of the detector's refusal), all sessions."""
        with self._lock:
            return dict(self._state.reasons)

    def note(self, name: str) -> Any:
        """A small JSON value kept with `set_note`; None when there is none."""
        with self._lock:
            return self._state.notes.get(name)

    def set_note(self, name: str, value: Any) -> None:
        """Keep a small JSON value beside the batches (a few hundred bytes in all)."""
        with self._lock:
            self._state.notes[name] = value
            self._save_state()

    # ---- what the sending thread uses ----------------------------------------------------------------------------

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is an unsettled batch; False when the time passed without one."""
        with self._pending:
            self._pending.wait_for(lambda: self._woken or self._has_unsettled(), timeout_s)
            return self._has_unsettled()

    def wake(self) -> None:
        """Let `wait` return at once from now on, whether or not there is a batch: the end is near."""
        with self._pending:
            self._woken = True
            self._pending.notify_all()

    def read(self, max_bytes: int) -> Chunk | None:
        """The oldest unsettled batches, at most ``max_bytes`` together but at least one; None when there is none.

        They stay in the spool until `acknowledge` or `refuse`. Batches of two segments never share a chunk.
        """
        while True:
            with self._lock:
                segment = self._cursor_segment()
                if segment is None:
                    self._in_flight.clear()
                    return None
                offset, end = self._state.offset, segment.size
                fd = self._reader(segment)
                # Read outside the lock: a backlog may have to come from the disk, and the draining thread must not
                # wait for that. The file stays readable when it is given up meanwhile.
                fd = os.dup(fd)
            try:
                body, headers, damage = _read_batches(fd, offset, end, max_bytes)
            finally:
                os.close(fd)
            with self._lock:
                if (segment.index, offset) != (self._state.segment, self._state.offset):
                    continue  # given up while it was being read
                if not headers:
                    self._skip_damaged(segment, damage or "Truncated")
                    continue
                refs = tuple(_ref(header, size) for header, size in headers)
                self._in_flight.clear()
                for ref in refs:
                    offset += ref.size
                    self._in_flight.append(_InFlight(ref, segment.index, offset))
                return Chunk(body, refs)

    def acknowledge(self, acknowledged: set[tuple[int, int]]) -> int:
        """Settle batches of the last `read` that the detector has, named by (session, sequence).

        Batches are settled in order: one that is acknowledged while an older one is not will be read again.

        Returns:
            How many batches were settled.
        """
        with self._lock:
            settled = 0
            while self._in_flight and (self._in_flight[0].ref.session, self._in_flight[0].ref.sequence) in acknowledged:
                entry = self._in_flight.popleft()
                settled += 1
                if entry.given_up:
                    # It was counted as lost when its segment was given up under it, yet it has arrived.
                    lost = self._state.losses.get(entry.ref.key, Loss())
                    self._state.losses[entry.ref.key] = lost - Loss(1, entry.ref.events)
                else:
                    self._advance(entry)
            if settled:
                self._save_state()
                self._delete_settled()
            return settled

    def refuse(self, reason: str) -> BatchRef | None:
        """Give up the oldest batch of the last `read`, which can never be accepted, and count it as lost.

        Returns:
            The batch, or None when it had been given up already.
        """
        with self._lock:
            if not self._in_flight:
                return None
            entry = self._in_flight.popleft()
            if entry.given_up:
                return None
            self._advance(entry)
            self._count_loss(entry.ref.key, Loss(1, entry.ref.events), reason)
            self._save_state()
            self._delete_settled()
            return entry.ref

    def stats(self) -> SpoolStats:
        """How full the spool is."""
        with self._lock:
            unsettled = sum(s.batches for s in self._segments if s.index >= self._state.segment)
            return SpoolStats(sum(s.size for s in self._segments), unsettled - self._settled[0], self._limit)

    def close(self) -> None:
        """Close all files and let another agent use the directory. Batches stay."""
        with self._lock:
            for fd in (self._write_fd, self._read[1], self._state_fd, self._lock_fd):
                if fd >= 0:
                    os.close(fd)
            self._write_fd = self._state_fd = self._lock_fd = -1
            self._read = (-1, -1)

    # ---- writing -------------------------------------------------------------------------------------------------

    def _make_room(self, size: int) -> None:
        while self._may_give_up() and sum(s.size for s in self._segments) + size > self._limit:
            self._give_up_oldest("SpoolFull")

    def _may_give_up(self) -> bool:
        # The last segment with a batch in it is kept: it knows the session's position.
        return sum(1 for s in self._segments if s.batches) > 1

    def _write(self, header: BatchHeader, batch: bytes) -> None:
        key = (header.boot_id, header.session)
        active = self._segments[-1] if self._segments else None
        if active is not None and active.batches == 0:
            active.key = key
        if (
            active is None
            or active.key != key
            or self._write_fd < 0
            or (active.batches > 0 and active.size + len(batch) > self._segment_bytes)
        ):
            active = self._open_segment(key)
        written = 0
        try:
            view = memoryview(batch)
            while written < len(batch):
                written += os.pwrite(self._write_fd, view[written:], active.size + written)
        except OSError:
            # Part of the batch may be there. Cutting it off needs no space; should even that fail, the next write
            # overwrites it and a restart cuts it.
            try:
                os.ftruncate(self._write_fd, active.size)
            except OSError as error:
                self._warn("SpoolTruncateFailed", {"error": os.strerror(error.errno or 0)})
            raise
        active.size += len(batch)
        active.batches += 1
        active.events += events_of(header)
        active.last = header

    def _open_segment(self, key: SessionKey) -> _Segment:
        index = max(self._segments[-1].index if self._segments else 0, self._state.segment) + 1
        path = self._directory / f"{index:016d}{_SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if self._write_fd >= 0:
            os.close(self._write_fd)
        self._write_fd = fd
        segment = _Segment(index, path, key)
        self._segments.append(segment)
        return segment

    def _give_up_oldest(self, reason: str) -> None:
        oldest = self._segments[0]
        settled = self._settled if oldest.index == self._state.segment else (0, 0)
        if oldest.index >= self._state.segment:
            loss = Loss(oldest.batches - settled[0], oldest.events - settled[1])
            if loss.batches and oldest.key is not None:
                self._count_loss(oldest.key, loss, reason)
                self._warn("SpoolLoss", {"cause": reason, "batches": loss.batches, "events": loss.events})
            for entry in self._in_flight:
                entry.given_up = entry.given_up or entry.segment == oldest.index
            self._move_cursor(oldest.index + 1, 0)
            # The count is on disk before the file goes: a kill between the two neither forgets nor doubles the loss.
            self._save_state()
        self._remove(self._segments.popleft())

    def _give_back_last(self) -> bool:
        """Delete the last segment with batches in it, if all are settled; its position goes into the state."""
        last = next((s for s in self._segments if s.batches), None)
        if last is None or last.last is None or last.key is None or not self._is_settled(last):
            return False
        self._state.position = (last.key, Position(last.last.sequence, last.last.ring_to))
        self._move_cursor(last.index + 1, 0)
        self._save_state()
        if last is self._segments[-1]:
            os.close(self._write_fd)
            self._write_fd = -1
        self._segments.remove(last)
        self._remove(last)
        return True

    def _is_settled(self, segment: _Segment) -> bool:
        at = self._state.segment
        return segment.index < at or (segment.index == at and self._state.offset >= segment.size)

    def _delete_settled(self) -> None:
        while len(self._segments) > 1:
            oldest = self._segments[0]
            if not self._is_settled(oldest) or not self._may_give_up():
                return
            if oldest.index == self._state.segment:
                self._move_cursor(oldest.index + 1, 0)
                self._save_state()
            self._remove(self._segments.popleft())

    def _remove(self, segment: _Segment) -> None:
        if self._read[0] == segment.index:
            os.close(self._read[1])
            self._read = (-1, -1)
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            self._warn("SpoolUnlinkFailed", {"error": os.strerror(error.errno or 0)})

    # ---- the cursor ----------------------------------------------------------------------------------------------

    def _cursor_segment(self) -> _Segment | None:
        """The segment of the oldest unsettled batch; moves the cursor over settled segments."""
        for segment in self._segments:
            if segment.index < self._state.segment:
                continue
            if segment.index > self._state.segment:
                self._move_cursor(segment.index, 0)
            if self._state.offset < segment.size:
                return segment
        return None

    def _has_unsettled(self) -> bool:
        return any(
            s.index > self._state.segment or (s.index == self._state.segment and self._state.offset < s.size)
            for s in self._segments
            if s.size
        )

    def _move_cursor(self, segment: int, offset: int) -> None:
        self._state.segment = segment
        self._state.offset = offset
        self._settled = (0, 0)

    def _advance(self, entry: _InFlight) -> None:
        if entry.segment != self._state.segment:
            self._move_cursor(entry.segment, 0)
        self._state.offset = entry.end
        self._settled = (self._settled[0] + 1, self._settled[1] + entry.ref.events)

    def _skip_damaged(self, segment: _Segment, damage: str) -> None:
        loss = Loss(segment.batches - self._settled[0], segment.events - self._settled[1])
        if segment.key is not None:
            self._count_loss(segment.key, loss, damage)
        self._warn("SpoolDamaged", {"segment": segment.path.name, "damage": damage, "batches": loss.batches})
        self._state.offset = segment.size
        self._settled = (segment.batches, segment.events)
        self._save_state()
        self._delete_settled()

    def _count_loss(self, key: SessionKey, loss: Loss, reason: str | None) -> None:
        self._state.losses[key] = self._state.losses.get(key, Loss()) + loss
        if reason is not None:
            # The state has a fixed size on disk, and the reasons come from the detector.
            if len(self._state.reasons) >= 24 and reason not in self._state.reasons:
                reason = "Other"
            self._state.reasons[reason] = self._state.reasons.get(reason, 0) + loss.batches

    def _reader(self, segment: _Segment) -> int:
        if self._read[0] != segment.index:
            if self._read[1] >= 0:
                os.close(self._read[1])
            self._read = (-1, -1)
            self._read = (segment.index, os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC))
        return self._read[1]

    # ---- what survives -------------------------------------------------------------------------------------------

    def _load_state(self) -> _State:
        best = _State()
        for slot in (0, 1):
            raw = os.pread(self._state_fd, _SLOT, slot * _SLOT)
            state = _decode_state(raw)
            if state is not None and state.generation > best.generation:
                best = state
        if os.fstat(self._state_fd).st_size < 2 * _SLOT:
            # Both slots get their blocks now, so that the state can still be written when the disk is full.
            os.pwrite(self._state_fd, bytes(2 * _SLOT), 0)
            if best.generation:
                os.pwrite(self._state_fd, _encode_state(best), (best.generation & 1) * _SLOT)
        return best

    def _save_state(self) -> None:
        self._state.generation += 1
        live = {s.key for s in self._segments}
        losses = self._state.losses
        if len(losses) > 16:
            self._state.losses = {key: loss for key, loss in losses.items() if key in live}
        try:
            os.pwrite(self._state_fd, _encode_state(self._state), (self._state.generation & 1) * _SLOT)
        except OSError as error:
            self._warn("SpoolStateNotWritten", {"error": os.strerror(error.errno or 0)})

    def _recover(self) -> None:
        paths = sorted(p for p in self._directory.iterdir() if p.name.endswith(_SUFFIX) and p.stem.isdigit())
        for number, path in enumerate(paths):
            newest = number == len(paths) - 1
            segment = self._scan(_Segment(int(path.stem), path), verify_payload=newest)
            # The newest is kept for its position, unless that is in the state already.
            known = self._state.position is not None and segment.key == self._state.position[0]
            if segment.batches == 0 or (segment.index < self._state.segment and (not newest or known)):
                path.unlink(missing_ok=True)
                continue
            self._segments.append(segment)
        if not self._segments:
            return
        if self._segments[0].index > self._state.segment:
            self._move_cursor(self._segments[0].index, 0)
        active = self._segments[-1]
        self._write_fd = os.open(active.path, os.O_RDWR | os.O_CLOEXEC)
        cursor = next((s for s in self._segments if s.index == self._state.segment), None)
        if cursor is not None:
            self._state.offset = min(self._state.offset, cursor.size)
            self._settled = _count_before(cursor, self._state.offset)
        self._delete_settled()

    def _scan(self, segment: _Segment, *, verify_payload: bool) -> _Segment:
        """Walk a segment's batches and cut what does not decode (a write that kill -9 or a power loss interrupted)."""
        data = segment.path.read_bytes()
        reason = ""
        while segment.size < len(data):
            try:
                header, size = decode_header(data, segment.size)
                if segment.size + size > len(data):
                    reason = "Truncated"
                    break
                if verify_payload:
                    decode_batch(data, segment.size, versions=(header.schema_version,))
            except BatchError as error:
                reason = error.reason
                break
            segment.key = segment.key or (header.boot_id, header.session)
            segment.size += size
            segment.batches += 1
            segment.events += events_of(header)
            segment.last = header
        if segment.size < len(data):
            self._warn(
                "SpoolTailCut",
                {"segment": segment.path.name, "damage": reason, "bytes": len(data) - segment.size},
            )
            os.truncate(segment.path, segment.size)
        return segment


def _read_batches(
    fd: int, offset: int, end: int, max_bytes: int
) -> tuple[bytes, list[tuple[BatchHeader, int]], str | None]:
    """Whole batches from ``offset``: their bytes, (header, size) of each, and why it stopped if it was for damage."""
    data = os.pread(fd, min(end - offset, max(max_bytes, MAX_HEADER)), offset)
    headers: list[tuple[BatchHeader, int]] = []
    used = 0
    try:
        _, size = decode_header(data)
        if size > len(data):
            data = os.pread(fd, min(end - offset, size), offset)
        for header, frame in iter_batches(data):
            if headers and used + len(frame) > max_bytes:
                break
            headers.append((header, len(frame)))
            used += len(frame)
    except BatchError as error:
        # A batch that the limit has cut in two looks damaged too; it is judged when it comes first.
        return data[:used], headers, error.reason
    return data[:used], headers, None


def _count_before(segment: _Segment, offset: int) -> tuple[int, int]:
    """Batches and events before ``offset`` in a segment that was scanned before."""
    data = segment.path.read_bytes()[:offset]
    at = batches = events = 0
    while at < len(data):
        header, size = decode_header(data, at)
        at += size
        batches += 1
        events += events_of(header)
    return batches, events


def _encode_state(state: _State) -> bytes:
    kept = state.position
    document = {
        "generation": state.generation,
        "segment": state.segment,
        "offset": state.offset,
        "losses": [[key[0].hex(), key[1], loss.batches, loss.events] for key, loss in state.losses.items()],
        "reasons": state.reasons,
        "notes": state.notes,
        "position": [kept[0][0].hex(), kept[0][1], kept[1].sequence, kept[1].ring_to] if kept else None,
        "saved_at": int(time.time()),
    }
    body = json.dumps(document, separators=(",", ":")).encode()
    if len(body) > _SLOT - 12:
        raise SpoolError(f"the spool's state has {len(body)} bytes and does not fit into its slot")
    return (_MAGIC + zlib.crc32(body).to_bytes(4, "little") + len(body).to_bytes(4, "little") + body).ljust(
        _SLOT, b"\0"
    )


def _decode_state(raw: bytes) -> _State | None:
    size = int.from_bytes(raw[8:12], "little")
    body = raw[12 : 12 + size]
    if raw[:4] != _MAGIC or len(body) != size or zlib.crc32(body) != int.from_bytes(raw[4:8], "little"):
        return None
    document = json.loads(body)
    kept = document.get("position")
    return _State(
        generation=document["generation"],
        segment=document["segment"],
        offset=document["offset"],
        losses={(bytes.fromhex(boot), session): Loss(b, e) for boot, session, b, e in document["losses"]},
        reasons=document["reasons"],
        notes=document["notes"],
        position=((bytes.fromhex(kept[0]), kept[1]), Position(kept[2], kept[3])) if kept else None,
    )
