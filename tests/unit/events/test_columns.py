from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_events import _native, schema
from vedette_events.columns import Heap, Splitter, split_batch
from vedette_events.encode import decode_event, encode_event
from vedette_events.framing import BadRecordError
from vedette_events.schema import BY_NAME, EVENT_TYPES, HEADER_SIZE, EventType, Field, Tail

from .strategies import events

OPEN = encode_event("open", pid=7, path="/etc/passwd")
MEMFD = encode_event("memfd", name="x")
MEMFD_LENGTH_AT = schema.tail_lengths_offset(BY_NAME["memfd"])


def patched(record: bytes, offset: int, patch: bytes) -> bytes:
    return record[:offset] + patch + record[offset + len(patch) :]


@pytest.mark.parametrize("name", [e.name for e in EVENT_TYPES])
def test_every_type_round_trips(name: str) -> None:
    tails: dict[str, Any] = {t.name: bytes([65 + i]) * t.limit for i, t in enumerate(BY_NAME[name].tails)}
    record = encode_event(name, pid=7, comm="me", result=-2, **tails)
    columns = split_batch(record * 3).types[name]
    assert len(columns) == 3
    assert columns.rows["pid"].tolist() == [7, 7, 7]
    assert columns.rows["comm"].tolist() == [b"me"] * 3
    assert columns.rows["result"].tolist() == [-2] * 3
    assert {k: list(v) for k, v in columns.tails.items()} == {k: [v] * 3 for k, v in tails.items()}


@given(st.lists(events(), max_size=12))
def test_columns_hold_what_the_records_hold(values: list[tuple[str, dict[str, Any]]]) -> None:
    records = [encode_event(name, **fields) for name, fields in values]
    batch = split_batch(b"".join(records))
    assert batch.count == len(records)
    assert sum(len(c) for c in batch.types.values()) == len(records)
    for name, columns in batch.types.items():
        assert columns.name == name
        assert len(columns.order) == len(columns.rows)
        for row, position in enumerate(columns.order.tolist()):
            expected_name, expected = decode_event(records[position])
            assert expected_name == name
            for field in (*schema.HEADER, *BY_NAME[name].fields):
                value = columns.rows[field.name][row]
                assert (value.tobytes() if value.ndim else value) == expected[field.name]
            for tail in BY_NAME[name].tails:
                assert columns.tails[tail.name][row] == expected[tail.name]
                assert columns.tails[tail.name].lengths[row] == len(expected[tail.name])


def test_a_heap_frames_each_tail_with_nul() -> None:
    heap = split_batch(OPEN + encode_event("open") + OPEN).types["open"].tails["path"]
    assert heap.data == b"\0/etc/passwd\0\0/etc/passwd\0"
    assert heap.offsets.tolist() == [1, 13, 14, 26]
    assert (len(heap), heap[-1], heap[1]) == (3, b"/etc/passwd", b"")
    made = Heap.of([b"/etc/passwd", b"", b"/etc/passwd"])
    assert (made.data, made.offsets.tolist()) == (heap.data, heap.offsets.tolist())
    with pytest.raises(IndexError, match=r"^tail 3 of 3$"):
        heap[3]


def test_arrays_are_read_only() -> None:
    columns = split_batch(OPEN).types["open"]
    with pytest.raises(ValueError, match=r"read-only"):
        columns.rows["pid"] = 1


