"""What the prefilter can evaluate: cheap conditions that must hold before an event is looked at.

A `Selector` is a *necessary* condition on one event type: numeric masks on the fixed fields, literals that must
occur in the tails, membership in the threat lists. The engine evaluates the selectors of all rules and detectors
together on whole columns (`vedette_detector.engine.prefilter`); only rows that pass one become `Event` objects, and
only for the rules and detectors whose selector passed. A selector may let too much through, never too little.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, get_args

import numpy as np

from vedette_events import schema

MaskOp = Literal["eq", "ne", "lt", "le", "gt", "ge", "any_bits", "all_bits", "no_bits", "in_", "not_in", "net"]
Threat = Literal["ip", "domain"]

_SET_OPS = ("in_", "not_in")


class SelectorError(ValueError):
    """A selector names what the schema does not have, or combines what cannot be combined."""

    reason = "InvalidSelector"


@dataclass(frozen=True)
class Mask:
    """A condition on one fixed field of a record.

    Attributes:
        field: a field of the header or of the event type.
        op: ``eq ne lt le gt ge`` compare; ``any_bits all_bits no_bits`` test bits; ``in_ not_in`` take a tuple of ints;
            ``net`` takes a tuple of networks as text (``10.0.0.0/8``, ``2001:db8::/32``) and an address field.
        value: an int, or a tuple for the operators that take one.
    """

    field: str
    op: MaskOp
    value: int | tuple[int, ...] | tuple[str, ...]

    def __post_init__(self) -> None:
        if self.op not in get_args(MaskOp):
            raise SelectorError(f"mask on {self.field}: unknown operator {self.op!r}")
        if self.op in _SET_OPS:
            if not isinstance(self.value, tuple) or not all(isinstance(v, int) for v in self.value):
                raise SelectorError(f"mask on {self.field}: {self.op} takes a tuple of ints")
        elif self.op == "net":
            if not isinstance(self.value, tuple) or not all(isinstance(v, str) for v in self.value):
                raise SelectorError(f"mask on {self.field}: net takes a tuple of networks as text")
            for text in self.value:
                ipaddress.ip_network(str(text))
        elif not isinstance(self.value, int):
            raise SelectorError(f"mask on {self.field}: {self.op} takes an int")

    def holds(self, value: int) -> bool:
        """Tell whether one value of the field passes. Not for ``net``."""
        if isinstance(self.value, tuple):
            return (value in self.value) == (self.op == "in_")
        other = self.value
        match self.op:
            case "eq":
                return value == other
            case "ne":
                return value != other
            case "lt":
                return value < other
            case "le":
                return value <= other
            case "gt":
                return value > other
            case "ge":
                return value >= other
            case "any_bits":
                return value & other != 0
            case "all_bits":
                return value & other == other
            case _:
                return value & other == 0

    def evaluate(
        self, column: np.ndarray[Any, Any], family: np.ndarray[Any, Any] | None = None
    ) -> np.ndarray[Any, Any]:
        """Evaluate the mask on a column.

        Args:
            column: the field's values, shape (N,), or (N, 4) uint32 in network byte order for an address.
            family: for ``net``: the records' address families, shape (N,).

        Returns:
            bool array, shape (N,).
        """
        if self.op == "net":
            assert family is not None
            return self._in_networks(column, family)
        if isinstance(self.value, tuple):
            found = self._in_set(column)
            return found if self.op == "in_" else ~found
        # A Python int that does not fit the column's type would raise in numpy, although the answer is plain.
        least, greatest = _limits(column.dtype)
        value = self.value
        if not least <= value <= greatest:
            if self.op not in ("any_bits", "no_bits", "all_bits"):
                above = value > greatest
                holds = (
                    self.op == "ne" or (self.op in ("lt", "le") and above) or (self.op in ("gt", "ge") and not above)
                )
                return np.full(len(column), holds, dtype=bool)
            if least < 0:  # a negative value has all high bits set; the exact check sorts that out
                return np.ones(len(column), dtype=bool)
            if self.op == "all_bits":
                return np.zeros(len(column), dtype=bool)
            value &= greatest
        match self.op:
            case "eq":
                result = column == value
            case "ne":
                result = column != value
            case "lt":
                result = column < value
            case "le":
                result = column <= value
            case "gt":
                result = column > value
            case "ge":
                result = column >= value
            case "any_bits":
                result = (column & column.dtype.type(value)) != 0
            case "all_bits":
                result = (column & column.dtype.type(value)) == column.dtype.type(value)
            case _:
                result = (column & column.dtype.type(value)) == 0
        return np.asarray(result)

    def watched(self) -> bytes | None:
        """For a mask whose values change while the engine runs: those of now, uint64 ascending; None for others."""
        return None

    @cached_property
    def networks(self) -> list[tuple[int, list[tuple[int, int, int]]]]:
        """Per network: its family, and (word, bits, mask) for each word of the address that it restricts."""
        out = []
        assert isinstance(self.value, tuple)
        for text in self.value:
            network = ipaddress.ip_network(str(text))
            value, bits = int(network.network_address), int(network.netmask)
            family, first = (2, 3) if network.version == 4 else (10, 0)
            words = []
            for word in range(first, 4):
                shift = 32 * (3 - word)
                mask = (bits >> shift) & 0xFFFFFFFF
                if mask:
                    words.append((word, _swap32((value >> shift) & mask), _swap32(mask)))
            out.append((family, words))
        return out

    def _in_networks(self, column: np.ndarray[Any, Any], family: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = np.zeros(len(column), dtype=bool)
        for wanted, words in self.networks:
            here = family == wanted
            if wanted == 2:  # an IPv4 address mapped into IPv6 is that IPv4 address
                here |= (family == 10) & (column[:, 0] == 0) & (column[:, 1] == 0) & (column[:, 2] == 0xFFFF0000)
            for word, value, mask in words:
                here &= (column[:, word] & np.uint32(mask)) == np.uint32(value)
            found |= here
        return found

    def _in_set(self, column: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        least, greatest = _limits(column.dtype)
        values = [int(v) for v in self.value if least <= int(v) <= greatest]  # type: ignore[union-attr]
        if len(values) <= 4:
            found = np.zeros(len(column), dtype=bool)
            for value in values:
                found |= column == value
            return found
        return np.isin(column, np.array(values, dtype=column.dtype))


@cache
def _limits(kind: np.dtype[Any]) -> tuple[int, int]:
    """Least and greatest value of an integer dtype."""
    info = np.iinfo(kind)
    return int(info.min), int(info.max)


def _swap32(value: int) -> int:
    """The value that a little-endian load of the big-endian ``value`` gives."""
    return int.from_bytes(value.to_bytes(4, "big"), "little")


@dataclass(frozen=True)
class AnyLiteral:
    r"""One of the literals occurs in one of the tails, ASCII case ignored.

    ``\0`` at a literal's beginning or end anchors it to the tail's beginning or end (in ``args`` tails: of one
    argument). In ``args`` tails a space also matches the boundary between two arguments.
    """

    tails: tuple[str, ...]
    literals: frozenset[bytes]

    def __post_init__(self) -> None:
        if not self.tails or not self.literals:
            raise SelectorError("AnyLiteral needs at least one tail and one literal")
        if any(len(literal.strip(b"\0")) == 0 for literal in self.literals):
            raise SelectorError("an empty literal occurs everywhere")


@dataclass(frozen=True)
class Selector:
    """A necessary condition on one event type: everything in it must hold.

    Attributes:
        event: name of the event type.
        masks: numeric conditions.
        literals: groups of literals; of each group one must occur.
        threat: ``ip``: the remote address is on a threat list (types with ``raddr``); ``domain``: the question of a
            dns event, or a parent domain of it, is on a threat list.
    """

    event: str
    masks: tuple[Mask, ...] = ()
    literals: tuple[AnyLiteral, ...] = ()
    threat: Threat | None = None

    def __post_init__(self) -> None:
        kind = schema.BY_NAME.get(self.event)
        if kind is None:
            raise SelectorError(f"there is no event type {self.event!r}")
        fields = {f.name: f.kind for f in (*schema.HEADER, *kind.fields)}
        tails = {t.name for t in kind.tails}
        for mask in self.masks:
            field = fields.get(mask.field)
            if field is None:
                raise SelectorError(f"{self.event} has no field {mask.field!r}")
            if (field == "addr") != (mask.op == "net") or field in ("comm", "sha256"):
                raise SelectorError(f"{self.event}.{mask.field}: {mask.op} does not apply to {field}")
        for group in self.literals:
            for tail in group.tails:
                if tail not in tails:
                    raise SelectorError(f"{self.event} has no tail {tail!r}")
        if self.threat == "ip" and "raddr" not in fields:
            raise SelectorError(f"{self.event} has no remote address")
        if self.threat == "domain" and self.event != "dns":
            raise SelectorError("threat='domain' applies to dns events only")

    @property
    def selects_everything(self) -> bool:
        """Whether every event of the type passes."""
        return not self.masks and not self.literals and self.threat is None
