"""Batches as columns: every type's records as one structured array and one heap of bytes per tail.

    batch = split_batch(records, header.schema_version)
    execs = batch.types["exec"]                 # Columns; types without events are absent
    execs.rows["uid"]                           # numpy array (N,), dtype `dtypes.dtype("exec")`
    execs.tails["argv"][3]                      # bytes of the fourth record's argv
    execs.order                                 # position of each row in the batch, uint32 (N,)

The work is done by `vedette_events._native.split`, which checks every record before anything is copied: a batch is
accepted whole or refused with the number, place and fault of its first bad record.

Heaps: a heap begins with one NUL and each tail is followed by one NUL, so that a search may anchor a literal to the
beginning or end of a tail. ``offsets`` has N + 1 entries: tail i is ``data[offsets[i] : offsets[i + 1] - 1]``. The
functions of `vedette_events._native` that take ``(heap, offsets)`` take exactly ``heap.data, heap.offsets``, and what
they give as ``(heap, offsets)`` is wrapped by ``Heap(*pair)``.

Large batches spend more time in page faults than in the split unless the allocator keeps freed memory: a process
that splits many calls `vedette_events._native.keep_freed_memory` once.

An older batch is given in the current version's layout: fields it lacks are zero, tails it lacks are empty.
All arrays are read-only.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from vedette_events import _native, schema
from vedette_events.dtypes import event_dtype
from vedette_events.framing import BadRecordError
from vedette_events.schema import EVENT_TYPES, SCHEMA_VERSION, EventType

UInt32Array = npt.NDArray[np.uint32]
_LAYOUT = struct.Struct("<HHH8H")


class Heap:
    """The bytes of one tail of N records. ``len(heap)`` is N, ``heap[i]`` the bytes of tail i.

    Attributes:
        data: all tails, as the module's text says.
    """

    __slots__ = ("_offsets", "data")

    def __init__(self, data: bytes, offsets: UInt32Array | bytes) -> None:
        self.data = data
        self._offsets = offsets

    @property
    def offsets(self) -> UInt32Array:
        """Where each tail begins, and one behind the last one's NUL: uint32 (N + 1,)."""
        if isinstance(self._offsets, bytes):  # most heaps of a small batch are never looked at
            self._offsets = np.frombuffer(self._offsets, np.uint32)
        return self._offsets

    @property
    def raw_offsets(self) -> UInt32Array | bytes:
        """`offsets` as the split gave them, for functions of `_native`: no array is made for them."""
        return self._offsets

    @classmethod
    def of(cls, tails: Sequence[bytes]) -> Heap:
        """A heap made of given tails, for tests and small tables."""
        offsets = np.cumsum([1, *(len(t) + 1 for t in tails)], dtype=np.uint32)
        return cls(b"\0" + b"".join(t + b"\0" for t in tails), offsets)

    @classmethod
    def empty(cls, count: int) -> Heap:
        """A heap of ``count`` empty tails."""
        return cls(bytes(count + 1), np.arange(1, count + 2, dtype=np.uint32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        offsets = self._offsets if not isinstance(self._offsets, bytes) else self.offsets
        count = len(offsets) - 1
        if not -count <= index < count:
            raise IndexError(f"tail {index} of {count}")
        if index < 0:
            index += count
        return self.data[offsets.item(index) : offsets.item(index + 1) - 1]

    def __iter__(self) -> Iterator[bytes]:
        bounds = self.offsets.tolist()
        return (self.data[a : b - 1] for a, b in itertools.pairwise(bounds))

    @property
    def lengths(self) -> UInt32Array:
        """Length in bytes of each tail, uint32 (N,)."""
        return self.offsets[1:] - self.offsets[:-1] - np.uint32(1)


class Columns:
    """All records of one type in a batch.

    Attributes:
        name: the event type.
        rows: fixed parts, structured (N,).
        tails: a heap of N tails by the tail's name.
    """

    __slots__ = ("_order", "name", "rows", "tails")

    def __init__(
        self, name: str, rows: npt.NDArray[np.void], tails: Mapping[str, Heap], order: UInt32Array | bytes
    ) -> None:
        self.name = name
        self.rows = rows
        self.tails = tails
        self._order = order

    @property
    def order(self) -> UInt32Array:
        """Position of each record in the batch, uint32 (N,), ascending."""
        if isinstance(self._order, bytes):
            self._order = np.frombuffer(self._order, np.uint32)
        return self._order

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class EventBatch:
    """The records of one batch by type; ``count`` is the number of all of them."""

    types: Mapping[str, Columns]
    count: int


class Splitter:
    """Splits records of one schema version into columns of another, the same or a later one.

    Args:
        version: schema version of the records.
        current: schema version of the columns.
        event_types: the schema; other than the real one only in tests.
    """

    def __init__(
        self,
        version: int = SCHEMA_VERSION,
        current: int = SCHEMA_VERSION,
        event_types: Sequence[EventType] = EVENT_TYPES,
    ) -> None:
        self._by_code = {e.code: e for e in event_types if e.since <= version}
        self._version = version
        self._current = current
        self._old = {code: event_dtype(e, version) for code, e in self._by_code.items()}
        self._new = {code: event_dtype(e, current) for code, e in self._by_code.items()}
        self._tails = {code: [t.name for t in schema.tails_of(e, version)] for code, e in self._by_code.items()}
        self._added = {
            code: [t.name for t in schema.tails_of(e, current)[len(self._tails[code]) :]]
            for code, e in self._by_code.items()
        }
        self.layouts = b"".join(self._layout(code) for code in range(_native.MAX_TYPES))
        """The table that `_native.split` takes: one ``struct vd_layout`` per type code."""

    def _layout(self, code: int) -> bytes:
        """What the C core knows of a type (struct vd_layout)."""
        event = self._by_code.get(code)
        if event is None:
            return bytes(_LAYOUT.size)
        limits = [t.limit for t in schema.tails_of(event, self._version)]
        fixed, lengths_at = schema.fixed_size(event, self._version), schema.tail_lengths_offset(event, self._version)
        return _LAYOUT.pack(fixed, lengths_at, len(limits), *limits, *[0] * (_native.MAX_TAILS - len(limits)))

    def split(self, records: bytes) -> EventBatch:
        """The records (whole ones, one after another) as columns.

        Raises:
            BadRecordError: the first record that is malformed; nothing of the batch is to be used.
        """
        try:
            parts = _native.split(records, self.layouts)
        except _native.SplitError as error:
            problem, index, offset, code, tail, value, bound = error.args
            raise BadRecordError(index, offset, self._describe(problem, code, tail, value, bound)) from None
        types = {self._by_code[code].name: self._columns(code, *part) for code, part in parts.items()}
        return EventBatch(types, sum(len(c) for c in types.values()))

    def _columns(self, code: int, fixed: bytes, order: bytes, heaps: tuple[tuple[bytes, bytes], ...]) -> Columns:
        rows: npt.NDArray[np.void] = np.frombuffer(fixed, self._old[code])
        tails = {name: Heap(*pair) for name, pair in zip(self._tails[code], heaps, strict=True)}
        if self._version != self._current:
            older, rows = rows, np.zeros(len(rows), self._new[code])
            for field in older.dtype.names or ():
                rows[field] = older[field]
            rows.flags.writeable = False
            tails |= {name: Heap.empty(len(rows)) for name in self._added[code]}
        return Columns(self._by_code[code].name, rows, tails, order)

    def _describe(self, problem: int, code: int, tail: int, value: int, bound: int) -> str:
        """What is wrong with a record (enum vd_problem of ``_core.h``)."""
        event = self._by_code.get(code)
        name = event.name if event else f"type {code}"
        tail_name = self._tails[code][tail] if tail < len(self._tails.get(code, ())) else str(tail)
        texts = {
            1: f"{value} bytes left, fewer than a header's {bound}",
            2: f"{name}: size {value} is not a multiple of {bound}",
            3: f"{name}: size {value}, but only {bound} bytes are left",
            4: f"type {value} is not known in schema version {self._version}",
            5: f"{name}: size {value} is less than the {bound} bytes before its tails",
            6: f"{name}.{tail_name}: {value} bytes, more than {bound}",
            7: f"{name}: size {value}, but its tails make it {bound}",
        }
        return texts[problem]


@cache
def splitter(version: int) -> Splitter:
    """The splitter for records of ``version`` into columns of the current version."""
    return Splitter(version)


def split_batch(records: bytes, version: int = SCHEMA_VERSION) -> EventBatch:
    """The records of a batch as columns of the current schema version.

    Args:
        records: what `framing.decode_batch` gave.
        version: the batch header's ``schema_version``.

    Raises:
        BadRecordError: a record is malformed; says which, where and how.
    """
    return splitter(version).split(records)
