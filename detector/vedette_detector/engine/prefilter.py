"""Which rows of a batch are worth a look: the selectors of all rules and detectors, evaluated together.

For each event type there is one plan. Every heap is searched once for the union of all literals; what was found there
and the rows go through one sieve in C (`vedette_events._native.Sieve`), which evaluates the masks: those of selectors
without literals on every row, the others only where a literal occurs. What many user rules would make expensive there
(a port, a network each) goes by one table for all of them. So the cost grows with the events, with the number of heaps
and with what is found, hardly with the number of rules; and a small batch costs a few calls for each type in it.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from vedette_detector.engine.segments import Array, Segment
from vedette_detector.engine.selector import Mask, Selector
from vedette_detector.threat_lists import ThreatLists
from vedette_events import _native
from vedette_events.dtypes import dtype

_LOOKUP_FROM = 8
"""From so many selectors that rest on equality of one field, the field is looked up in one table for all of them."""
_OPS = ("eq", "ne", "lt", "le", "gt", "ge", "any_bits", "all_bits", "no_bits", "in_", "not_in", "net")
"""In the order of ``enum vd_mask_op`` (``_core.h``), which goes on with these:"""
_SHORT = 4
"""Literals with fewer bytes cost a pass over the heap of their own, so a group with such a one is looked for only in
rows that another group of the selector has led to."""
_WATCHED, _ALWAYS, _NEVER = range(len(_OPS), len(_OPS) + 3)
_MASK = struct.Struct("<HBBIIIQ")
_PLAN = struct.Struct("<6I")
_GROUP = struct.Struct("<5I")
_LATE = struct.Struct("<3I")
_NETWORK = struct.Struct("<I4I4I4x")


@dataclass(frozen=True)
class _Plan:
    """One selector, compiled: indexes into the type plan's masks and groups."""

    unit: int
    masks: tuple[int, ...]
    groups: tuple[int, ...]
    threat: str | None


class _ValueLookup:
    """Selectors that rest on one field being one of some values, all in one table."""

    def __init__(self, field: str, found: list[tuple[_Plan, Mask]]) -> None:
        self.field = field
        self._plans: dict[int, list[_Plan]] = defaultdict(list)
        for plan, mask in found:
            for value in mask.value if isinstance(mask.value, tuple) else (mask.value,):
                self._plans[int(value)].append(plan)
        self._table: Array | None = None
        self._sorted: Array | None = None

    def select(self, segment: Segment) -> list[tuple[_Plan, Array]]:
        """(plan, rows) for the plans whose value occurs."""
        column = segment.column(self.field)
        rows = self._rows(column)
        if len(rows) == 0:
            return []
        values = column[rows]
        order = np.argsort(values, kind="stable")
        rows, values = rows[order], values[order]
        present, starts = np.unique(values, return_index=True)
        ends = [*starts[1:].tolist(), len(rows)]
        return [
            (plan, rows[start:end])
            for value, start, end in zip(present.tolist(), starts.tolist(), ends, strict=True)
            for plan in self._plans[value]
        ]

    def _rows(self, column: Array) -> Array:
        if column.dtype.itemsize <= 2 and column.dtype.kind == "u":
            if self._table is None:
                self._table = np.zeros(1 << (8 * column.dtype.itemsize), dtype=bool)
                self._table[[v for v in self._plans if 0 <= v < len(self._table)]] = True
            return self._table[column].nonzero()[0]
        if self._sorted is None:
            info = np.iinfo(column.dtype)
            self._sorted = np.array(sorted(v for v in self._plans if info.min <= v <= info.max), dtype=column.dtype)
        if len(self._sorted) == 0:
            return _NONE
        at = np.searchsorted(self._sorted, column)
        at[at == len(self._sorted)] = 0
        return np.flatnonzero(self._sorted[at] == column)


class _NetworkLookup:
    """Selectors that rest on an address lying in some networks: a superset by the union of all of them."""

    def __init__(self, field: str, found: list[tuple[_Plan, Mask]]) -> None:
        self.field = field
        self._plans = found
        self._networks = ThreatLists.of(str(text) for _, mask in found for text in cast("tuple[str, ...]", mask.value))

    def select(self, segment: Segment) -> list[tuple[_Plan, Array]]:
        """(plan, rows) for the plans whose network holds an address."""
        family, addresses = segment.column("family"), segment.rows[self.field]
        rows = np.flatnonzero(self._networks.match_ips(family, addresses))
        if len(rows) == 0:
            return []
        family, addresses = family[rows], addresses[rows]
        return [(plan, rows[mask.evaluate(addresses, family)]) for plan, mask in self._plans]


