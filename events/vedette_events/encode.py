"""Write and read single records in Python: for snapshots, for tests and for the test events of rules.

The kernel side writes records in C and the detector reads them in C and numpy (`vedette_events.columns`); this
module is the slow, plain statement of the same format, one record at a time.

    encode_event("connect", pid=7, raddr="198.51.100.7", rport=443, result=0)
    encode_event("exec", path="/usr/bin/nmap", argv=["nmap", "-sS"], file_bits="OVERLAY|UPPER", stdin_kind="INET")
"""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum, IntFlag
from functools import cache
from typing import Any

from vedette_events import schema
from vedette_events.schema import (
    BY_CODE,
    BY_NAME,
    FIELD_SIZES,
    HEADER,
    HEADER_SIZE,
    SCHEMA_VERSION,
    Common,
    EventType,
    Field,
    FieldKind,
    Tail,
    pad8,
)

AF_INET = 2
AF_INET6 = 10
COMM_BYTES = 15
"""What the kernel keeps of a thread's name, its NUL not counted."""

_FORMATS: dict[FieldKind, str] = {
    "u8": "B",
    "u16": "H",
    "u32": "I",
    "u64": "Q",
    "s32": "i",
    "s64": "q",
    "comm": "16s",
    "addr": "16s",
    "sha256": "32s",
}
_RANGES: dict[str, tuple[int, int]] = {
    "u8": (0, 2**8 - 1),
    "u16": (0, 2**16 - 1),
    "u32": (0, 2**32 - 1),
    "u64": (0, 2**64 - 1),
    "s32": (-(2**31), 2**31 - 1),
    "s64": (-(2**63), 2**63 - 1),
}
_COMPUTED = ("size", "type")

Address = str | bytes | ipaddress.IPv4Address | ipaddress.IPv6Address


@cache
def _layout(name: str, version: int) -> tuple[EventType, tuple[Field, ...], tuple[Tail, ...], struct.Struct]:
    event = BY_NAME[name]
    fields = (*HEADER, *schema.fields_of(event, version))
    tails = schema.tails_of(event, version)
    form = "<" + "".join(_FORMATS[f.kind] for f in fields) + "H" * len(tails)
    padding = schema.fixed_size(event, version) - struct.calcsize(form)
    return event, fields, tails, struct.Struct(form + "x" * padding)


def pack_address(address: Address) -> bytes:
    """The 16 bytes of an ``addr`` field: IPv6 as it is, IPv4 in the last four bytes.

    Raises:
        ValueError: not an address.
    """
    if isinstance(address, bytes):
        if len(address) not in (4, 16):
            raise ValueError(f"an address has 4 or 16 bytes, not {len(address)}")
        return address.rjust(16, b"\0")
    return ipaddress.ip_address(address).packed.rjust(16, b"\0")


def unpack_address(packed: bytes, family: int) -> str:
    """The text of a 16-byte ``addr`` field; empty for a family without IP addresses."""
    if family == AF_INET:
        return str(ipaddress.IPv4Address(packed[12:]))
    return str(ipaddress.IPv6Address(packed)) if family == AF_INET6 else ""


def _flags_value(enum: type[IntFlag] | type[IntEnum], value: str | Iterable[str]) -> int:
    names = [n.strip() for n in value.split("|")] if isinstance(value, str) else list(value)
    total = 0
    for name in filter(None, names):
        if name not in enum.__members__:
            raise ValueError(f"{name!r} is none of {', '.join(enum.__members__)}")
        total |= enum.__members__[name].value
    return total


def _field_value(field: Field, value: Any) -> int | bytes:
    if field.kind == "comm":
        return (value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value))[:COMM_BYTES]
    if field.kind == "addr":
        return pack_address(value)
    if field.kind == "sha256":
        digest = bytes.fromhex(value) if isinstance(value, str) else bytes(value)
        if len(digest) != FIELD_SIZES["sha256"]:
            raise ValueError(f"has {len(digest)} bytes, not 32")
        return digest
    if field.flags is not None and not isinstance(value, int):
        value = _flags_value(field.flags, value)
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is not an integer")
    low, high = _RANGES[field.kind]
    if not low <= value <= high:
        raise ValueError(f"{value} does not fit {field.kind}")
    return int(value)


