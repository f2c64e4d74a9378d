"""One event that passed the prefilter, as rules and detectors see it."""

from __future__ import annotations

import ipaddress
from datetime import datetime
from enum import IntFlag
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vedette_detector.engine.detection import ContainerRef
from vedette_detector.engine.text import join_path, split_args
from vedette_detector.text import safe_text
from vedette_events import schema
from vedette_events.dtypes import dtype

if TYPE_CHECKING:
    from vedette_detector.engine.history import NodeHistory, Process
    from vedette_detector.engine.segments import Segment

AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10

_DIR_OF = {"path": "dir", "new_path": "new_dir"}
_TAIL_KINDS = {t.name: {x.name: x.kind for x in t.tails} for t in schema.EVENT_TYPES}
_FIELDS = {t.name: {f.name: f for f in (*schema.HEADER, *t.fields)} for t in schema.EVENT_TYPES}

_NOT_PLAIN = ("comm", "addr", "sha256")
_PLAIN = {
    name: tuple((f.name, places[f.name]) for f in fields.values() if f.kind not in _NOT_PLAIN and f.name in places)
    for name, fields in _FIELDS.items()
    for places in ({n: place for place, n in enumerate(dtype(name).names or ())},)
}
_PLACES = {t.name: {name: place for place, name in enumerate(dtype(t.name).names or ())} for t in schema.EVENT_TYPES}


class Event:
    """A lazy view of one row.

    Every field of the event's type is an attribute: ints, ``comm`` and ``sha256`` as bytes, addresses as 16 bytes in
    network order (an IPv4 address in the last four). Every tail is an attribute too, as bytes: whatever the process
    chose, never valid text by right (``argv`` is split into a list). Use `text` and the properties below for what
    leaves the engine.

    Attributes:
        type: name of the event type.
        node: node the event is from.
    """

    __slots__ = ("__dict__", "_row", "_segment", "_values", "history", "node", "type")

    def __init__(self, type_name: str, segment: Segment, row: int, history: NodeHistory) -> None:
        self.type = type_name
        self.node = history.node
        self.history = history
        self._segment = segment
        self._row = row
        self._values: tuple[Any, ...] | None = None

    def __getattr__(self, name: str) -> Any:
        place = _PLACES[self.type].get(name)
        if place is not None:
            values = self._values
            if values is None:
                # One conversion of the whole row costs less than a few of single fields; what is a number already
                # becomes an ordinary attribute with it.
                values = self._values = self._segment.rows[self._row].item()
                attributes = self.__dict__
                for plain, at in _PLAIN[self.type]:
                    attributes[plain] = values[at]
            value = values[place]
            kind = _FIELDS[self.type][name].kind
            if kind == "comm":
                value = value.split(b"\0", 1)[0]
            elif kind in ("addr", "sha256"):
                value = value.tobytes()
        elif name in _TAIL_KINDS[self.type]:
            value = self._segment.tail(name, self._row)
        else:
            raise AttributeError(f"{self.type} events have no field {name!r}")
        self.__dict__[name] = value
        return value

    def __repr__(self) -> str:
        return f"<Event {self.type} pid={self.pid} time={self.time} on {safe_text(self.node.encode())}>"

    def has(self, name: str) -> bool:
        """Whether the type has a field or tail of this name."""
        return name in _FIELDS[self.type] or name in _TAIL_KINDS[self.type]

    @cached_property
    def wall(self) -> datetime:
        """When it happened, UTC."""
        return self.history.wall(self.time)

    def text(self, tail: str) -> str:
        """A tail made safe to show; arguments joined by spaces."""
        raw = self.tail(tail)
        if _TAIL_KINDS[self.type].get(tail) == "args":
            raw = b" ".join(split_args(raw))
        return safe_text(raw)

    def tail(self, name: str) -> bytes:
        """A tail's bytes as they are in the record."""
        if name not in _TAIL_KINDS[self.type]:
            raise AttributeError(f"{self.type} events have no tail {name!r}")
        return self._segment.tail(name, self._row)

    @cached_property
    def argv(self) -> list[bytes]:
        """The argument vector of an exec, as given; empty for other types."""
        return split_args(self.tail("argv")) if self.type == "exec" else []

    @cached_property
    def command_line(self) -> str:
        """The arguments joined by spaces, made safe to show."""
        return safe_text(b" ".join(self.argv))

    @cached_property
    def raddr_text(self) -> str:
        """The remote address; empty where the family has none."""
        return address_text(self.family, self.raddr)

    @cached_property
    def laddr_text(self) -> str:
        """The local address; empty where the family has none."""
        return address_text(self.family, self.laddr)

    def full_path(self, tail: str = "path") -> bytes:
        """A path tail joined with the directory it is relative to, ``.`` and ``..`` resolved by name alone."""
        path = self.tail(tail)
        directory = _DIR_OF.get(tail)
        if directory is not None and directory in _TAIL_KINDS[self.type]:
            return join_path(self.tail(directory), path)
        return join_path(b"", path) if path else b""

    @cached_property
    def dns_question(self) -> bytes:
        """The first question's name of a dns event in lower case, without the final dot; empty if malformed."""
        return parse_question(self.payload) if self.type == "dns" else b""

    @cached_property
    def process(self) -> Process:
        """The acting process at the time of the event; made from the event alone where history knows nothing."""
        return self.history.process_of(self)

    @cached_property
    def container(self) -> ContainerRef | None:
        """The container that the acting process runs in; None on the host."""
        return self.history.container_of(self)

    def as_dict(self) -> dict[str, Any]:
        """The event as JSON-safe data: flags by name, addresses and bytes as safe text."""
        out: dict[str, Any] = {"type": self.type, "node": self.node, "wall": self.wall.isoformat()}
        for name, field in _FIELDS[self.type].items():
            if name in ("size", "type", "pad", "sock_pad"):
                continue
            value = getattr(self, name)
            if field.kind == "comm":
                value = safe_text(value)
            elif field.kind == "addr":
                value = address_text(self.family, value)
            elif field.kind == "sha256":
                value = value.hex()
            elif field.flags is not None:
                value = flag_names(field.flags, value)
            out[name] = value
        for name, kind in _TAIL_KINDS[self.type].items():
            raw = self.tail(name)
            if kind == "args":
                out[name] = [safe_text(arg) for arg in split_args(raw)]
            elif kind == "bytes":
                out[name] = raw.hex()
            else:
                out[name] = safe_text(raw)
        if self.type == "dns":
            out["question"] = safe_text(self.dns_question)
        return out