class _Columns:
    """Contiguous columns and evaluated masks of one type in one batch, each made once."""

    def __init__(self, segment: Segment, masks: Sequence[Mask]) -> None:
        self._segment = segment
        self._masks = masks
        self._results: dict[int, Array] = {}

    def get(self, field: str) -> Array:
        return self._segment.column(field)

    def mask(self, index: int) -> Array:
        found = self._results.get(index)
        if found is None:
            found = self._results[index] = self.evaluate(index, None)
        return found

    def evaluate(self, index: int, rows: Array | None) -> Array:
        mask = self._masks[index]
        column = self._segment.rows[mask.field] if mask.op == "net" else self.get(mask.field)
        family = self.get("family") if mask.op == "net" else None
        if rows is not None:
            column = column[rows]
            family = family[rows] if family is not None else None
        return mask.evaluate(column, family)

    def keep(self, rows: Array, indexes: Sequence[int]) -> Array:
        """Those of ``rows`` that pass the masks."""
        few = len(rows) * 4 < len(self._segment.rows)
        for index in indexes:
            if len(rows) == 0:
                break
            if few and index not in self._results:
                rows = rows[self.evaluate(index, rows)]
            else:
                rows = rows[self.mask(index)[rows]]
        return rows


class _Packer:
    """Packs masks, plans and groups of one event type into what `vedette_events._native.Sieve` takes."""

    def __init__(self, name: str) -> None:
        self._dtype = dtype(name)
        self._masks: dict[Mask, int] = {}
        self._packed_masks: list[bytes] = []
        self._values: list[int] = []
        self._indexes: list[int] = []
        self._lates: list[bytes] = []
        self._text = bytearray()
        self.late_tails: list[str] = []
        self.watched: list[Mask] = []

    def mask(self, mask: Mask) -> int:
        """The mask's number."""
        number = self._masks.get(mask)
        if number is None:
            number = self._masks[mask] = len(self._masks)
            self._packed_masks.append(self._pack(mask))
        return number

    def indexes(self, numbers: Iterable[int]) -> tuple[int, int]:
        """Where a list of numbers lies, and how many there are."""
        start = len(self._indexes)
        self._indexes.extend(numbers)
        return start, len(self._indexes) - start

    def _set(self, values: Iterable[int]) -> tuple[int, int]:
        start = len(self._values)
        self._values.extend(sorted(value & _ALL_ONES for value in set(values)))
        return start, len(self._values) - start

    def _pack(self, mask: Mask) -> bytes:
        fields: Any = self._dtype.fields
        kind, at = fields[mask.field][:2]
        if mask.op == "net":
            start = len(self._values)
            for family, words in mask.networks:
                bits, masks = [0] * 4, [0] * 4
                for word, value, of in words:
                    bits[word], masks[word] = value, of
                self._values.extend(struct.unpack("<5Q", _NETWORK.pack(family, *bits, *masks)))
            count = (len(self._values) - start) * 8 // _NETWORK.size
            return _MASK.pack(at, 0, 0, _OPS.index("net"), start, count, int(fields["family"][1]))
        signed = kind.kind == "i"
        head = (at, kind.itemsize, signed)
        if mask.watched() is not None:
            self.watched.append(mask)
            return _MASK.pack(*head, _WATCHED, 0, 0, len(self.watched) - 1)
        least, greatest = np.iinfo(kind).min, np.iinfo(kind).max
        if isinstance(mask.value, tuple):
            start, count = self._set(int(v) for v in mask.value if least <= int(v) <= greatest)
            return _MASK.pack(*head, _OPS.index(mask.op), start, count, 0)
        value = mask.value
        if not least <= value <= greatest:
            if mask.op not in ("any_bits", "no_bits") or least < 0:
                # Every value of the field gets the same answer.
                constant = _ALWAYS if mask.evaluate(np.zeros(1, dtype=kind))[0] else _NEVER
                return _MASK.pack(*head, constant, 0, 0, 0)
            value &= int(greatest)
        return _MASK.pack(*head, _OPS.index(mask.op), 0, 0, value & _ALL_ONES)

    def late(self, tails: tuple[str, ...], literals: Iterable[bytes]) -> tuple[int, int]:
        """Enter a group of short literals; where it lies, and how many entries it has."""
        start = len(self._lates)
        for tail in tails:
            if tail not in self.late_tails:
                self.late_tails.append(tail)
            for literal in sorted(literals):
                self._lates.append(_LATE.pack(self.late_tails.index(tail), len(self._text), len(literal)))
                self._text += literal
        return start, len(self._lates) - start

    def sieve(self, plans: list[bytes], groups: list[bytes], literals: list[int]) -> _native.Sieve:
        """The sieve of everything packed."""
        return _native.Sieve(
            self._dtype.itemsize,
            len(self.watched),
            len(self.late_tails),
            b"".join(self._packed_masks),
            b"".join(plans),
            b"".join(groups),
            np.array(literals, dtype=np.uint32).tobytes(),
            np.array(self._indexes, dtype=np.uint32).tobytes(),
            np.array(self._values, dtype=np.uint64).tobytes(),
            b"".join(self._lates),
            bytes(self._text),
        )