def _tail_bytes(tail: Tail, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if tail.kind == "args" and isinstance(value, Sequence):
        return b"".join(_tail_bytes(tail, argument) + b"\0" for argument in value)
    raise ValueError(
        f"{value!r} is not {'a list of strings, text or bytes' if tail.kind == 'args' else 'text or bytes'}"
    )


def _implied(values: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Values that follow from others and that the kernel always sets: the address family, and argc."""
    implied: dict[str, Any] = {}
    if "family" in names and "family" not in values:
        for name in ("raddr", "laddr"):
            address = values.get(name)
            if isinstance(address, bytes):
                implied["family"] = AF_INET if len(address) == 4 else AF_INET6
            elif address is not None:
                version = ipaddress.ip_address(address).version
                implied["family"] = {4: AF_INET, 6: AF_INET6}[version]
            if implied:
                break
    argv = values.get("argv")
    if "argc" in names and "argc" not in values and isinstance(argv, Sequence) and not isinstance(argv, str | bytes):
        implied["argc"] = min(len(argv), 255)
    return implied


def encode_event(name: str, /, *, version: int = SCHEMA_VERSION, truncate: bool = False, **values: Any) -> bytes:
    """One record of the event type ``name``.

    What is not given is zero or empty; ``family`` follows the addresses and ``argc`` a list ``argv`` when not given.

    Args:
        name: event type, as in the schema.
        version: schema version to write.
        truncate: cut tails that are too long and set ``Common.TRUNCATED``, instead of raising.
        values: by field or tail name. Integers; flags and enums also by name (``"OVERLAY|UPPER"``, a list of names);
            addresses as text, ipaddress objects or 4 or 16 bytes; ``sha256`` as hex or bytes; tails as bytes, text
            (UTF-8 with surrogateescape) or, for ``args``, a list of these. ``comm`` is cut to 15 bytes.

    Raises:
        ValueError: no such type, field or tail in this version, or values that do not fit; names all of them.
    """
    if name not in BY_NAME or BY_NAME[name].since > version:
        raise ValueError(f"no event type {name!r} in schema version {version}")
    event, fields, tails, form = _layout(name, version)
    field_names = frozenset(f.name for f in fields) - frozenset(_COMPUTED)
    problems = [
        f"{k}: no such field or tail" for k in values if k not in field_names and k not in {t.name for t in tails}
    ]
    packed: dict[str, int | bytes] = {}
    contents: list[bytes] = []
    with contextlib.suppress(ValueError):  # a malformed address is reported with its field below
        values = {**_implied(values, field_names), **values}
    for field in fields:
        default: int | bytes = b"" if field.kind in ("comm", "addr", "sha256") else 0
        packed[field.name] = default
        if field.name in values and field.name in field_names:
            try:
                packed[field.name] = _field_value(field, values[field.name])
            except ValueError as error:
                problems.append(f"{field.name}: {error}")
    for tail in tails:
        try:
            content = _tail_bytes(tail, values.get(tail.name, b""))
        except ValueError as error:
            problems.append(f"{tail.name}: {error}")
            continue
        if len(content) > tail.limit and truncate:
            content = content[: tail.limit]
            packed["flags"] = int(packed["flags"]) | Common.TRUNCATED
        elif len(content) > tail.limit:
            problems.append(f"{tail.name}: {len(content)} bytes, more than {tail.limit}")
        contents.append(content)
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")
    size = pad8(form.size + sum(map(len, contents)))
    packed |= {"size": size, "type": event.code}
    return (form.pack(*packed.values(), *map(len, contents)) + b"".join(contents)).ljust(size, b"\0")


def decode_event(record: bytes, version: int = SCHEMA_VERSION) -> tuple[str, dict[str, Any]]:
    """The type's name and all values of one record: integers, and bytes for ``comm``, ``addr``, ``sha256``, tails.

    ``comm`` is given without its padding.

    Raises:
        ValueError: not exactly one well-formed record of this version.
    """
    if len(record) < HEADER_SIZE:
        raise ValueError(f"{len(record)} bytes are shorter than a header")
    size, code = struct.unpack_from("<IH", record)
    if code not in BY_CODE or BY_CODE[code].since > version:
        raise ValueError(f"type {code} is not known in schema version {version}")
    event, fields, tails, form = _layout(BY_CODE[code].name, version)
    if size != len(record) or size < form.size:
        raise ValueError(f"{event.name}: size {size} in a record of {len(record)} bytes")
    unpacked = form.unpack_from(record)
    values: dict[str, Any] = dict(zip((f.name for f in fields), unpacked, strict=False))
    values["comm"] = values["comm"].rstrip(b"\0")
    offset = form.size
    for tail, length in zip(tails, unpacked[len(fields) :], strict=True):
        if length > tail.limit:
            raise ValueError(f"{event.name}.{tail.name}: {length} bytes, more than {tail.limit}")
        values[tail.name] = record[offset : offset + length]
        offset += length
    if pad8(offset) != size:
        raise ValueError(f"{event.name}: tails end at {offset}, the record at {size}")
    return event.name, values
