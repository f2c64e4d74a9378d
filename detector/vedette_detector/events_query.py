"""Questions about raw events, answered from the journal.

`rows` gives events one by one, filtered by time, node, container, process and type. `sql` puts the events of a time
range into Arrow tables, one for each event type and one, ``events``, with what all types have in common, and lets
DuckDB answer. Both read the segments of a running detector without disturbing it, and take each batch once.

What a process chose (paths, arguments, names) comes out as `vedette_detector.text.safe_text` has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from vedette_detector.engine.container import parse_cgroup
from vedette_detector.engine.event import address_text, flag_names, parse_question
from vedette_detector.engine.text import split_args
from vedette_detector.errors import QueryError
from vedette_detector.findings.model import iso
from vedette_detector.journal import Entry, iter_entries, read_batch
from vedette_detector.text import safe_text
from vedette_events import schema
from vedette_events.columns import Columns, Heap, split_batch
from vedette_events.framing import BatchError, decode_batch

MAX_SQL_BYTES = 1 << 30
"""Arrow memory that one `sql` may fill."""
DUCKDB_MEMORY = "1GB"
_LOOK_BACK = 20_000
"""Batches before the range that are read for the paths of cgroups first seen earlier."""
_HIDDEN = frozenset({"size", "type", "pad", "sock_pad"})
_COMMON = ("time", "cgroup", "start", "pid", "tid", "ppid", "uid", "euid", "result")
_PATH_TAILS = ("path", "target", "name")

Mask = npt.NDArray[np.bool_]
Node = tuple[str, bytes]
"""Node and boot id: within these, a cgroup id means one cgroup."""


@dataclass(frozen=True)
class EventQuery:
    """Which events are wanted; a field left as it is does not restrict. Times are ns since the epoch."""

    since_ns: int | None = None
    until_ns: int | None = None
    types: tuple[str, ...] = ()
    node: str | None = None
    container: str | None = None
    """Beginning of a container id, or a part of the cgroup's path; ``host``: outside any container."""
    process: str | None = None
    """A pid, or a part of the executable's path (exec) or of the thread's name."""

    def check(self) -> None:
        """Verify the types.

        Raises:
            QueryError: there is no such type.
        """
        unknown = [t for t in self.types if t not in schema.BY_NAME]
        if unknown:
            known = ", ".join(sorted(schema.BY_NAME))
            raise QueryError(f"no event type {', '.join(map(safe_text, unknown))}; there are: {known}")


@dataclass
class Problems:
    """What a query could not read."""

    unreadable_batches: int = 0
    reasons: set[str] = field(default_factory=set)


def _batches(entries: Sequence[Entry], problems: Problems) -> Iterator[tuple[Entry, dict[str, Columns]]]:
    for entry in entries:
        try:
            header, records = decode_batch(read_batch(entry))
            types = dict(split_batch(records, header.schema_version).types)
        except FileNotFoundError:  # removed by the journal's bounds in the meantime
            continue
        except BatchError as error:
            problems.unreadable_batches += 1
            problems.reasons.add(error.reason)
            continue
        yield entry, types


class Cgroups:
    """Paths and container ids of cgroup ids."""

    def __init__(self) -> None:
        self._paths: dict[tuple[Node, int], bytes] = {}
        self._containers: dict[tuple[Node, int], str | None] = {}

    def learn(self, node: Node, types: dict[str, Columns], *, overwrite: bool = True) -> None:
        """Take the paths that a batch tells."""
        columns = types.get("cgroup")
        if columns is None:
            return
        for number, path in zip(columns.rows["cgroup"].tolist(), columns.tails["path"], strict=True):
            if overwrite or (node, number) not in self._paths:
                self._paths[(node, number)] = path
                self._containers.pop((node, number), None)

    def path(self, node: Node, cgroup: int) -> bytes | None:
        """Path of a cgroup."""
        return self._paths.get((node, cgroup))

    def container(self, node: Node, cgroup: int) -> str | None:
        """Container id of a cgroup; None outside containers and where the path is not known."""
        key = (node, cgroup)
        if key not in self._containers:
            path = self._paths.get(key)
            found = parse_cgroup(path) if path is not None else None
            self._containers[key] = found.container_id if found is not None else None
        return self._containers[key]

    def matching(self, node: Node, wanted: str, cgroups: Sequence[int]) -> list[int]:
        """Those of ``cgroups`` that `EventQuery.container` asks for."""
        if wanted == "host":
            return [c for c in cgroups if self.container(node, c) is None]
        result = []
        for cgroup in cgroups:
            container, path = self.container(node, cgroup), self.path(node, cgroup)
            begins = container is not None and container.startswith(wanted)
            if begins or (path is not None and wanted.encode() in path):
                result.append(cgroup)
        return result