def test_no_records_are_no_events() -> None:
    assert (split_batch(b"").count, dict(split_batch(b"").types)) == (0, {})


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (OPEN[:71], "71 bytes left, fewer than a header's 72"),
        (patched(MEMFD, 0, b"\x5a\0\0\0"), "memfd: size 90 is not a multiple of 8"),
        (patched(MEMFD, 0, b"\xf8\xff\xff\xff"), "memfd: size 4294967288, but only 96 bytes are left"),
        (patched(MEMFD, 0, b"\0\0\0\0"), "memfd: size 0 is less than the 72 bytes before its tails"),
        (patched(MEMFD, 0, b"\x50\0\0\0"), "memfd: size 80 is less than the 88 bytes before its tails"),
        (patched(MEMFD, 0, b"\x58\0\0\0"), "memfd: size 88, but its tails make it 96"),
        (patched(MEMFD, 4, b"\xfa\0"), "type 250 is not known in schema version 1"),
        (patched(MEMFD, 4, b"\0\0"), "type 0 is not known in schema version 1"),
        (patched(MEMFD, 4, b"\xff\xff"), "type 65535 is not known in schema version 1"),
        (patched(MEMFD, MEMFD_LENGTH_AT, b"\x01\x01"), "memfd.name: 257 bytes, more than 256"),
        (patched(MEMFD, MEMFD_LENGTH_AT, b"\xff\xff"), "memfd.name: 65535 bytes, more than 256"),
        (patched(MEMFD, MEMFD_LENGTH_AT, b"\x09\0"), "memfd: size 96, but its tails make it 104"),
    ],
)
def test_a_bad_record_is_named_exactly(bad: bytes, what: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        split_batch(OPEN + OPEN + bad)
    error = caught.value
    assert (error.reason, error.index, error.offset, error.what) == ("BadRecord", 2, 2 * len(OPEN), what)
    assert str(error) == f"BadRecord: record 2 at byte {2 * len(OPEN)}: {what}"


@given(st.binary(max_size=600))
def test_any_bytes_are_split_or_refused(records: bytes) -> None:
    try:
        batch = split_batch(records)
    except BadRecordError as error:
        refused = error
    else:
        assert records == b"" or batch.count > 0
        return
    assert 0 <= refused.offset < len(records)


@given(st.lists(events(), min_size=1, max_size=4), st.data())
def test_damaged_batches_agree_with_the_plain_decoder(values: list[tuple[str, dict[str, Any]]], data: Any) -> None:
    records = b"".join(encode_event(name, **fields) for name, fields in values)
    at = data.draw(st.integers(0, len(records) - 1))
    damaged = records[:at] + data.draw(st.binary(min_size=1, max_size=4)) + records[at:]
    damaged = damaged[: len(records)]
    offset = count = 0
    problem = False
    while offset < len(damaged) and not problem:
        size = int.from_bytes(damaged[offset : offset + 4], "little")
        try:
            decode_event(damaged[offset : offset + max(size, 1)])
        except ValueError:
            problem = True
        else:
            offset += size
            count += 1
    if problem:
        with pytest.raises(BadRecordError) as caught:
            split_batch(damaged)
        assert (caught.value.index, caught.value.offset) == (count, offset)
    else:
        assert split_batch(damaged).count == count


def grown(event: EventType) -> EventType:
    fields = (*event.fields, Field("colour", "u64", "New.", since=2), Field("shade", "u32", "New.", since=2))
    return replace(event, fields=fields, tails=(*event.tails, Tail("taste", "text", 64, "New.", since=2)))


VERSION_2 = (
    *(grown(e) if e.name in ("open", "exit") else e for e in EVENT_TYPES),
    EventType(31, "novelty", "New.", (Field("colour", "u64", "New."),), (Tail("taste", "text", 8, "New."),), since=2),
)


def test_an_older_batch_reads_with_zero_and_empty_for_what_it_lacks() -> None:
    older = Splitter(1, 2, VERSION_2).split(OPEN + encode_event("exit", exit_code=256))
    opened, ended = older.types["open"], older.types["exit"]
    assert opened.rows["pid"].tolist() == [7]
    assert opened.rows["colour"].tolist() == [0]
    assert opened.rows["taste_len"].tolist() == [0]
    assert {k: v[0] for k, v in opened.tails.items()} == {"path": b"/etc/passwd", "dir": b"", "taste": b""}
    assert opened.rows.dtype.itemsize == schema.fixed_size(grown(BY_NAME["open"]), 2)
    assert ended.rows["exit_code"].tolist() == [256]
    assert ended.tails["taste"][0] == b""


def test_the_versions_do_not_read_each_other_by_mistake() -> None:
    with pytest.raises(BadRecordError) as caught:
        Splitter(2, 2, VERSION_2).split(encode_event("open"))
    assert caught.value.what == "open: size 120 is less than the 136 bytes before its tails"
    novelty = patched(encode_event("memfd"), 4, b"\x1f\0")
    with pytest.raises(BadRecordError) as caught:
        Splitter(1, 2, VERSION_2).split(novelty)
    assert caught.value.what == "type 31 is not known in schema version 1"
    assert Splitter(2, 2, VERSION_2).split(novelty).types["novelty"].rows["colour"].tolist() == [0]


@pytest.mark.parametrize("layouts", [b"", bytes(10), b"\x48\0\x48\0\x09\0" + bytes(256 * 22 - 6)])
def test_impossible_layouts_are_refused(layouts: bytes) -> None:
    with pytest.raises(ValueError, match=r"^layouts: "):
        _native.split(b"", layouts)


@pytest.mark.parametrize("records", [bytearray(OPEN), memoryview(OPEN), "text", None])
def test_only_bytes_are_split(records: Any) -> None:
    with pytest.raises(TypeError):
        split_batch(records)


def test_scan() -> None:
    records = encode_event("exit", time=9) + encode_event("open", time=4, path="/x") + encode_event("exit", time=6)
    assert _native.scan(records) == (3, 4, 9)
    assert _native.scan(b"") == (0, 0, 0)
    with pytest.raises(_native.SplitError) as caught:
        _native.scan(records + bytes(HEADER_SIZE))
    assert caught.value.args == (5, 3, len(records), 0, 0, 0, 72)


def test_threads_split_at_the_same_time() -> None:
    records = OPEN * 5000
    counts: list[int] = []

    def work() -> None:
        for _ in range(20):
            counts.append(split_batch(records).count)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [5000] * 80


def test_order_is_ascending_across_types() -> None:
    batch = split_batch(OPEN + MEMFD + OPEN)
    assert batch.types["open"].order.tolist() == [0, 2]
    assert batch.types["memfd"].order.dtype == np.uint32
