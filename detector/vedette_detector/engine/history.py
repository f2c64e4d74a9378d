"""What happened lately on one node: looked up backwards from a hit, never pushed forward per event.

Batches are appended as columns. Ordinary events stay for a window of time and within a bound of bytes: when the bound
is reached, the type that holds most gives up its oldest rows, so that a storm of one type cannot push out the others.
Processes (exec, fork, exit) stay as long as they live, their ancestors with them, and for the window after that.

Times are ns since boot. Records of one batch are only roughly in order (each CPU stamps its own), so every lookup
goes by an event's ``time``, never by its place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import numpy as np

from vedette_detector.engine.container import INITIAL_PID_NS, namespaced_cgroup, parse_cgroup
from vedette_detector.engine.detection import ContainerRef
from vedette_detector.engine.event import Event
from vedette_detector.engine.process_table import ProcessTable, Row
from vedette_detector.engine.segments import Array, Segment, SegmentStore
from vedette_detector.engine.text import join_path
from vedette_detector.text import safe_text
from vedette_events.columns import EventBatch

PROCESS_TYPES = ("exec", "fork", "exit")
_MAX_TIME = 2**64 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WRITE_FLAGS = 0o3  # O_WRONLY | O_RDWR
_TRUNC_FLAGS = 0o1000 | 0o100  # O_TRUNC | O_CREAT
_MOST_BUILT = 2048
_MANY_NAMESAKES = 16
"""From so many rows with one file name on, their joined paths are kept with the segment: whoever writes a thousand
files of one name must not make each lookup of it join a thousand paths."""


class _Columns:
    """All rows of a segment as a mask sees them: each column contiguous, and kept for the next mask."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment

    def __getitem__(self, name: str) -> Array:
        return self._segment.column(name)

    def __len__(self) -> int:
        return len(self._segment.rows)


def _matching(segment: Segment, conditions: list[tuple[str, int]], mask: Callable[[Any], Array] | None) -> Array:
    """Numbers of the rows that fulfil equalities and a mask, ascending."""
    if not conditions:
        if mask is None:
            return np.arange(len(segment.rows))
        return np.flatnonzero(mask(_Columns(segment)))
    field, value = conditions[0]
    rows = segment.where(field, value)
    for field, value in conditions[1:]:
        if len(rows) == 0:
            return rows
        column = segment.rows[field][rows]
        rows = rows[column == column.dtype.type(value)]
    if mask is not None and len(rows):
        rows = rows[np.asarray(mask(segment.rows[rows]), dtype=bool)]
    return rows


def _written(rows: Any) -> Array:
    """Successful opens for writing. ``rows``: open events, shape (N,)."""
    access = rows["oflags"] & (_WRITE_FLAGS | _TRUNC_FLAGS)
    return np.asarray((access != 0) & (rows["result"] >= 0))


@dataclass(frozen=True)
class HistorySettings:
    """Bounds of one node's history.

    Attributes:
        window_s: how long events and dead processes are remembered, seconds.
        event_bytes: bound for ordinary events, bytes.
        process_bytes: bound for exec, fork and exit events together, bytes.
        names: how many cgroup paths and how many file hashes are remembered.
    """

    window_s: float = 600.0
    event_bytes: int = 192 * 1024 * 1024
    process_bytes: int = 96 * 1024 * 1024
    names: int = 65536