def learn_cgroups(directory: Path, entries: Sequence[Entry], problems: Problems) -> Cgroups:
    """Paths of all cgroups that occur in ``entries``, from them and, where need be, from batches before them."""
    cgroups = Cgroups()
    missing: dict[Node, set[int]] = {}
    for entry, types in _batches(entries, problems):
        node = (entry.node, entry.boot_id)
        cgroups.learn(node, types)
        wanted = missing.setdefault(node, set())
        for columns in types.values():
            wanted.update(np.unique(columns.rows["cgroup"]).tolist())
    for node, wanted in missing.items():
        wanted -= {c for c in wanted if cgroups.path(node, c) is not None}
    if not any(missing.values()):
        return cgroups
    inside = {(e.key, e.sequence) for e in entries}
    earlier = [
        e for e in iter_entries(directory) if missing.get((e.node, e.boot_id)) and (e.key, e.sequence) not in inside
    ]
    for entry, types in _batches(earlier[::-1][:_LOOK_BACK], Problems()):
        node = (entry.node, entry.boot_id)
        cgroups.learn(node, types, overwrite=False)
        missing[node] -= {c for c in missing[node] if cgroups.path(node, c) is not None}
        if not any(missing.values()):
            break
    return cgroups


def _in_range(columns: Columns, entry: Entry, since_ns: int | None, until_ns: int | None) -> Mask:
    times = columns.rows["time"]
    mask = np.ones(len(times), dtype=bool)
    if since_ns is not None:
        mask &= times >= np.uint64(max(0, min(since_ns - entry.wall_offset, 2**64 - 1)))
    if until_ns is not None:
        limit = until_ns - entry.wall_offset
        mask &= (times <= np.uint64(min(limit, 2**64 - 1))) if limit >= 0 else np.zeros(len(times), dtype=bool)
    return mask


def _of_process(columns: Columns, mask: Mask, process: str) -> Mask:
    if process.isdigit():
        return np.asarray(mask & (columns.rows["pid"] == int(process)))
    wanted = process.encode()
    comms, paths = columns.rows["comm"], columns.tails.get("path") if columns.name == "exec" else None
    result = np.zeros(len(mask), dtype=bool)
    for row in np.flatnonzero(mask).tolist():
        result[row] = wanted in bytes(comms[row]) or (paths is not None and wanted in paths[row])
    return result


def rows(directory: Path, query: EventQuery, problems: Problems | None = None) -> Iterator[dict[str, Any]]:
    """Events in order of arrival, JSON-safe: flags by name, addresses and paths as text.

    Args:
        directory: the journal's.
        query: what is wanted.
        problems: filled with what could not be read.

    Raises:
        QueryError: the query names a type that does not exist.
    """
    query.check()
    problems = problems if problems is not None else Problems()
    entries = [e for e in iter_entries(directory, query.since_ns, query.until_ns) if query.node in (None, e.node)]
    cgroups = learn_cgroups(directory, entries, Problems())
    for entry, types in _batches(entries, problems):
        node = (entry.node, entry.boot_id)
        chosen: list[tuple[int, Columns, int]] = []
        for name, columns in types.items():
            if query.types and name not in query.types:
                continue
            mask = _in_range(columns, entry, query.since_ns, query.until_ns)
            if query.container is not None:
                present = np.unique(columns.rows["cgroup"]).tolist()
                mask &= np.isin(columns.rows["cgroup"], cgroups.matching(node, query.container, present))
            if query.process is not None:
                mask = _of_process(columns, mask, query.process)
            chosen += [(int(columns.order[row]), columns, row) for row in np.flatnonzero(mask).tolist()]
        for _, columns, row in sorted(chosen, key=lambda item: item[0]):
            yield event_row(columns, row, entry, cgroups)