_ALL_ONES = 2**64 - 1


def _by_cost(mask: Mask) -> int:
    """Masks that let little through come first; a search in what is watched comes last."""
    if mask.watched() is not None:
        return 3
    return {"eq": 0, "in_": 1, "any_bits": 1, "all_bits": 1}.get(mask.op, 2)


class _TypePlan:
    """Everything that is asked of one event type."""

    def __init__(self, name: str, selectors: list[tuple[int, Selector]]) -> None:
        masks: dict[Mask, int] = {}
        groups: dict[tuple[tuple[str, ...], frozenset[bytes]], int] = {}
        members: dict[str, dict[bytes, set[int]]] = defaultdict(lambda: defaultdict(set))
        plans: list[_Plan] = []
        for unit, selector in selectors:
            group_ids = []
            for literal_group in selector.literals:
                literals = frozenset(literal.lower() for literal in literal_group.literals)
                gid = groups.setdefault((literal_group.tails, literals), len(groups))
                group_ids.append(gid)
                for tail in literal_group.tails:
                    for literal in literals:
                        members[tail][literal].add(gid)
            mask_ids = tuple(masks.setdefault(mask, len(masks)) for mask in sorted(selector.masks, key=_by_cost))
            plans.append(_Plan(unit, mask_ids, tuple(group_ids), selector.threat))
        plans = list(dict.fromkeys(plans))
        self.masks = list(masks)
        shortest = [min(map(len, literals)) for _, literals in groups]
        # Any of the groups may lead to the selector; the one with the longest shortest literal is rarest.
        self.grouped = [
            replace(plan, groups=tuple(sorted(plan.groups, key=lambda g: -shortest[g])))
            for plan in plans
            if plan.groups
        ]
        self.threats: dict[str, list[_Plan]] = defaultdict(list)
        self.plain: list[_Plan] = []
        for plan in plans:
            if plan.groups:
                continue
            if plan.threat is not None:
                self.threats[plan.threat].append(plan)
            else:
                self.plain.append(plan)
        self.lookups: list[_ValueLookup | _NetworkLookup] = []
        self._move_to_lookups()
        anchors = {plan.groups[0] for plan in self.grouped}
        late = {n: group for n, group in enumerate(groups) if n not in anchors and shortest[n] < _SHORT}
        self.literals = {
            tail: sorted(literal for literal, of in found.items() if of - late.keys())
            for tail, found in members.items()
        }
        units = 1 + max((plan.unit for plan in plans), default=0)
        self._make_sieve(name, members, len(groups), late, units)

    def _move_to_lookups(self) -> None:
        """Selectors without literals that share a field go into one table, each by its rarest equality."""
        uses = Counter(index for plan in self.plain for index in plan.masks)
        anchored: dict[tuple[str, bool], list[tuple[_Plan, Mask]]] = defaultdict(list)
        for plan in self.plain:
            usable = [index for index in plan.masks if self.masks[index].op in ("eq", "in_", "net")]
            if usable:
                mask = self.masks[min(usable, key=lambda index: uses[index])]
                anchored[(mask.field, mask.op == "net")].append((plan, mask))
        for (field, is_network), found in anchored.items():
            if len(found) < _LOOKUP_FROM:
                continue
            moved = {id(plan) for plan, _ in found}
            self.plain = [plan for plan in self.plain if id(plan) not in moved]
            self.lookups.append(_NetworkLookup(field, found) if is_network else _ValueLookup(field, found))

    def _make_sieve(
        self,
        name: str,
        members: dict[str, dict[bytes, set[int]]],
        group_count: int,
        late: dict[int, tuple[tuple[str, ...], frozenset[bytes]]],
        units: int,
    ) -> None:
        packer = _Packer(name)
        packed: list[bytes] = []
        self._threatened: dict[int, _Plan] = {}
        # Beyond all units, those of the tables and lists included: an answer of the sieve must not stand for two.
        for plan in (*self.plain, *self.grouped):
            answer = plan.unit
            if plan.threat is not None:  # decided here, once the sieve has found the rest of it
                answer = units + len(self._threatened)
                self._threatened[answer] = plan
            place = packer.indexes([packer.mask(self.masks[index]) for index in plan.masks])
            packed.append(_PLAN.pack(*place, *packer.indexes(plan.groups), answer, not plan.groups))
        joined = {group for plan in self.grouped for group in plan.groups[1:]}
        groups = []
        for group in range(group_count):
            of = [len(self.plain) + n for n, plan in enumerate(self.grouped) if plan.groups[0] == group]
            place = packer.late(*late[group]) if group in late else (0, 0)
            groups.append(_GROUP.pack(*packer.indexes(of), group in joined and group not in late, *place))
        # The groups of each literal, the literals of one tail behind those of another.
        self._searches: list[tuple[str, _native.Matcher, int]] = []
        literals: list[int] = []
        for tail, found in self.literals.items():
            if not found:
                continue
            self._searches.append((tail, _native.Matcher(found), len(literals)))
            literals += [packer.indexes(sorted(members[tail][literal] - late.keys()))[0] for literal in found]
        literals.append(packer.indexes(())[0])
        self._sieve = packer.sieve(packed, groups, literals) if packed else None
        self._watched = packer.watched
        self._late_tails = packer.late_tails

    def select(self, name: str, segment: Segment, threats: ThreatLists) -> dict[int, Array]:
        """Rows to confirm, ascending, by unit."""
        out: dict[int, Array] = {}
        if self._sieve is not None:
            found = []
            for tail, matcher, first in self._searches:
                heap = segment.tails.get(tail)
                # Directories of absolute paths are empty: nothing but the NULs between them.
                if heap is not None and len(heap.data) > len(segment.rows) + 1:
                    rows, literals = matcher.search(heap.data, heap.raw_offsets)
                    if rows:
                        found.append((rows, literals, first))
            watched = tuple([mask.watched() for mask in self._watched])
            heaps = [segment.tails[tail] for tail in self._late_tails]
            late = tuple([(heap.data, heap.raw_offsets) for heap in heaps])
            selected = self._sieve.select(segment.rows, watched, tuple(found), late)
            out = {answer: np.frombuffer(rows, dtype=np.uint32) for answer, rows in selected.items()}
        if not (self.lookups or self.threats or self._threatened):
            return out
        columns = _Columns(segment, self.masks)
        for lookup in self.lookups:
            for plan, passed in lookup.select(segment):
                _add(out, columns.keep(passed, plan.masks), plan.unit)
        for kind, plans in self.threats.items():
            listed = _threat_rows(kind, name, segment, columns, threats)
            if len(listed):
                for plan in plans:
                    _add(out, columns.keep(listed, plan.masks), plan.unit)
        for answer, plan in self._threatened.items():
            passed = out.pop(answer, _NONE)
            if len(passed) and plan.threat is not None:
                _add(out, np.intersect1d(passed, _threat_rows(plan.threat, name, segment, columns, threats)), plan.unit)
        return out