@dataclass(frozen=True)
class Process:
    """A process as it was at the moment that was asked for.

    Attributes:
        time: when it began to run its program (exec), or was forked, ns since boot.
        exec: the exec event that began its program (an ancestor's, if it was forked and has not exec'ed), or None.
        inherited: whether the program is inherited from the process that forked it.
    """

    node: str
    boot: bytes
    pid: int
    start: int
    ppid: int
    parent_start: int
    ns_pid: int
    uid: int
    euid: int
    gid: int
    path: bytes
    argv: tuple[bytes, ...]
    cwd: bytes
    comm: bytes
    time: int
    cgroup: int
    pid_ns: int = 0
    mnt_ns: int = 0
    ino: int = 0
    dev: int = 0
    ctime: int = 0
    file_bits: int = 0
    exec_bits: int = 0
    stdin_kind: int = 0
    stdout_kind: int = 0
    stderr_kind: int = 0
    stdin_ino: int = 0
    stdout_ino: int = 0
    stderr_ino: int = 0
    exec: Event | None = None
    inherited: bool = False

    @property
    def uuid(self) -> str:
        """32 hex digits that name the process for ever: the same for every event of it."""
        return process_uuid(self.node, self.boot, self.pid, self.start)

    @property
    def parent_uuid(self) -> str:
        """`uuid` of the parent."""
        return process_uuid(self.node, self.boot, self.ppid, self.parent_start)

    @property
    def name(self) -> str:
        """The executable's file name, or ``comm`` where the path is not known, safe to show."""
        return safe_text(self.path.rsplit(b"/", 1)[-1] or self.comm)

    @property
    def command_line(self) -> str:
        """The arguments joined by spaces, safe to show."""
        return safe_text(b" ".join(self.argv))


def process_uuid(node: str, boot: bytes, pid: int, start: int) -> str:
    """32 hex digits from node, boot and (pid, start)."""
    text = f"{node}\0{boot.hex()}\0{pid}\0{start}".encode("utf-8", "surrogateescape")
    return blake2b(text, digest_size=16).hexdigest()


