"""Which process was what, and when: lookups over the exec, fork and exit events of one node.

Nothing is computed when events arrive. A lookup scans key columns (`Segment.where`); expiring old rows is the one
place that looks at all of them, some hundred thousand at a time: it keeps what belongs to living processes and to the
ancestors of everything kept, and lets the rest go.

A process lives from its first mention until its exit, or until another process with the same pid was started (its
exit was lost).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vedette_detector.engine.segments import Array, Segment, SegmentStore, merge, sorted_unique
from vedette_events.schema import Common

_ANCESTOR_ROUNDS = 32


@dataclass(frozen=True)
class Row:
    """One row of a segment, with the time from which it holds and the start time of the process it is about."""

    segment: Segment
    index: int
    time: int
    start: int


def keys(pids: Array, starts: Array) -> Array:
    """One uint64 per (pid, start). Start times are ns, so two living pairs collide only by wild chance."""
    with np.errstate(over="ignore"):
        mixed = starts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return mixed ^ (pids.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F))


def _member(values: Array, of: Array) -> Array:
    """Which values are in the sorted array ``of``."""
    if len(of) == 0 or len(values) == 0:
        return np.zeros(len(values), dtype=bool)
    if len(of) > 8192 and len(values) > 8192:
        # In order the searches walk through memory once; at random each of them misses the cache many times.
        order = np.argsort(values)
        out = np.empty(len(values), dtype=bool)
        out[order] = _found(values[order], of)
        return out
    return _found(values, of)


def _found(values: Array, of: Array) -> Array:
    at = np.searchsorted(of, values)
    at[at == len(of)] = 0
    return np.asarray(of[at] == values)


def _effective(segment: Segment) -> Array:
    """From when each exec row holds: a snapshot's row from the start of its process."""
    found = segment.derived.get("effective")
    if found is None:
        flags, times = segment.rows["flags"], segment.rows["time"]
        snapshot = (flags & Common.SNAPSHOT) != 0
        found = np.where(snapshot, segment.rows["start"], times) if snapshot.any() else np.ascontiguousarray(times)
        segment.derived["effective"] = found
    return found


