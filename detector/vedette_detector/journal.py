"""The journal: every batch as it was received, in segments bounded by size and time.

It serves two ends. After a restart the engine's history is rebuilt from it, and `events_query` answers questions about
raw events from it. A batch is on disk here (fsync) before it is acknowledged.

    journal/0000000000000001.vdj    framed batches one after another, nothing else
    journal/0000000000000001.idx    JSON: where each batch lies; written when the segment is closed, can be made anew

A frame carries its size and checksums (`vedette_events.framing`), so a tail torn by a crash is found by reading and
cut. Readers in other processes need no lock: segments only grow at the end, and a frame that is not whole yet ends
the reading.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vedette_detector.errors import JournalError, StorageFullError
from vedette_events.framing import MAX_HEADER, BatchError, BatchFlags, BatchHeader, decode_batch, decode_header

log = logging.getLogger(__name__)

SUFFIX = ".vdj"
INDEX_SUFFIX = ".idx"
_INDEX_VERSION = 1
SEGMENTS_BY_AGE = 50
"""A segment is closed after this part of the time that events are kept, however small it is."""

SessionKey = tuple[str, bytes, int]
"""Node, boot id (16 bytes), session."""


@dataclass(frozen=True)
class Entry:
    """Where one batch lies and what its header says. Times are ns: ``*_wall`` since the epoch, others since boot."""

    segment: Path
    offset: int
    size: int
    node: str
    boot_id: bytes
    session: int
    sequence: int
    count: int
    flags: int
    created: int
    first_time: int
    last_time: int
    wall_offset: int

    @property
    def key(self) -> SessionKey:
        """The session that the batch belongs to."""
        return (self.node, self.boot_id, self.session)

    @property
    def first_wall(self) -> int:
        """Wall clock time of the first event."""
        return (self.first_time or self.created) + self.wall_offset

    @property
    def last_wall(self) -> int:
        """Wall clock time of the last event."""
        return (self.last_time or self.created) + self.wall_offset


def _entry(segment: Path, offset: int, size: int, header: BatchHeader) -> Entry:
    return Entry(
        segment,
        offset,
        size,
        header.node,
        header.boot_id,
        header.session,
        header.sequence,
        header.count,
        int(header.flags),
        header.created_ns,
        header.first_time,
        header.last_time,
        header.wall_offset_ns,
    )


def scan(path: Path, start: int = 0) -> tuple[list[Entry], int, str | None]:
    """Read the headers of a segment.

    Returns:
        Its entries, the offset after the last whole frame, and why reading ended there (None: at the end).
    """
    entries: list[Entry] = []
    offset = start
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        while offset < end:
            head = os.pread(file.fileno(), MAX_HEADER, offset)
            try:
                header, size = decode_header(head)
            except BatchError as error:
                return entries, offset, error.reason
            if offset + size > end:
                return entries, offset, "Truncated"
            entries.append(_entry(path, offset, size, header))
            offset += size
    return entries, offset, None


def read_batch(entry: Entry) -> bytes:
    """The framed batch that ``entry`` points to.

    Raises:
        FileNotFoundError: the segment has been removed by the bounds.
    """
    with entry.segment.open("rb") as file:
        return os.pread(file.fileno(), entry.size, entry.offset)


def read_entries(path: Path) -> list[Entry]:
    """Entries of a segment, from its index where that is good, else by reading the headers."""
    index = path.with_suffix(INDEX_SUFFIX)
    try:
        document = json.loads(index.read_text())
        if document["version"] == _INDEX_VERSION and document["size"] == path.stat().st_size:
            sessions = [(node, bytes.fromhex(boot), session) for node, boot, session in document["sessions"]]
            return [Entry(path, row[0], row[1], *sessions[row[2]], *row[3:]) for row in document["batches"]]
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, IndexError) as error:
        log.warning("journal index %s is not readable (%s); reading the segment instead", index, error)
    return scan(path)[0]


def write_index(path: Path, entries: Sequence[Entry]) -> None:
    """Write the index of a closed segment, replacing it whole."""
    sessions: dict[SessionKey, int] = {}
    batches = []
    for e in entries:
        number = sessions.setdefault(e.key, len(sessions))
        batches.append(
            [
                e.offset,
                e.size,
                number,
                e.sequence,
                e.count,
                e.flags,
                e.created,
                e.first_time,
                e.last_time,
                e.wall_offset,
            ]
        )
    document = {
        "version": _INDEX_VERSION,
        "size": path.stat().st_size,
        "sessions": [[node, boot.hex(), session] for node, boot, session in sessions],
        "batches": batches,
    }
    temporary = path.with_suffix(".idx.new")
    temporary.write_text(json.dumps(document, separators=(",", ":")))
    temporary.replace(path.with_suffix(INDEX_SUFFIX))


def segments(directory: Path) -> list[Path]:
    """Segments of a journal, oldest first; empty where there is no journal."""
    return sorted(directory.glob("*" + SUFFIX))


def iter_entries(directory: Path, since_ns: int | None = None, until_ns: int | None = None) -> Iterator[Entry]:
    """Entries whose events can lie in [``since_ns``, ``until_ns``] (wall clock), each once, in order of arrival."""
    seen: set[tuple[str, bytes, int, int]] = set()
    for path in segments(directory):
        try:
            entries = read_entries(path)
        except FileNotFoundError:  # removed by the bounds in the meantime
            continue
        for entry in entries:
            if since_ns is not None and entry.last_wall < since_ns:
                continue
            if until_ns is not None and entry.first_wall > until_ns:
                continue
            identity = (*entry.key, entry.sequence)
            if identity not in seen:
                seen.add(identity)
                yield entry


@dataclass
class Segment:
    """What is kept in memory of a closed segment."""

    path: Path
    size: int
    received_s: float
    """When it was last written, by the detector's clock."""
    began_s: float = 0.0
    """Nothing in it was received before; 0 when that is not known."""