def flag_names(flags: type[Any], value: int) -> list[str] | str:
    """Names of the set flags (``0x…`` for bits without a name), or the name of an enumeration's value."""
    members, known = _members(flags)
    if not issubclass(flags, IntFlag):
        return members.get(value) or str(value)
    names = [name for bit, name in members.items() if value & bit] if value else []
    rest = value & ~known
    return names + ([hex(rest)] if rest else [])


_MEMBERS: dict[type[Any], tuple[dict[int, str], int]] = {}


def _members(flags: type[Any]) -> tuple[dict[int, str], int]:
    """An enumeration's names by value, and the sum of all values: iterating over an enumeration takes microseconds."""
    found = _MEMBERS.get(flags)
    if found is None:
        members = {int(member.value): str(member.name) for member in flags}
        found = _MEMBERS[flags] = members, sum(members)
    return found


def address_text(family: int, raw: bytes) -> str:
    """An address as text; an IPv4 address mapped into IPv6 is shown as IPv4."""
    if family == AF_INET:
        return str(ipaddress.IPv4Address(raw[12:]))
    if family == AF_INET6:
        address = ipaddress.IPv6Address(raw)
        return str(address.ipv4_mapped or address)
    return ""


def parse_question(payload: bytes) -> bytes:
    """The first question's name of a DNS message, lower case, labels joined by dots; empty if there is none.

    A question holds no compression pointer (RFC 1035 §4.1.4 allows one only to an earlier name), so a pointer makes
    the message malformed here.
    """
    if len(payload) < 13 or payload[4:6] == b"\0\0":
        return b""
    labels: list[bytes] = []
    at = 12
    while at < len(payload):
        length = payload[at]
        if length == 0:
            return b".".join(labels).lower()
        if length > 63 or at + 1 + length > len(payload):
            return b""
        labels.append(payload[at + 1 : at + 1 + length])
        at += 1 + length
    return b""