_NONE: Array = np.empty(0, dtype=np.int64)


def _add(out: dict[int, Array], rows: Array, unit: int) -> None:
    if len(rows):
        before = out.get(unit)
        out[unit] = rows.astype(np.uint32) if before is None else np.union1d(before, rows.astype(np.uint32))


def _threat_rows(kind: str, name: str, segment: Segment, columns: _Columns, threats: ThreatLists) -> Array:
    if kind == "ip":
        if not threats.has_ips:
            return _NONE
        return np.flatnonzero(threats.match_ips(columns.get("family"), segment.rows["raddr"]))
    table = threats.domain_hashes
    heap = segment.tails.get("payload")
    if len(table) == 0 or heap is None:
        return _NONE
    return np.frombuffer(_native.dns_match(heap.data, heap.raw_offsets, table.data), dtype=np.uint32).astype(np.int64)


class Prefilter:
    """The selectors of many units (rules and detectors), by event type."""

    def __init__(self, units: Sequence[Sequence[Selector]]) -> None:
        by_type: dict[str, list[tuple[int, Selector]]] = defaultdict(list)
        for number, selectors in enumerate(units):
            for selector in selectors:
                by_type[selector.event].append((number, selector))
        self._plans = {name: _TypePlan(name, selectors) for name, selectors in by_type.items()}

    def select(self, name: str, segment: Segment, threats: ThreatLists) -> dict[int, Array]:
        """Rows to confirm, uint32 ascending, by unit."""
        plan = self._plans.get(name)
        return plan.select(name, segment, threats) if plan is not None else {}

    def describe(self) -> dict[str, Any]:
        """Per event type: how many masks, literals and selectors without literals it has."""
        return {
            name: {
                "masks": len(plan.masks),
                "literals": {tail: len(found) for tail, found in plan.literals.items()},
                "plain": len(plan.plain),
                "lookups": len(plan.lookups),
            }
            for name, plan in self._plans.items()
        }