def event_row(columns: Columns, row: int, entry: Entry, cgroups: Cgroups) -> dict[str, Any]:
    """One event as JSON-safe data."""
    kind = schema.BY_NAME[columns.name]
    record = columns.rows[row]
    cgroup = int(record["cgroup"])
    out: dict[str, Any] = {
        "type": columns.name,
        "wall": iso(int(record["time"]) + entry.wall_offset),
        "node": safe_text(entry.node),
        "container": cgroups.container((entry.node, entry.boot_id), cgroup),
    }
    for item in (*schema.HEADER, *schema.fields_of(kind)):
        if item.name in _HIDDEN:
            continue
        value = record[item.name]
        if item.kind == "comm":
            out[item.name] = safe_text(bytes(value).split(b"\0", 1)[0])
        elif item.kind == "addr":
            out[item.name] = address_text(int(record["family"]), value.tobytes())
        elif item.kind == "sha256":
            out[item.name] = value.tobytes().hex()
        elif item.flags is not None:
            out[item.name] = flag_names(item.flags, int(value))
        else:
            out[item.name] = int(value)
    for tail in schema.tails_of(kind):
        raw = columns.tails[tail.name][row]
        if tail.kind == "args":
            out[tail.name] = [safe_text(a) for a in split_args(raw)]
        elif tail.kind == "bytes":
            out[tail.name] = raw.hex()
            out["question"] = safe_text(parse_question(raw))
        else:
            out[tail.name] = safe_text(raw)
    return out


# SQL


