"""Columnar storage of the recent events of one type on one node.

A batch's columns are kept as they came from the split: appending costs a list entry, never a look at a row. Small
segments are merged into larger ones now and then so that a lookup visits few of them; each row is copied at most
twice. Lookups run over contiguous copies of the key columns, made when a segment is first asked and kept with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vedette_events import _native
from vedette_events.columns import Heap

Array = np.ndarray[Any, Any]
_NO_ROWS: Array = np.empty(0, dtype=np.int64)

_LEVELS = ((2048, 16), (16384, 32))
"""(rows, count): so many newest segments with fewer rows than that are merged. A merge moves at most half a million
rows of the small types, some 20 ms, once in many seconds; segments of large batches are never copied."""
_INDEX_AFTER = 3
"""A key column is sorted once it has been searched this often: a scan of 10,000 contiguous values takes 3 us."""


class Segment:
    """Rows of one event type from one or more batches, in order of arrival.

    Attributes:
        rows: structured array, shape (N,), of the current schema's dtype.
        tails: the heap of each tail.
        paths: rows by joined path, for file names that many of the rows have; kept by `NodeHistory`.
        nbytes: memory held by rows and tails. Columns and indexes made by lookups come on top: at most the rows again.
    """

    # Thousands of these live at a time and are made for every batch: no dict of their own, caches made when used.
    __slots__ = ("_columns", "_derived", "_orders", "_range", "_searches", "nbytes", "paths", "rows", "tails")

    def __init__(self, rows: Array, tails: Mapping[str, Heap]) -> None:
        self.rows = rows
        self.tails = tails
        offsets = 4 * (len(rows) + 1)
        self.nbytes = rows.nbytes + sum([len(heap.data) + offsets for heap in tails.values()])
        self._range: tuple[int, int] | None = None
        self._columns: dict[str, Array] | None = None
        self._derived: dict[str, Array] | None = None
        self._orders: dict[str, tuple[Array, Array]] | None = None
        self._searches: dict[str, int] | None = None
        self.paths: dict[tuple[str, bytes], dict[bytes, list[int]]] | None = None

    @property
    def derived(self) -> dict[str, Array]:
        """What users of the segment computed once from it."""
        if self._derived is None:
            self._derived = {}
        return self._derived

    def column(self, name: str) -> Array:
        """A field's values, contiguous, shape (N,)."""
        if self._columns is None:
            self._columns = {}
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = np.ascontiguousarray(self.rows[name])
        return found

    @property
    def first(self) -> int:
        """Earliest time in the segment, ns since boot."""
        return self.range[0]

    @property
    def last(self) -> int:
        """Latest time in the segment, ns since boot."""
        return self.range[1]

    @property
    def range(self) -> tuple[int, int]:
        """Earliest and latest time; records are only roughly in order, since each CPU stamps its own."""
        if self._range is None:
            times = self.rows["time"]
            self._range = (int(times.min()), int(times.max())) if len(times) else (0, 0)
        return self._range

    def where(self, name: str, value: int) -> Array:
        """Row numbers whose field ``name`` equals ``value``, ascending."""
        order = self._orders.get(name) if self._orders is not None else None
        if order is None:
            column = self.column(name)
            self._searches = self._searches or {}
            uses = self._searches[name] = self._searches.get(name, 0) + 1
            if uses < _INDEX_AFTER or len(column) < 4096:
                return np.flatnonzero(column == column.dtype.type(value))
            positions = np.argsort(column, kind="stable").astype(np.uint32)
            self._orders = self._orders or {}
            order = self._orders[name] = (column[positions], positions)
        values, positions = order
        wanted = values.dtype.type(value)
        low, high = np.searchsorted(values, wanted, "left"), np.searchsorted(values, wanted, "right")
        return positions[low:high]

    def tail(self, name: str, row: int) -> bytes:
        """The bytes of a tail of one row; empty where the record's version lacks it."""
        heap = self.tails.get(name)
        return heap[row] if heap is not None else b""

    def rows_named(self, name: str, leaf: bytes) -> Array:
        """Row numbers whose tail, a path, ends in the file name ``leaf``, ascending.

        Goes by a hash of the name, so now and then a row of another name is among them: the caller compares.
        """
        heap = self.tails.get(name)
        if heap is None:
            return _NO_ROWS
        key = f"{name}/"  # no field is called so
        if self._columns is None or key not in self._columns:
            self._columns = self._columns or {}
            hashes = _native.basename_hashes(heap.data, heap.offsets.data)
            self._columns[key] = np.frombuffer(hashes, dtype=np.uint64)
        return self.where(key, _native.fnv1a(leaf))

    def drop_caches(self) -> None:
        """Forget what can be computed again."""
        self._columns = self._derived = self._orders = self._searches = self.paths = None

    def take(self, rows: Array) -> Segment:
        """A copy of some rows, with their tails."""
        return Segment(
            _opaque(self.rows)[rows].view(self.rows.dtype),
            {name: take_heap(heap, rows) for name, heap in self.tails.items()},
        )


