from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vedette_events import framing
from vedette_events.encode import encode_event
from vedette_events.framing import (
    BatchError,
    BatchFlags,
    BatchHeader,
    Counters,
    decode_batch,
    decode_header,
    encode_batch,
    iter_batches,
)

RECORDS = encode_event("fork", child_pid=7) * 3
HEADER = BatchHeader(
    node="node-1.example",
    boot_id=bytes(range(16)),
    session=2**63,
    sequence=5,
    count=3,
    ring_from=8,
    ring_to=400,
    wall_offset_ns=-5,
    created_ns=9,
    first_time=3,
    last_time=4,
    flags=BatchFlags.FINAL,
    counters=Counters(1, 2, 3, 4, 5),
    agent_version="0.1.0",
)
FRAME = encode_batch(HEADER, RECORDS)
PAYLOAD_SIZE = decode_header(FRAME)[0].payload_size


def _reframed(offset: int, patch: bytes) -> bytes:
    """The frame with bytes of its header replaced and the header's checksum made right again."""
    size = struct.unpack_from("<H", FRAME, 4)[0]
    head = bytearray(FRAME[: size - 4])
    head[offset : offset + len(patch)] = patch
    return bytes(head) + struct.pack("<I", zlib.crc32(head)) + FRAME[size:]


def _with_payload(payload: bytes, raw_size: int) -> bytes:
    size = struct.unpack_from("<H", FRAME, 4)[0]
    head = bytearray(FRAME[: size - 4])
    struct.pack_into("<II", head, 12, raw_size, len(payload))
    struct.pack_into("<I", head, 104, zlib.crc32(payload))
    return bytes(head) + struct.pack("<I", zlib.crc32(head)) + payload


def test_round_trip() -> None:
    header, records = decode_batch(FRAME)
    assert records == RECORDS
    assert header == replace(HEADER, raw_size=len(RECORDS), payload_size=header.payload_size)
    assert decode_header(FRAME) == (header, len(FRAME))


@given(st.binary(max_size=3000), st.integers(1, 5))
def test_any_records_round_trip(records: bytes, level: int) -> None:
    count = len(records) // 72
    if records and not count:
        records = records.ljust(72, b"\0")
        count = 1
    assert decode_batch(encode_batch(replace(HEADER, count=count), records, level))[1] == records


def test_batches_follow_one_another() -> None:
    second = encode_batch(replace(HEADER, sequence=6, count=0), b"")
    frames = list(iter_batches(FRAME + second))
    assert [(h.sequence, bytes(f)) for h, f in frames] == [(5, FRAME), (6, second)]
    assert decode_batch(FRAME + second, len(FRAME))[1] == b""


def test_a_torn_end_says_where_it_begins() -> None:
    batches = iter_batches(FRAME + FRAME[:-1])
    assert next(batches)[0].sequence == 5
    with pytest.raises(BatchError) as caught:
        next(batches)
    assert (caught.value.reason, caught.value.offset) == ("Truncated", len(FRAME))
    assert caught.value.header is not None


@pytest.mark.parametrize("size", range(len(FRAME)))
def test_every_truncation_is_called_that(size: int) -> None:
    with pytest.raises(BatchError) as caught:
        decode_batch(FRAME[:size])
    assert caught.value.reason == "Truncated"