@dataclass(frozen=True)
class SqlResult:
    """An answer: names of its columns, and its rows in pieces."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]
    problems: Problems


def table_names() -> tuple[str, ...]:
    """The tables that a statement can use."""
    return ("events", *sorted(schema.BY_NAME))


def sql(
    directory: Path,
    statement: str,
    *,
    since_ns: int | None = None,
    until_ns: int | None = None,
    node: str | None = None,
    max_bytes: int = MAX_SQL_BYTES,
) -> SqlResult:
    """Answer one SELECT over the raw events of a time range.

    Args:
        directory: the journal's.
        statement: DuckDB SQL; tables are named after event types, and ``events`` holds all of them.
        since_ns: wall clock, ns since the epoch.
        until_ns: likewise.
        node: only this node's events.
        max_bytes: Arrow memory that may be filled.

    Raises:
        QueryError: not one SELECT, an error in it, or a range too large for memory.
    """
    _check_select(statement)
    words = set(re.findall(r"[a-z_]+", statement.lower()))
    used = [name for name in schema.BY_NAME if name in words]
    whole = "events" in words
    problems = Problems()
    parts: dict[str, list[pa.RecordBatch]] = {name: [] for name in used}
    common: list[pa.RecordBatch] = []
    size = 0
    if used or whole:
        entries = [e for e in iter_entries(directory, since_ns, until_ns) if node in (None, e.node)]
        cgroups = learn_cgroups(directory, entries, Problems())
        for entry, types in _batches(entries, problems):
            for name, columns in types.items():
                mask = _in_range(columns, entry, since_ns, until_ns)
                if not mask.any():
                    continue
                if name in parts:
                    parts[name].append(type_batch(columns, entry, cgroups).filter(pa.array(mask)))
                    size += parts[name][-1].nbytes
                if whole:
                    common.append(common_batch(columns, entry, cgroups).filter(pa.array(mask)))
                    size += common[-1].nbytes
            if size > max_bytes:
                raise QueryError(
                    f"the range holds more than {max_bytes >> 20} MiB of events: ask for a shorter time",
                    reason="RangeTooLarge",
                )
    connection = duckdb.connect(":memory:", config={"memory_limit": DUCKDB_MEMORY, "threads": 2})
    for name in schema.BY_NAME:
        connection.register(name, pa.Table.from_batches(parts.get(name, []), type_schema(name)))
    connection.register("events", pa.Table.from_batches(common, COMMON_SCHEMA))
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    try:
        answer = connection.execute(statement)
    except duckdb.Error as error:
        connection.close()
        raise QueryError(f"SQL: {error}", reason="SqlError") from None
    names = tuple(str(d[0]) for d in answer.description or ())

    def fetch() -> Iterator[tuple[Any, ...]]:
        try:
            while chunk := answer.fetchmany(1000):
                yield from chunk
        except duckdb.Error as error:
            raise QueryError(f"SQL: {error}", reason="SqlError") from None
        finally:
            connection.close()

    return SqlResult(names, fetch(), problems)


def _check_select(statement: str) -> None:
    try:
        statements = duckdb.extract_statements(statement)
    except duckdb.Error as error:
        raise QueryError(f"SQL: {error}", reason="SqlError") from None
    allowed = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    if len(statements) != 1 or statements[0].type not in allowed:
        raise QueryError("give exactly one SELECT: events are read, never changed", reason="NotASelect")


_INTEGERS: dict[str, pa.DataType] = {
    "u8": pa.uint8(),
    "u16": pa.uint16(),
    "u32": pa.uint32(),
    "u64": pa.uint64(),
    "s32": pa.int32(),
    "s64": pa.int64(),
}
_WALL = pa.timestamp("us")  # UTC; DuckDB needs a time zone library to hand out zoned ones
_LEAD = [
    pa.field("wall", _WALL),
    pa.field("node", pa.string()),
    pa.field("session", pa.uint64()),
    pa.field("sequence", pa.uint64()),
    pa.field("container_id", pa.string()),
]
COMMON_SCHEMA = pa.schema(
    [
        *_LEAD,
        pa.field("type", pa.string()),
        *(pa.field(f.name, _INTEGERS[f.kind]) for f in schema.HEADER if f.name in _COMMON),
        pa.field("flags", pa.uint16()),
        pa.field("comm", pa.string()),
        pa.field("path", pa.string()),
    ]
)
"""Columns of ``events``. ``path`` is the path, target or name that the event is about, where it has one."""


@cache
def type_schema(name: str) -> pa.Schema:
    """Columns of the table of one event type."""
    kind = schema.BY_NAME[name]
    fields = list(_LEAD)
    for item in (*schema.HEADER, *schema.fields_of(kind)):
        if item.name not in _HIDDEN:
            fields.append(pa.field(item.name, _INTEGERS.get(item.kind, pa.string())))
    for tail in schema.tails_of(kind):
        fields.append(pa.field(tail.name, pa.binary() if tail.kind == "bytes" else pa.string()))
    if name == "dns":
        fields.append(pa.field("question", pa.string()))
    return pa.schema(fields)


def _lead(columns: Columns, entry: Entry, cgroups: Cgroups) -> list[pa.Array]:
    count = len(columns)
    node = (entry.node, entry.boot_id)
    # Wrapping arithmetic, as the clock's own: a hostile offset gives an odd time, not an exception.
    wall = columns.rows["time"].astype(np.int64) + np.int64(entry.wall_offset)
    ids, inverse = np.unique(columns.rows["cgroup"], return_inverse=True)
    containers = pa.array([cgroups.container(node, int(c)) for c in ids], pa.string())
    return [
        pa.array(wall // 1000, pa.int64()).cast(_WALL),
        _repeat(safe_text(entry.node), count),
        pa.array(np.full(count, entry.session, np.uint64)),
        pa.array(np.full(count, entry.sequence, np.uint64)),
        containers.take(pa.array(inverse.reshape(-1))),
    ]


def _repeat(text: str, count: int) -> pa.Array:
    return pa.array([text], pa.string()).take(pa.array(np.zeros(count, np.int32)))


def _comms(column: npt.NDArray[Any]) -> pa.Array:
    names, inverse = np.unique(np.ascontiguousarray(column), return_inverse=True)
    texts = [safe_text(bytes(n).split(b"\0", 1)[0]) for n in names]
    return pa.array(texts, pa.string()).take(pa.array(inverse.reshape(-1)))


def type_batch(columns: Columns, entry: Entry, cgroups: Cgroups) -> pa.RecordBatch:
    """All rows of one type in one batch, as `type_schema` has them."""
    kind = schema.BY_NAME[columns.name]
    arrays = _lead(columns, entry, cgroups)
    for item in (*schema.HEADER, *schema.fields_of(kind)):
        if item.name in _HIDDEN:
            continue
        values = columns.rows[item.name]
        if item.kind == "comm":
            arrays.append(_comms(values))
        elif item.kind == "addr":
            families = columns.rows["family"].tolist()
            texts = [address_text(f, v.tobytes()) or None for f, v in zip(families, values, strict=True)]
            arrays.append(pa.array(texts, pa.string()))
        elif item.kind == "sha256":
            arrays.append(pa.array([v.tobytes().hex() for v in values], pa.string()))
        else:
            arrays.append(pa.array(np.ascontiguousarray(values)))
    for tail in schema.tails_of(kind):
        heap = columns.tails[tail.name]
        arrays.append(pa.array(list(heap), pa.binary()) if tail.kind == "bytes" else texts_of(heap, tail.kind))
    if columns.name == "dns":
        arrays.append(pa.array([safe_text(parse_question(p)) for p in columns.tails["payload"]], pa.string()))
    return pa.RecordBatch.from_arrays(arrays, schema=type_schema(columns.name))


def common_batch(columns: Columns, entry: Entry, cgroups: Cgroups) -> pa.RecordBatch:
    """All rows of one type in one batch, as `COMMON_SCHEMA` has them."""
    arrays = [*_lead(columns, entry, cgroups), _repeat(columns.name, len(columns))]
    arrays += [pa.array(np.ascontiguousarray(columns.rows[f.name])) for f in schema.HEADER if f.name in _COMMON]
    arrays += [pa.array(np.ascontiguousarray(columns.rows["flags"])), _comms(columns.rows["comm"])]
    tail = next((t for t in _PATH_TAILS if t in columns.tails), None)
    arrays.append(texts_of(columns.tails[tail], "path") if tail else pa.nulls(len(columns), pa.string()))
    return pa.RecordBatch.from_arrays(arrays, schema=COMMON_SCHEMA)


def texts_of(heap: Heap, kind: str) -> pa.Array:
    """A tail of all records as text; arguments joined by spaces.

    Most tails are plain ASCII: then the heap's bytes are handed to Arrow as they are, with their separators cut off.
    """
    count = len(heap)
    data = np.frombuffer(heap.data, np.uint8)
    separators = int(np.count_nonzero(data == 0))
    plain = not bool(np.any(((data < 32) & (data != 0)) | (data > 126)))
    if plain and separators == count + 1:
        offsets = heap.offsets.astype(np.int32)
        joined = pa.StringArray.from_buffers(count, pa.py_buffer(offsets.tobytes()), pa.py_buffer(heap.data))
        return pa.compute.utf8_rtrim(joined, characters="\0")
    if kind == "args":
        return pa.array([safe_text(b" ".join(split_args(raw))) for raw in heap], pa.string())
    return pa.array([safe_text(raw) for raw in heap], pa.string())