def sorted_unique(values: Array) -> Array:
    """The values in order, each once. `np.unique` hashes in numpy 2.4, which takes thirty times longer on keys."""
    ordered = np.sort(values)
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return np.asarray(ordered[first])


def _opaque(rows: Array) -> Array:
    return rows.view(f"V{rows.dtype.itemsize}")


def take_heap(heap: Heap, rows: Array) -> Heap:
    """A heap of some of another's entries."""
    starts = heap.offsets[:-1][rows].astype(np.int64)
    lengths = heap.offsets[1:][rows].astype(np.int64) - starts  # each with its NUL
    offsets = np.empty(len(rows) + 1, dtype=np.uint32)
    offsets[0] = 1
    np.cumsum(lengths, out=offsets[1:])
    offsets[1:] += 1
    if len(rows) == 0:
        return Heap(b"\0", offsets)
    source = np.frombuffer(heap.data, dtype=np.uint8)
    total = int(lengths.sum())
    # Each output byte's place in the source: the entry's start, plus how far into the entry the byte is.
    index = np.repeat(starts - (offsets[:-1].astype(np.int64) - 1), lengths) + np.arange(total)
    return Heap(b"\0" + source[index].tobytes(), offsets)


def merge(segments: list[Segment]) -> Segment:
    """Put segments together, in order."""
    if len(segments) == 1:
        return segments[0]
    # As opaque bytes: numpy copies structured rows field by field, some thirty times slower.
    rows = np.concatenate([_opaque(s.rows) for s in segments]).view(segments[0].rows.dtype)
    counts = [len(s.rows) for s in segments]
    tails = {name: _merge_heaps([s.tails[name] for s in segments], counts) for name in segments[0].tails}
    return Segment(rows, tails)


def _merge_heaps(heaps: list[Heap], counts: list[int]) -> Heap:
    data = b"".join([heaps[0].data, *[heap.data[1:] for heap in heaps[1:]]])
    # Each heap's own first NUL falls away, the first one's excepted.
    ends = np.cumsum([len(heap.data) - 1 for heap in heaps], dtype=np.uint32)
    offsets = np.concatenate([heaps[0].offsets[:1], *[heap.offsets[1:] for heap in heaps]])
    offsets[1 + counts[0] :] += np.repeat(ends[:-1], counts[1:])
    return Heap(data, offsets)


class SegmentStore:
    """The segments of one event type, in order of arrival."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._segments: list[Segment] = []
        self.nbytes = 0
        self._small = 0

    @property
    def segments(self) -> list[Segment]:
        """The segments, oldest first; not to be changed in place."""
        return self._segments

    @segments.setter
    def segments(self, segments: list[Segment]) -> None:
        self._segments = segments
        self.nbytes = sum(s.nbytes for s in segments)

    def append(self, segment: Segment) -> None:
        """Add a batch's rows."""
        self._segments.append(segment)
        self.nbytes += segment.nbytes
        if len(segment.rows) >= _LEVELS[0][0]:
            self._small = 0
            return
        self._small += 1
        if self._small >= _LEVELS[0][1]:
            self._compact()
            self._small = 0

    def drop_caches(self) -> None:
        """Forget columns and indexes that lookups made; the next ones make those again that they need."""
        for segment in self._segments:
            segment.drop_caches()

    def pop_oldest(self) -> int:
        """Let go of the oldest segment; the bytes freed."""
        freed = self._segments.pop(0).nbytes
        self.nbytes -= freed
        return freed

    def __len__(self) -> int:
        return sum(len(s.rows) for s in self._segments)

    def newest_first(self, since: int | None = None, until: int | None = None) -> Iterator[Segment]:
        """Segments that can hold times in [since, until], in reverse order of arrival."""
        for segment in reversed(self._segments):
            if (until is not None and segment.first > until) or (since is not None and segment.last < since):
                continue
            yield segment

    def _compact(self) -> None:
        for bound, fan_in in _LEVELS:
            run = 0
            for segment in reversed(self._segments):
                if len(segment.rows) >= bound:
                    break
                run += 1
            if run < fan_in:
                return
            self._segments[-run:] = [merge(self._segments[-run:])]