@dataclass(frozen=True)
class Recovery:
    """What opening the journal found: batches kept, bytes cut from torn tails, batches dropped."""

    batches: int = 0
    cut_bytes: int = 0
    dropped: int = 0
    reasons: tuple[str, ...] = ()


@dataclass
class Journal:
    """The writing side; one per directory. Methods block and may be called from one thread at a time."""

    directory: Path
    segment_bytes: int = 64 << 20
    limit_bytes: int = 4 << 30
    limit_s: float = 7 * 86400.0
    clock: Callable[[], float] = time.time
    refused: set[tuple[SessionKey, int]] = field(default_factory=set)
    """Batches, by session and sequence, that the engine cannot take: they stay readable, history is rebuilt without
    them."""
    closed: list[Segment] = field(default_factory=list, init=False)
    _fd: int = field(default=-1, init=False)
    _path: Path | None = field(default=None, init=False)
    _size: int = field(default=0, init=False)
    _number: int = field(default=0, init=False)
    _entries: list[Entry] = field(default_factory=list, init=False)
    _opened: float = field(default=0.0, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    def open(self, applied: Mapping[SessionKey, int] | None = None) -> Recovery:
        """Open the journal, cut torn tails and drop batches that were never applied (their agent sends them again).

        Args:
            applied: last applied sequence of each session, from the database; None keeps everything. A session that
                is not in it was never applied where it stands in the newest segment; in an older one it is a session
                that the database has forgotten since, and its batches stay.

        Raises:
            JournalError: the directory cannot be read or written.
            StorageFullError: no space to rewrite a segment.
        """
        batches = cut = dropped = 0
        reasons: list[str] = []
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for stale in self.directory.glob("*.new"):
                stale.unlink()
            paths = segments(self.directory)
            for path in paths:
                self._number = max(self._number, int(path.stem))
                indexed = path.with_suffix(INDEX_SUFFIX).exists()
                size = path.stat().st_size
                if path == paths[-1] or not indexed:
                    # Open when the process ended: what was written last may be torn.
                    entries, end, _ = scan(path)
                else:
                    entries = read_entries(path)
                    end = entries[-1].offset + entries[-1].size if entries else 0
                if end < size:
                    cut += size - end
                    reasons.append(f"{path.name}: {size - end} bytes after byte {end} are not a whole batch")
                    os.truncate(path, end)
                tail = path == paths[-1] or not indexed
                keep = [e for e in entries if _was_applied(e, applied, tail)]
                if tail:
                    keep = [e for e in keep if _is_whole(e)]
                if len(keep) != len(entries):
                    dropped += len(entries) - len(keep)
                    entries = self._rewrite(path, keep)
                batches += len(entries)
                if not entries:
                    self._remove(path)
                    continue
                if end < size or not indexed or path.stat().st_size != size:
                    write_index(path, entries)
                stat = path.stat()
                # A segment is begun when the one before it is not written any more.
                began = self.closed[-1].received_s if self.closed else 0.0
                self.closed.append(Segment(path, stat.st_size, stat.st_mtime, began))
            _sync_directory(self.directory)
        except OSError as error:
            raise _storage_error(error, f"journal {self.directory} cannot be opened") from error
        for reason in reasons:
            log.warning("journal tail cut: %s", reason)
        return Recovery(batches, cut, dropped, tuple(reasons))

    @staticmethod
    def _rewrite(path: Path, keep: Sequence[Entry]) -> list[Entry]:
        temporary = path.with_suffix(".vdj.new")
        result: list[Entry] = []
        stat = path.stat()
        with temporary.open("wb") as file:
            for entry in keep:
                offset = file.tell()
                file.write(read_batch(entry))
                result.append(Entry(path, offset, *list(vars(entry).values())[2:]))
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(INDEX_SUFFIX).unlink(missing_ok=True)
        temporary.replace(path)
        os.utime(path, (stat.st_atime, stat.st_mtime))
        return result

    @staticmethod
    def _remove(path: Path) -> None:
        path.with_suffix(INDEX_SUFFIX).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def append(self, batches: Sequence[tuple[BatchHeader, bytes]]) -> None:
        """Write batches and wait until they are on disk; all of them or, with an error, none.

        Raises:
            StorageFullError: no space is left.
            JournalError: another error of the file system.
        """
        if not batches:
            return
        with self._lock:
            try:
                # A segment goes as a whole, so one that fills slowly is closed by age.
                old = self.clock() - self._opened > self.limit_s / SEGMENTS_BY_AGE
                if self._fd < 0 or self._size >= self.segment_bytes or old:
                    self._roll()
                assert self._path is not None
                entries, offset = [], self._size
                for header, data in batches:
                    entries.append(_entry(self._path, offset, len(data), header))
                    offset += len(data)
                _write_all(self._fd, [data for _, data in batches])
                os.fdatasync(self._fd)
            except OSError as error:
                self._abandon()
                raise _storage_error(error, f"journal {self.directory} cannot be written") from error
            self._size = offset
            self._entries += entries

    def _abandon(self) -> None:
        """Take back a failed write. After a failed sync the kernel may have forgotten pages, so the file is closed."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            with contextlib.suppress(OSError):
                self._close_segment()

    def _roll(self) -> None:
        self._close_segment()
        self._number += 1
        path = self.directory / f"{self._number:016d}{SUFFIX}"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._path, self._size, self._entries, self._opened = path, 0, [], self.clock()
        _sync_directory(self.directory)

    def _close_segment(self) -> None:
        if self._fd < 0 or self._path is None:
            return
        fd, path, entries, size = self._fd, self._path, self._entries, self._size
        self._fd, self._path, self._entries, self._size = -1, None, [], 0
        os.close(fd)
        if not entries:
            self._remove(path)
            return
        self.closed.append(Segment(path, size, self.clock(), self._opened))
        write_index(path, entries)

    def close(self) -> None:
        """Close the open segment."""
        with self._lock, contextlib.suppress(OSError):
            self._close_segment()

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        with self._lock:
            return sum(s.size for s in self.closed) + self._size

    @property
    def begins_ns(self) -> int:
        """Nothing in the journal was received before this (detector's clock, ns since the epoch); 0 when not known."""
        with self._lock:
            if self.closed:
                return int(self.closed[0].began_s * 1e9)
            return int((self._opened if self._fd >= 0 else self.clock()) * 1e9)

    def enforce(self) -> int:
        """Remove the oldest segments beyond the bounds; the open one always stays. Returns how many went.

        Age is counted from when a segment was last written, by the detector's own clock: what nodes say about time
        does not decide what is kept.
        """
        with self._lock:
            now = self.clock()
            removed = 0
            while self.closed:
                oldest = self.closed[0]
                if self.size <= self.limit_bytes and now - oldest.received_s <= self.limit_s:
                    break
                self._remove(oldest.path)
                self.closed.pop(0)
                removed += 1
            return removed

    def entries(self) -> list[Entry]:
        """Entries of all segments, oldest first."""
        with self._lock:
            paths, current = [s.path for s in self.closed], list(self._entries)
        result = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                result += read_entries(path)
        return result + current

    def history(
        self,
        applied: Mapping[SessionKey, int],
        window_s: float,
        wanted: Callable[[str], bool] = lambda node: True,
    ) -> Iterator[bytes]:
        """The batches that rebuild the engine's history, in order of arrival.

        Of each wanted node: what its newest boot delivered within ``window_s`` before its last event, and the
        snapshots of that boot's newest session, which tell of processes older than any window.
        """
        yield from (data for _, data in self.history_entries(applied, window_s, wanted))

    def history_entries(
        self, applied: Mapping[SessionKey, int], window_s: float, wanted: Callable[[str], bool] = lambda node: True
    ) -> Iterator[tuple[Entry, bytes]]:
        """As `history`, with each batch's entry."""
        entries = [
            e
            for e in self.entries()
            if wanted(e.node) and e.sequence <= applied.get(e.key, 0) and (e.key, e.sequence) not in self.refused
        ]
        yield from ((e, data) for e in select_history(entries, window_s) for data in _readable(e))


def select_history(entries: Iterable[Entry], window_s: float) -> list[Entry]:
    """Choose what rebuilds the history (see `Journal.history`). Pure; keeps the order, each batch once."""
    entries = list(entries)
    boot: dict[str, bytes] = {}
    newest: dict[str, int] = {}
    session: dict[str, int] = {}
    for e in entries:  # in order of arrival: the last boot seen is the newest
        if boot.get(e.node) != e.boot_id:
            boot[e.node], newest[e.node], session[e.node] = e.boot_id, 0, 0
        newest[e.node] = max(newest[e.node], e.last_time)
        session[e.node] = max(session[e.node], e.session)
    chosen, seen = [], set()
    for e in entries:
        if e.boot_id != boot[e.node] or (*e.key, e.sequence) in seen:
            continue
        recent = e.last_time >= newest[e.node] - int(window_s * 1e9)
        snapshot = bool(e.flags & BatchFlags.SNAPSHOT) and e.session == session[e.node]
        if recent or snapshot:
            seen.add((*e.key, e.sequence))
            chosen.append(e)
    return chosen


def _was_applied(entry: Entry, applied: Mapping[SessionKey, int] | None, tail: bool) -> bool:
    if applied is None:
        return True
    last = applied.get(entry.key)
    return not tail if last is None else entry.sequence <= last


def _is_whole(entry: Entry) -> bool:
    """Whether the payload matches its checksum: pages of a write may be missing before ones that are there."""
    try:
        decode_batch(read_batch(entry))
    except BatchError as error:
        # A batch of a version that is not readable any more is whole all the same.
        return error.reason == "UnsupportedVersion"
    return True


def _readable(entry: Entry) -> Iterator[bytes]:
    try:
        yield read_batch(entry)
    except FileNotFoundError:
        return


def _write_all(fd: int, buffers: Sequence[bytes]) -> None:
    # writev takes at most IOV_MAX (1024) buffers and may write less than asked.
    for start in range(0, len(buffers), 1000):
        rest = [memoryview(b) for b in buffers[start : start + 1000]]
        while rest:
            written = os.writev(fd, rest)
            while rest and written >= len(rest[0]):
                written -= len(rest.pop(0))
            if rest and written:
                rest[0] = rest[0][written:]


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _storage_error(error: OSError, what: str) -> StorageFullError | JournalError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(f"{what}: no space left; free space or lower --journal-bytes")
    return JournalError(f"{what}: {error.strerror or error}")