@pytest.mark.parametrize(
    ("frame", "reason", "message"),
    [
        (b"VDB2" + FRAME[4:], "BadMagic", "a batch begins with b'VDB1', not b'VDB2'"),
        (FRAME[:4] + b"\x05\0" + FRAME[6:], "BadHeader", "header size 5, not 152 to 469"),
        (FRAME[:9] + b"\xff" + FRAME[10:], "HeaderChecksum", "the header does not match its checksum"),
        (FRAME[:-1] + b"\xff", "PayloadChecksum", "the payload does not match its checksum"),
        (_reframed(6, b"\x09\0"), "UnsupportedVersion", "schema version 9; accepted: 1"),
        (_reframed(10, b"\0"), "BadHeader", "the names do not fill the header"),
        (_reframed(148, b"\xff"), "BadHeader", "node name or agent version is not UTF-8"),
        (
            _reframed(12, b"\xff\xff\xff\xff"),
            "TooLarge",
            f"4294967295 bytes of records in {PAYLOAD_SIZE}, more than 16777216",
        ),
        (_reframed(20, b"\x05\0\0\0"), "BadHeader", "5 records cannot be in 288 bytes"),
        (_reframed(20, b"\0\0\0\0"), "BadHeader", "0 records cannot be in 288 bytes"),
        (_reframed(48, bytes(8)), "BadHeader", "sequence 0: the first batch of a session is 1"),
        (_reframed(56, b"\xff\xff"), "BadHeader", "ring_from 65535 lies after ring_to 400"),
        (_with_payload(b"not zstd", 288), "BadPayload", "error when determining content size"),
        (
            _with_payload(zstandard.compress(bytes(289)), 288),
            "BadPayload",
            "zstd frame declares 289 bytes, the header 288",
        ),
        (
            _with_payload(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(288)), 288),
            "BadPayload",
            "zstd frame declares -1 bytes, the header 288",
        ),
        (
            _with_payload(zstandard.compress(bytes(288)) + b"more", 288),
            "BadPayload",
            "compressed input contains 4 bytes of unused data, which is disallowed",
        ),
    ],
)
def test_decode_says_what_is_wrong(frame: bytes, reason: str, message: str) -> None:
    with pytest.raises(BatchError) as caught:
        decode_batch(frame)
    assert (caught.value.reason, caught.value.message) == (reason, message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (replace(HEADER, node=""), "node name of 0 bytes, not 1 to 253"),
        (replace(HEADER, node="n" * 254), "node name of 254 bytes, not 1 to 253"),
        (replace(HEADER, agent_version="v" * 65), "agent version of 65 bytes, more than 64"),
        (replace(HEADER, boot_id=b""), "boot id of 0 bytes, not 16"),
        (replace(HEADER, sequence=0), "sequence 0: the first batch of a session is 1"),
        (replace(HEADER, count=0), "0 records cannot be in 288 bytes"),
    ],
)
def test_encode_refuses_what_decode_would(header: BatchHeader, message: str) -> None:
    with pytest.raises(BatchError) as caught:
        encode_batch(header, RECORDS)
    assert (caught.value.reason, caught.value.message) == ("BadHeader", message)


def test_encode_refuses_numbers_that_do_not_fit() -> None:
    with pytest.raises(BatchError) as caught:
        encode_batch(replace(HEADER, session=2**64), RECORDS)
    assert caught.value.reason == "BadHeader"


def test_encode_refuses_too_many_records() -> None:
    with pytest.raises(BatchError) as caught:
        encode_batch(HEADER, bytes(framing.MAX_RAW + 1))
    assert caught.value.reason == "TooLarge"


def test_a_version_error_names_the_batch() -> None:
    with pytest.raises(BatchError) as caught:
        decode_batch(FRAME, versions=(2, 3))
    assert caught.value.message == "schema version 1; accepted: 2, 3"
    assert caught.value.header is not None
    assert caught.value.header.sequence == 5


@given(st.data())
def test_damaged_frames_are_refused_or_read_the_same(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(FRAME) - 1))
    byte = data.draw(st.integers(0, 255))
    frame = FRAME[:position] + bytes([byte]) + FRAME[position + 1 :]
    if frame == FRAME:
        assert decode_batch(frame)[1] == RECORDS
    else:
        with pytest.raises(BatchError):
            decode_batch(frame)


@given(st.binary(max_size=600))
def test_any_bytes_after_the_magic(tail: bytes) -> None:
    with pytest.raises(BatchError) as caught:
        decode_batch(b"VDB1" + tail)
    assert caught.value.reason in {"Truncated", "BadHeader", "HeaderChecksum"}