class ProcessTable:
    """Lookups over the three stores, and their expiry."""

    def __init__(self, execs: SegmentStore, forks: SegmentStore, exits: SegmentStore) -> None:
        self._execs = execs
        self._forks = forks
        self._exits = exits

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self._execs.nbytes + self._forks.nbytes + self._exits.nbytes

    def last_exec(self, pid: int, start: int | None, at: int | None) -> Row | None:
        """The last exec of a process at or before ``at``."""
        best: Row | None = None
        for segment in reversed(self._execs.segments):
            if (best is not None and segment.last <= best.time) or (start is not None and segment.last < start):
                continue
            rows = segment.where("pid", pid)
            if len(rows) and start is not None:
                rows = rows[segment.rows["start"][rows] == np.uint64(start)]
            if len(rows) == 0:
                continue
            times = _effective(segment)[rows]
            if at is not None:
                keep = times <= np.uint64(max(at, 0))
                rows, times = rows[keep], times[keep]
                if len(rows) == 0:
                    continue
            last = len(times) - 1 - int(times[::-1].argmax())
            if best is None or int(times[last]) > best.time:
                index = int(rows[last])
                best = Row(segment, index, int(times[last]), int(segment.rows["start"][index]))
        return best

    def fork_of(self, pid: int, start: int | None, at: int | None) -> Row | None:
        """The fork that made a process."""
        best: Row | None = None
        for segment in reversed(self._forks.segments):
            if best is not None and (start is not None or segment.last < best.start):
                break
            rows = segment.where("child_pid", pid)
            if len(rows) == 0:
                continue
            starts = segment.rows["child_start"][rows]
            if start is not None:
                rows = rows[starts == np.uint64(start)]
            elif at is not None:
                rows = rows[starts <= np.uint64(max(at, 0))]
            if len(rows) == 0:
                continue
            starts = segment.rows["child_start"][rows]
            newest = int(starts.argmax())
            if best is None or int(starts[newest]) > best.start:
                index = int(rows[newest])
                best = Row(segment, index, int(segment.rows["time"][index]), int(starts[newest]))
        return best

    def expire(self, horizon: int, bound: int) -> None:
        """Let go of what ended before ``horizon``, and of the oldest when more than ``bound`` bytes are held.

        Under a storm of forks this looks at every row once, some hundred thousand at a time, so each step looks only
        at what the step before left open.
        """
        # What is newer than the cut and what survives of the older together stay well below the bound, so that the
        # next expiry is some way off.
        if self.nbytes > bound:
            horizon = max(horizon, self._cut(bound // 8 * 5))
        old_execs, new_execs = _split(self._execs.segments, horizon)
        old_forks, new_forks = _split(self._forks.segments, horizon)
        if not old_execs and not old_forks and not any(s.last <= horizon for s in self._exits.segments):
            return
        dead = self._dead(horizon)
        execs = _Rows.of(old_execs, "pid", "start", "ppid", "parent_start")
        forks = _Rows.of(old_forks, "child_pid", "child_start", "pid", "start")
        for rows in (execs, forks):
            rows.keep = ~_member(rows.keys, dead)
        self._drop_superseded(execs, forks, horizon)

        asked = [self._parents(new_execs, new_forks, horizon), execs.parents[execs.keep], forks.parents[forks.keep]]
        for _ in range(_ANCESTOR_ROUNDS):
            wanted = sorted_unique(np.concatenate(asked))
            asked = []
            for rows in (execs, forks):
                more = np.flatnonzero(~rows.keep)
                more = more[_member(rows.keys[more], wanted)]
                rows.keep[more] = True
                asked.append(rows.parents[more])
            if not any(len(found) for found in asked):
                break
        if old_execs:
            self._keep_last_execs(execs, forks, new_forks, horizon)
            self._execs.segments = _survivors(old_execs, execs.keep, bound // 8) + new_execs
        if old_forks:
            self._forks.segments = _survivors(old_forks, forks.keep, bound // 16) + new_forks
        # An exit may go only when no row that is still unexamined could need it.
        limit = min([horizon, *(s.first for s in new_execs), *(s.first for s in new_forks)])
        self._exits.segments = [s for s in self._exits.segments if s.last > limit]

    @staticmethod
    def _keep_last_execs(execs: _Rows, forks: _Rows, new_forks: list[Segment], horizon: int) -> None:
        """Of each process keep the last exec, and those that forked processes inherit their program from."""
        rows = np.flatnonzero(execs.keep)
        times = np.concatenate([_effective(s) for s in execs.segments])[rows]
        process_keys = execs.keys[rows]
        # A process that was forked and has not exec'ed runs what its parent ran then, perhaps not its last.
        parents, asked = [forks.parents[forks.keep]], [forks.times()[forks.keep]]
        for segment in new_forks:
            older = segment.rows["start"] <= np.uint64(max(horizon, 0))
            parents.append(keys(segment.rows["pid"][older], segment.rows["start"][older]))
            asked.append(segment.rows["time"][older])
        wanted = _last_of_each(process_keys, times)
        wanted |= _current_at(process_keys, times, np.concatenate(parents), np.concatenate(asked))
        execs.keep[rows] = wanted

    def _drop_superseded(self, execs: _Rows, forks: _Rows, horizon: int) -> None:
        """Drop processes whose pid another one has taken over: their exit was lost."""
        pids = sorted_unique(np.concatenate([execs.column("pid")[execs.keep], forks.column("child_pid")[forks.keep]]))
        if len(pids) == 0:
            return
        found_pids, found_starts = [], []
        for store, pid, start in ((self._execs, "pid", "start"), (self._forks, "child_pid", "child_start")):
            for segment in store.segments:
                column = segment.column(pid)
                rows = np.flatnonzero(_member(column, pids))
                starts = segment.rows[start][rows]
                known = starts <= np.uint64(max(horizon, 0))
                found_pids.append(column[rows][known])
                found_starts.append(starts[known])
        newest = _newest_by_pid(np.concatenate(found_pids), np.concatenate(found_starts))
        for kept, pid, start in ((execs, "pid", "start"), (forks, "child_pid", "child_start")):
            rows = np.flatnonzero(kept.keep)
            kept.keep[rows] = ~_superseded(kept.column(pid)[rows], kept.column(start)[rows], newest)

    def _cut(self, target: int) -> int:
        """The time such that what is newer takes about ``target`` bytes."""
        segments = [s for store in (self._execs, self._forks, self._exits) for s in store.segments]
        segments.sort(key=lambda s: -s.last)
        held = 0
        for segment in segments:
            held += segment.nbytes
            if held > target:
                return segment.last
        return 0

    def _dead(self, horizon: int) -> Array:
        """Sorted keys of the processes that ended at or before ``horizon``."""
        found = []
        for segment in self._exits.segments:
            rows = segment.rows
            if segment.last > horizon:
                rows = rows[rows["time"] <= np.uint64(max(horizon, 0))]
            found.append(keys(rows["pid"], rows["start"]))
        return np.sort(np.concatenate(found)) if found else np.empty(0, np.uint64)

    @staticmethod
    def _parents(execs: list[Segment], forks: list[Segment], horizon: int) -> Array:
        """Keys that newer rows refer to and that can be in older rows: of processes started by then."""
        found = [np.empty(0, np.uint64)]
        pairs = [(s, "ppid", "parent_start") for s in execs] + [(s, "pid", "start") for s in (*forks, *execs)]
        for segment, pid, start in pairs:
            starts = segment.rows[start]
            older = starts <= np.uint64(max(horizon, 0))
            found.append(keys(segment.rows[pid][older], starts[older]))
        return np.concatenate(found)


@dataclass
class _Rows:
    """Old rows of one type: their keys, their parents' keys, and which are to be kept."""

    segments: list[Segment]
    keys: Array
    parents: Array
    keep: Array

    @classmethod
    def of(cls, segments: list[Segment], pid: str, start: str, parent_pid: str, parent_start: str) -> _Rows:
        own = [keys(s.rows[pid], s.rows[start]) for s in segments]
        parents = [keys(s.rows[parent_pid], s.rows[parent_start]) for s in segments]
        none = np.empty(0, np.uint64)
        all_keys = np.concatenate([none, *own])
        return cls(segments, all_keys, np.concatenate([none, *parents]), np.ones(len(all_keys), dtype=bool))

    def column(self, name: str) -> Array:
        """A field of all rows."""
        return np.concatenate([s.rows[name] for s in self.segments]) if self.segments else np.empty(0, np.uint64)

    def times(self) -> Array:
        """The rows' times."""
        return self.column("time")


def _newest_by_pid(pids: Array, starts: Array) -> tuple[Array, Array]:
    """Sorted pids and, for each, the newest start time."""
    order = np.lexsort((starts, pids))
    pids, starts = pids[order], starts[order]
    last = np.ones(len(pids), dtype=bool)
    last[:-1] = pids[1:] != pids[:-1]
    return pids[last], starts[last]


def _split(segments: list[Segment], horizon: int) -> tuple[list[Segment], list[Segment]]:
    old = [s for s in segments if s.last <= horizon]
    new = [s for s in segments if s.last > horizon]
    return old, new


def _superseded(pids: Array, starts: Array, newest: tuple[Array, Array]) -> Array:
    """Which processes had their pid taken over by a later one."""
    known, start = newest
    if len(known) == 0:
        return np.zeros(len(pids), dtype=bool)
    at = np.searchsorted(known, pids)
    at[at == len(known)] = 0
    return np.asarray((known[at] == pids) & (start[at] > starts))


def _last_of_each(process_keys: Array, times: Array) -> Array:
    """Which rows are the last of their process."""
    order = np.lexsort((times, process_keys))
    ordered = process_keys[order]
    last = np.ones(len(ordered), dtype=bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    out: Any = np.zeros(len(ordered), dtype=bool)
    out[order[last]] = True
    return np.asarray(out)


def _current_at(process_keys: Array, times: Array, asked_keys: Array, asked_times: Array) -> Array:
    """Which rows were the newest of their process at one of the asked (process, time) pairs."""
    out: Any = np.zeros(len(process_keys), dtype=bool)
    known = _member(asked_keys, np.sort(process_keys))
    asked_keys, asked_times = asked_keys[known], asked_times[known]
    count = len(process_keys)
    all_keys = np.concatenate([process_keys, asked_keys])
    asks = np.arange(len(all_keys)) >= count
    order = np.lexsort((asks, np.concatenate([times, asked_times]), all_keys))
    row_at = np.where(asks[order], -1, np.arange(len(order)))
    newest = np.maximum.accumulate(row_at) if len(row_at) else row_at
    found = newest[asks[order]]
    rows = order[found[found >= 0]]
    same = all_keys[rows] == all_keys[order][asks[order]][found >= 0]
    out[rows[same]] = True
    return np.asarray(out)


def _survivors(segments: list[Segment], keep: Array, bound: int) -> list[Segment]:
    """The rows to keep as one segment of at most about ``bound`` bytes.

    When there are more, half of the room goes to the oldest and half to the newest: a flood of new processes cannot
    push out the daemons that it descends from, nor can old ones keep out all new ones.
    """
    if not keep.any():
        return []
    parts = []
    first = 0
    for segment in segments:
        rows = np.flatnonzero(keep[first : first + len(segment.rows)])
        first += len(segment.rows)
        if len(rows):
            parts.append(segment.take(rows))
    kept = merge(parts)
    count = len(kept.rows)
    if kept.nbytes > bound:
        half = max(1, count * bound // kept.nbytes // 2)
        by_time = np.argsort(kept.rows["time"], kind="stable")
        kept = kept.take(np.sort(np.concatenate([by_time[:half], by_time[half:][-half:]])))
    return [kept]