class NodeHistory:
    """The history of one boot of one node."""

    def __init__(self, node: str, boot_id: bytes = bytes(16), settings: HistorySettings | None = None) -> None:
        self.node = node
        self.boot_id = boot_id
        self.settings = settings or HistorySettings()
        self.wall_offset_ns = 0
        self.now = 0
        self.batches = 0
        """Batches appended so far: until it changes, what history says stays the same."""
        self._stores: dict[str, SegmentStore] = {name: SegmentStore(name) for name in PROCESS_TYPES}
        self._processes = ProcessTable(self._stores["exec"], self._stores["fork"], self._stores["exit"])
        self._cgroups: OrderedDict[int, bytes] = OrderedDict()
        self._containers: dict[int, ContainerRef | None] = {}
        self._hashes: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        # Answers that hold until the next batch.
        self._newest: dict[tuple[int, int | None], Process | None] = {}
        self._older: dict[tuple[int, int | None, int], Process | None] = {}
        self._writers: dict[tuple[int, int, bytes | None], Event | None] = {}
        self._arguments: dict[int, tuple[int, bytes | None]] = {}
        # Processes made from exec events, which do not change; dropped with the events that they rest on.
        self._built: dict[tuple[int, int, int, int, bool], Process] = {}
        self._next_sweep = 0

    # -- filling ---------------------------------------------------------------------------------------------------

    def append(self, batch: EventBatch, wall_offset_ns: int | None = None) -> dict[str, Segment]:
        """Take a batch over. Costs a few list entries for each type present, whatever the number of events.

        Returns:
            The batch's columns by type; they stay valid when history compacts or forgets them.
        """
        if wall_offset_ns is not None:
            self.wall_offset_ns = wall_offset_ns
        self.batches += 1
        self._newest.clear()
        self._older.clear()
        self._writers.clear()
        self._arguments.clear()
        out: dict[str, Segment] = {}
        for name, columns in batch.types.items():
            if len(columns.rows) == 0:
                continue
            segment = out[name] = Segment(columns.rows, columns.tails)
            self.now = max(self.now, int(segment.rows["time"][-1]))
            if name == "cgroup":
                self._remember_cgroups(segment)
            elif name == "file_hash":
                self._remember_hashes(segment)
            else:
                store = self._stores.get(name)
                if store is None:
                    store = self._stores[name] = SegmentStore(name)
                store.append(segment)
        self._sweep()
        return out

    def _remember_cgroups(self, segment: Segment) -> None:
        for row, cgroup in enumerate(segment.rows["cgroup"].tolist()):
            self._cgroups[cgroup] = segment.tail("path", row)
            self._cgroups.move_to_end(cgroup)
            self._containers.pop(cgroup, None)
        while len(self._cgroups) > self.settings.names:
            self._containers.pop(self._cgroups.popitem(last=False)[0], None)

    def _remember_hashes(self, segment: Segment) -> None:
        rows = segment.rows
        digests = np.ascontiguousarray(rows["sha256"]).tobytes()
        identities = zip(rows["dev"].tolist(), rows["ino"].tolist(), rows["ctime"].tolist(), strict=True)
        for row, identity in enumerate(identities):
            self._hashes[identity] = digests[32 * row : 32 * row + 32]
        while len(self._hashes) > self.settings.names:
            self._hashes.popitem(last=False)

    def _sweep(self) -> None:
        """Keep the bounds: drop what is older than the window, then what is over the bound of bytes."""
        horizon = self.now - int(self.settings.window_s * 1e9)
        process_bytes = self._processes.nbytes
        if self.now >= self._next_sweep or process_bytes > self.settings.process_bytes:
            self._next_sweep = self.now + int(self.settings.window_s * 1e9 / 10)
            self._processes.expire(horizon, self.settings.process_bytes)
            self._built.clear()
            for store in self._stores.values():
                store.drop_caches()
        sizes: dict[str, int] = {}
        for name, store in self._stores.items():
            if name in PROCESS_TYPES:
                continue
            while store.segments and store.segments[0].last < horizon:
                store.pop_oldest()
            sizes[name] = store.nbytes
        total = sum(sizes.values())
        while total > self.settings.event_bytes:
            name = max(sizes, key=lambda n: sizes[n])
            freed = self._stores[name].pop_oldest()
            sizes[name] -= freed
            total -= freed

    def clear(self) -> None:
        """Let go of everything at once.

        Events refer to their history and history to events: without this the memory of a node that is gone would wait
        for the collector of cycles, which workers seldom run.
        """
        for store in self._stores.values():
            store.segments = []
        for cache in (self._newest, self._older, self._writers, self._built, self._cgroups, self._hashes):
            cache.clear()
        self._containers.clear()

    def shrink(self, target: int) -> int:
        """Let go of the oldest until about ``target`` bytes are held; the bytes freed."""
        before = self.nbytes
        if self._processes.nbytes > target // 2:
            self._processes.expire(0, target // 2)
            self._built.clear()
        sizes = {name: store.nbytes for name, store in self._stores.items() if name not in PROCESS_TYPES}
        while sizes and self.nbytes > target and max(sizes.values()) > 0:
            name = max(sizes, key=lambda n: sizes[n])
            sizes[name] -= self._stores[name].pop_oldest()
        return before - self.nbytes

    @property
    def nbytes(self) -> int:
        """Memory held by events, bytes (names and hashes not counted)."""
        return sum(store.nbytes for store in self._stores.values())

    # -- processes -------------------------------------------------------------------------------------------------

    def process(self, pid: int, start: int | None = None, at: int | None = None) -> Process | None:
        """The process and the program that it was running at a time.

        Args:
            pid: process id in the initial namespace.
            start: its start time, which names it for ever; None for whoever had the pid at ``at``.
            at: ns since boot; None for the newest state.

        Returns:
            The last exec at or before ``at``; where there is none, the program inherited through forks; None where
            neither is known.
        """
        return self._lookup(pid, start, at, 0)

    def _lookup(self, pid: int, start: int | None, at: int | None, depth: int) -> Process | None:
        key = (pid, start)
        if key in self._newest:
            newest = self._newest[key]
        else:
            newest = self._newest[key] = self._resolve(pid, start, None, depth)
        if newest is None or at is None or (newest.time <= at and newest.start <= at):
            return newest
        older = (pid, start, at)
        if older not in self._older:
            self._older[older] = self._resolve(pid, start, at, depth)
        return self._older[older]

    def _resolve(self, pid: int, start: int | None, at: int | None, depth: int) -> Process | None:
        executed = self._processes.last_exec(pid, start, at)
        forked = self._processes.fork_of(pid, start, at)
        if executed is not None and (forked is None or executed.start >= forked.start):
            return self._from_exec(executed, forked)
        if forked is None:
            return None
        return self._from_fork(forked, depth)

    def _from_exec(self, row: Row, forked: Row | None) -> Process:
        event = Event("exec", row.segment, row.index, self)
        ppid, parent_start = event.ppid, event.parent_start
        created = forked is not None and forked.start == row.start
        key = (event.pid, event.start, row.time, event.time, created)
        known = self._built.get(key)
        if known is not None:
            return known
        if forked is not None and created:
            # Who created the process says more than who adopted it: a daemonised child is adopted by init.
            creator = Event("fork", forked.segment, forked.index, self)
            ppid, parent_start = creator.pid, creator.start
        made = Process(
            node=self.node,
            boot=self.boot_id,
            pid=event.pid,
            start=event.start,
            ppid=ppid,
            parent_start=parent_start,
            ns_pid=event.ns_pid,
            uid=event.uid,
            euid=event.euid,
            gid=event.gid,
            path=event.path,
            argv=tuple(event.argv),
            cwd=event.cwd,
            comm=event.comm,
            time=row.time,
            cgroup=event.cgroup,
            pid_ns=event.pid_ns,
            mnt_ns=event.mnt_ns,
            ino=event.ino,
            dev=event.dev,
            ctime=event.ctime,
            file_bits=event.file_bits,
            exec_bits=event.exec_bits,
            stdin_kind=event.stdin_kind,
            stdout_kind=event.stdout_kind,
            stderr_kind=event.stderr_kind,
            stdin_ino=event.stdin_ino,
            stdout_ino=event.stdout_ino,
            stderr_ino=event.stderr_ino,
            exec=event,
        )
        if len(self._built) >= _MOST_BUILT:
            self._built.clear()
        self._built[key] = made
        return made

    def _from_fork(self, row: Row, depth: int) -> Process:
        event = Event("fork", row.segment, row.index, self)
        own = Process(
            node=self.node,
            boot=self.boot_id,
            pid=event.child_pid,
            start=event.child_start,
            ppid=event.pid,
            parent_start=event.start,
            ns_pid=event.child_ns_pid,
            uid=event.uid,
            euid=event.euid,
            gid=0,
            path=b"",
            argv=(),
            cwd=b"",
            comm=event.comm,
            time=event.time,
            cgroup=event.cgroup,
            inherited=True,
        )
        creator = self._lookup(event.pid, event.start, event.time, depth + 1) if depth < 64 else None
        if creator is None:
            return own
        return replace(
            creator,
            pid=own.pid,
            start=own.start,
            ppid=own.ppid,
            parent_start=own.parent_start,
            ns_pid=own.ns_pid,
            uid=own.uid,
            euid=own.euid,
            comm=own.comm,
            time=own.time,
            cgroup=own.cgroup,
            inherited=True,
        )

    def arguments(self, pid: int, at: int) -> bytes | None:
        """The ``argv`` tail of the program that a pid was running at a time; None where no exec of it is known."""
        # Who starts many commands is asked for each of them: the newest answers every question about a time after it.
        newest = self._arguments.get(pid)
        if newest is None:
            newest = self._arguments[pid] = self._find_arguments(pid, None)
        return newest[1] if newest[0] <= at else self._find_arguments(pid, at)[1]

    def _find_arguments(self, pid: int, at: int | None) -> tuple[int, bytes | None]:
        """From when on the answer holds, and the answer."""
        executed = self._processes.last_exec(pid, None, at)
        forked = self._processes.fork_of(pid, None, at)
        if forked is not None and (executed is None or forked.start > executed.start):
            return forked.start, None
        return (0, None) if executed is None else (executed.time, executed.segment.tail("argv", executed.index))

    def parent(self, process: Process) -> Process | None:
        """The process that created this one, as it was when this one began to run its program."""
        if process.ppid == 0:
            return None
        return self.process(process.ppid, process.parent_start or None, process.time)

    def lineage(self, process: Process) -> list[Process]:
        """The ancestors, nearest first, at most 32."""
        out: list[Process] = []
        seen = {(process.pid, process.start)}
        current: Process | None = process
        while len(out) < 32 and current is not None:
            current = self.parent(current)
            if current is None or (current.pid, current.start) in seen:
                break
            seen.add((current.pid, current.start))
            out.append(current)
        return out

    def process_of(self, event: Event) -> Process:
        """The acting process of an event at its time; from the event alone where nothing else is known."""
        found = self.process(event.pid, event.start or None, event.time)
        if found is not None:
            # The event's own identity is newer than the exec's: credentials may have changed since.
            if (found.uid, found.euid, found.cgroup) == (event.uid, event.euid, event.cgroup):
                return found
            return replace(found, uid=event.uid, euid=event.euid, cgroup=event.cgroup or found.cgroup)
        return Process(
            node=self.node,
            boot=self.boot_id,
            pid=event.pid,
            start=event.start,
            ppid=event.ppid,
            parent_start=0,
            ns_pid=0,
            uid=event.uid,
            euid=event.euid,
            gid=0,
            path=b"",
            argv=(),
            cwd=b"",
            comm=event.comm,
            time=event.time,
            cgroup=event.cgroup,
        )

    # -- events ----------------------------------------------------------------------------------------------------

    def events(
        self,
        name: str,
        *,
        pid: int | None = None,
        start: int | None = None,
        cgroup: int | None = None,
        since: int | None = None,
        until: int | None = None,
        where: Mapping[str, int] | None = None,
        mask: Callable[[Any], Array] | None = None,
        limit: int = 100,
    ) -> list[Event]:
        """Events of one type that fulfil all given conditions, newest first.

        Args:
            name: event type.
            pid: acting process id.
            start: start time of the acting process.
            cgroup: cgroup id of the acting process.
            since: earliest time, ns since boot.
            until: latest time, ns since boot.
            where: further fields and the values that they must have; faster than a mask.
            mask: further condition: gets rows whose columns are ``rows["field"]``, shape (N,), gives a bool array of
                the same shape.
            limit: how many at most.
        """
        store = self._stores.get(name)
        if store is None:
            return []
        equals = {"pid": pid, "start": start, "cgroup": cgroup, **(where or {})}
        conditions = [(field, value) for field, value in equals.items() if value is not None]
        out: list[Event] = []
        for segment in store.newest_first(since, until):
            rows = _matching(segment, conditions, mask)
            if len(rows) == 0:
                continue
            times = segment.rows["time"][rows]
            if (since is not None and segment.first < since) or (until is not None and segment.last > until):
                low, high = max(since or 0, 0), _MAX_TIME if until is None else max(until, 0)
                keep = (times >= np.uint64(low)) & (times <= np.uint64(high))
                rows, times = rows[keep], times[keep]
            newest = rows[np.argsort(times, kind="stable")[::-1]]
            out += [Event(name, segment, int(row), self) for row in newest[:limit]]
            if len(out) >= limit:
                break
        # Segments overlap in time by what the CPUs' clocks and the batches' borders differ.
        out.sort(key=lambda event: -event.time)
        return out[:limit]

    def last_writer(self, dev: int, ino: int, *, path: bytes | None = None, until: int | None = None) -> Event | None:
        """Who last made or changed a file: the last successful open for writing, or rename or link onto its path.

        Args:
            dev: the file's device.
            ino: the file's inode.
            path: its path; with it renames and links onto the path count too, and opens of the path when the inode
                says nothing (an overlay's copy-up gives a new one).
            until: latest time, ns since boot.
        """
        # Candidates of one batch often ask about the same file, and nothing is added in between: the newest of all
        # answers every question about a time after it.
        key = (dev, ino, path)
        if key not in self._writers:
            self._writers[key] = self._find_writer(dev, ino, path, None)
        newest = self._writers[key]
        if newest is None or until is None or newest.time <= until:
            return newest
        return self._find_writer(dev, ino, path, until)

    def _find_writer(self, dev: int, ino: int, path: bytes | None, until: int | None) -> Event | None:
        identity = {"ino": ino, "dev": dev}
        candidates = self.events("open", until=until, where=identity, mask=_written, limit=1) if ino else []
        if path:
            candidates += self._onto("rename", "new_path", path, until)
            candidates += self._onto("link", "new_path", path, until)
            if not candidates:
                candidates += self._onto("open", "path", path, until)
        return max(candidates, key=lambda event: event.time, default=None)

    def _onto(self, name: str, tail: str, path: bytes, until: int | None) -> list[Event]:
        """The newest successful event of a type whose joined path is ``path``."""
        store = self._stores.get(name)
        if store is None:
            return []
        wanted = join_path(b"", path)
        leaf = wanted.rsplit(b"/", 1)[-1]
        for segment in store.newest_first(None, until):
            rows = self._rows_at(name, segment, tail, leaf, wanted)
            if len(rows) == 0:
                continue
            rows = rows[segment.rows["result"][rows] >= 0]
            if name == "open":
                rows = rows[(segment.rows["oflags"][rows] & (_WRITE_FLAGS | _TRUNC_FLAGS)) != 0]
            times = segment.rows["time"][rows]
            if until is not None and segment.last > until:
                rows = rows[times <= np.uint64(max(until, 0))]
                times = segment.rows["time"][rows]
            if len(rows):
                return [Event(name, segment, int(rows[len(times) - 1 - int(times[::-1].argmax())]), self)]
        return []

    def _rows_at(self, name: str, segment: Segment, tail: str, leaf: bytes, wanted: bytes) -> Array:
        """Rows whose joined path is ``wanted``, ascending."""
        known = segment.paths.get((tail, leaf)) if segment.paths is not None else None
        if known is None:
            rows = segment.rows_named(tail, leaf)
            if len(rows) == 0:
                return rows
            known = {}
            for row in rows.tolist():
                known.setdefault(Event(name, segment, row, self).full_path(tail), []).append(row)
            if len(rows) >= _MANY_NAMESAKES:
                segment.paths = segment.paths or {}
                segment.paths[(tail, leaf)] = known
        return np.array(known.get(wanted, ()), dtype=np.int64)

    # -- names -----------------------------------------------------------------------------------------------------

    def cgroup_path(self, cgroup: int) -> bytes | None:
        """Path of a cgroup below its hierarchy's root."""
        return self._cgroups.get(cgroup)

    def container(self, cgroup: int) -> ContainerRef | None:
        """The container that a cgroup's path names; None on the host or where the path is not known."""
        if cgroup in self._containers:
            return self._containers[cgroup]
        path = self._cgroups.get(cgroup)
        if path is None:
            return None
        found = self._containers[cgroup] = parse_cgroup(path)
        return found

    def container_of(self, event: Event) -> ContainerRef | None:
        """The container of an event's process; a pid namespace of its own makes one where the path names none."""
        named = self.container(event.cgroup)
        if named is not None:
            return named
        pid_ns = event.pid_ns if event.type == "exec" else self.process_of(event).pid_ns
        if pid_ns in (0, INITIAL_PID_NS):
            return None
        return namespaced_cgroup(self._cgroups.get(event.cgroup, b""))

    def file_hash(self, dev: int, ino: int, ctime: int) -> str | None:
        """SHA-256 of a file state as hex, once the agent has hashed it."""
        digest = self._hashes.get((dev, ino, ctime))
        return digest.hex() if digest is not None else None

    def wall(self, time_ns: int) -> datetime:
        """The wall clock at a time since boot, UTC."""
        return _EPOCH + timedelta(microseconds=(time_ns + self.wall_offset_ns) // 1000)

    def describe(self) -> dict[str, Any]:
        """Sizes for status pages: rows and bytes by type."""
        return {
            "now_ns": self.now,
            "bytes": self.nbytes,
            "rows": {name: len(store) for name, store in self._stores.items() if len(store)},
            "cgroups": len(self._cgroups),
            "hashes": len(self._hashes),
        }
