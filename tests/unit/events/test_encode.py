from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_events import schema
from vedette_events.encode import decode_event, encode_event, pack_address, unpack_address
from vedette_events.schema import BY_NAME, EVENT_TYPES, Common, FileBits, StdioKind

from .strategies import events


@pytest.mark.parametrize("name", [e.name for e in EVENT_TYPES])
def test_an_event_without_values_is_zero_and_of_its_fixed_size(name: str) -> None:
    record = encode_event(name)
    assert len(record) == schema.fixed_size(BY_NAME[name])
    decoded_name, values = decode_event(record)
    assert decoded_name == name
    assert {k for k, v in values.items() if isinstance(v, int) and v} == {"size", "type"}
    assert not any(values[t.name] for t in BY_NAME[name].tails)


@given(events())
def test_round_trip(event: tuple[str, dict[str, Any]]) -> None:
    name, values = event
    record = encode_event(name, **values)
    decoded_name, decoded = decode_event(record)
    assert decoded_name == name
    assert decoded.pop("size") == len(record)
    assert decoded.pop("type") == BY_NAME[name].code
    assert decoded == values


def test_readable_forms_of_values() -> None:
    record = encode_event(
        "exec",
        comm="a name that is too long",
        flags=["TRUNCATED", "COMPAT"],
        file_bits="OVERLAY | UPPER",
        stdin_kind="INET",
        argv=["nc", b"-e\xff", "/bin/sh"],
        path="/tmp/\udcff",
        raddr="198.51.100.7",
    )
    _, values = decode_event(record)
    assert values["comm"] == b"a name that is "
    assert values["flags"] == Common.TRUNCATED | Common.COMPAT
    assert values["file_bits"] == FileBits.OVERLAY | FileBits.UPPER
    assert values["stdin_kind"] == StdioKind.INET
    assert values["argv"] == b"nc\0-e\xff\0/bin/sh\0"
    assert values["argc"] == 3
    assert values["path"] == b"/tmp/\xff"
    assert values["family"] == 2
    assert values["raddr"] == bytes(12) + bytes([198, 51, 100, 7])


@pytest.mark.parametrize(("address", "family"), [("198.51.100.7", 2), ("2001:db8::7", 10), ("::", 10), ("0.0.0.0", 2)])
def test_addresses_round_trip(address: str, family: int) -> None:
    assert unpack_address(pack_address(address), family) == address


def test_address_of_another_family_has_no_text() -> None:
    assert unpack_address(bytes(16), 1) == ""


def test_tail_too_long_is_cut_only_on_request() -> None:
    with pytest.raises(ValueError, match=r"^memfd: name: 257 bytes, more than 256$"):
        encode_event("memfd", name="x" * 257)
    _, values = decode_event(encode_event("memfd", name="x" * 257, flags="COMPAT", truncate=True))
    assert values["name"] == b"x" * 256
    assert values["flags"] == Common.TRUNCATED | Common.COMPAT


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("nothing", {}, "no event type 'nothing' in schema version 1"),
        ("exec", {"pid": -1, "tid": 2**32, "hue": 1}, "exec: hue: no such field or tail; pid: -1 does not fit u32; "
         "tid: 4294967296 does not fit u32"),
        ("exec", {"size": 1}, "exec: size: no such field or tail"),
        ("exec", {"file_bits": "UPER"}, f"exec: file_bits: 'UPER' is none of {', '.join(FileBits.__members__)}"),
        ("exec", {"pid": "7"}, "exec: pid: '7' is not an integer"),
        ("exec", {"path": ["a"]}, "exec: path: ['a'] is not text or bytes"),
        ("exec", {"argv": [1]}, "exec: argv: 1 is not a list of strings, text or bytes"),
        ("bind", {"raddr": "198.51.100"}, "bind: raddr: '198.51.100' does not appear to be an IPv4 or IPv6 address"),
        ("connect", {"raddr": b"123"}, "connect: raddr: an address has 4 or 16 bytes, not 3"),
        ("file_hash", {"sha256": "00"}, "file_hash: sha256: has 1 bytes, not 32"),
    ],
)  # fmt: skip
def test_encode_names_every_problem(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        encode_event(name, **values)


def _patched(record: bytes, offset: int, patch: bytes) -> bytes:
    return record[:offset] + patch + record[offset + len(patch) :]


MEMFD = encode_event("memfd", name="x")
MEMFD_LENGTH_AT = schema.tail_lengths_offset(BY_NAME["memfd"])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"", "0 bytes are shorter than a header"),
        (MEMFD[:71], "71 bytes are shorter than a header"),
        (_patched(MEMFD, 4, b"\xff\0"), "type 255 is not known in schema version 1"),
        (MEMFD + bytes(8), "memfd: size 96 in a record of 104 bytes"),
        (_patched(MEMFD[:80], 0, b"\x50\0\0\0"), "memfd: size 80 in a record of 80 bytes"),
        (_patched(MEMFD, MEMFD_LENGTH_AT, b"\x01\x01"), "memfd.name: 257 bytes, more than 256"),
        (_patched(MEMFD, MEMFD_LENGTH_AT, b"\x09\0"), "memfd: tails end at 97, the record at 96"),
    ],
)
def test_decode_says_what_is_wrong(record: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        decode_event(record)


@given(events(), st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_decode_reads_damaged_records_or_refuses_them(event: tuple[str, dict[str, Any]], at: int, patch: bytes) -> None:
    record = encode_event(event[0], **event[1])
    with contextlib.suppress(ValueError):
        name, values = decode_event(_patched(record, at % len(record), patch)[: len(record)])
        again = encode_event(name, **{k: v for k, v in values.items() if k not in ("size", "type")})
        assert len(again) == len(record)
