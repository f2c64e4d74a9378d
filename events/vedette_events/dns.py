"""DNS messages (RFC 1035), read for events that are looked at one by one.

For whole batches there are `vedette_events._native.dns_names` and ``dns_match``. Messages come from whoever sends
them: names are lower-case bytes, never text by right, and nothing here fails on any input.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

TYPE_A = 1
TYPE_CNAME = 5
TYPE_AAAA = 28

_HEADER = struct.Struct(">HHHHHH")
_RECORD = struct.Struct(">HHIH")
_MAX_NAME = 255
_MAX_RECORDS = 64
"""Records read of each section; an answer within the captured 1472 bytes rarely has more."""


@dataclass(frozen=True)
class Question:
    """One question; ``name`` without the final dot."""

    name: bytes
    type: int


@dataclass(frozen=True)
class Answer:
    """One resource record. ``data`` is the text of an address, the name of a CNAME, or else the raw bytes."""

    name: bytes
    type: int
    ttl: int
    data: str | bytes


@dataclass(frozen=True)
class Message:
    """What could be read of a DNS message; ``complete`` is false when it broke off or was malformed somewhere."""

    id: int
    response: bool
    rcode: int
    questions: tuple[Question, ...]
    answers: tuple[Answer, ...]
    complete: bool


class _MalformedError(Exception):
    """The message cannot be read further."""


def _name(payload: bytes, at: int) -> tuple[bytes, int]:
    """The name at ``at`` and where what follows it begins."""
    labels: list[bytes] = []
    after, lowest, wire = -1, at, 1
    while True:
        if at >= len(payload):
            raise _MalformedError
        length = payload[at]
        if length == 0:
            return b".".join(labels).lower(), at + 1 if after < 0 else after
        if length & 0xC0 == 0xC0:
            if at + 2 > len(payload):
                raise _MalformedError
            target = (length & 0x3F) << 8 | payload[at + 1]
            if target >= lowest:  # pointers go backwards only, so that there is an end to them
                raise _MalformedError
            after = at + 2 if after < 0 else after
            at = lowest = target
            continue
        wire += length + 1
        if length & 0xC0 or at + 1 + length > len(payload) or wire > _MAX_NAME:
            raise _MalformedError
        labels.append(payload[at + 1 : at + 1 + length])
        at += 1 + length


def _answer(payload: bytes, at: int) -> tuple[Answer, int]:
    name, at = _name(payload, at)
    if at + _RECORD.size > len(payload):
        raise _MalformedError
    kind, _, ttl, length = _RECORD.unpack_from(payload, at)
    at += _RECORD.size
    if at + length > len(payload):
        raise _MalformedError
    data: str | bytes = payload[at : at + length]
    if (kind, length) in ((TYPE_A, 4), (TYPE_AAAA, 16)):
        data = str(ipaddress.ip_address(data))
    elif kind == TYPE_CNAME:
        data, _ = _name(payload, at)
    return Answer(name, kind, ttl, data), at + length


def parse(payload: bytes) -> Message | None:
    """Questions and answers of a message; None for fewer than the 12 bytes of its header."""
    if len(payload) < _HEADER.size:
        return None
    ident, bits, question_count, answer_count, _, _ = _HEADER.unpack_from(payload)
    questions: list[Question] = []
    answers: list[Answer] = []
    at, complete = _HEADER.size, True
    try:
        for _ in range(min(question_count, _MAX_RECORDS)):
            name, at = _name(payload, at)
            if at + 4 > len(payload):
                raise _MalformedError
            questions.append(Question(name, int.from_bytes(payload[at : at + 2], "big")))
            at += 4
        for _ in range(min(answer_count, _MAX_RECORDS)):
            answer, at = _answer(payload, at)
            answers.append(answer)
    except _MalformedError:
        complete = False
    complete = complete and max(question_count, answer_count) <= _MAX_RECORDS
    return Message(ident, bool(bits & 0x8000), bits & 0xF, tuple(questions), tuple(answers), complete)


def encode_query(name: str | bytes, kind: int = TYPE_A, ident: int = 1) -> bytes:
    """A query for ``name``, for tests.

    Raises:
        ValueError: a label that is empty or longer than 63 bytes.
    """
    return _HEADER.pack(ident, 0x0100, 1, 0, 0, 0) + encode_name(name) + struct.pack(">HH", kind, 1)


def encode_answer(name: str | bytes, address: str, ttl: int = 60, ident: int = 1) -> bytes:
    """An answer to a query for ``name`` with one address, for tests.

    Raises:
        ValueError: not an address, or a label that is empty or longer than 63 bytes.
    """
    packed = ipaddress.ip_address(address).packed
    kind = TYPE_A if len(packed) == 4 else TYPE_AAAA
    question = encode_name(name) + struct.pack(">HH", kind, 1)
    record = b"\xc0\x0c" + _RECORD.pack(kind, 1, ttl, len(packed)) + packed
    return _HEADER.pack(ident, 0x8180, 1, 1, 0, 0) + question + record


def encode_name(name: str | bytes) -> bytes:
    """The name on the wire, uncompressed; empty for the root.

    Raises:
        ValueError: a label that is empty or longer than 63 bytes.
    """
    text = name.encode() if isinstance(name, str) else name
    labels = text.rstrip(b".").split(b".") if text.rstrip(b".") else []
    if any(not 0 < len(label) <= 63 for label in labels):
        raise ValueError(f"{name!r} has a label that is empty or longer than 63 bytes")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
