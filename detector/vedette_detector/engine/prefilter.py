"""Which rows of a batch are worth a look: the selectors of all rules and detectors, evaluated together.

For each event type there is one plan. Every distinct mask is evaluated at most once over a column, every heap is
searched once for the union of all literals, and what depends on a literal costs nothing unless the literal occurs.
So the cost grows with the events, with the number of heaps and with what is found, hardly with the number of rules.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from vedette_detector.engine.segments import Array, Segment, sorted_unique
from vedette_detector.engine.selector import Mask, Selector
from vedette_detector.threat_lists import ThreatLists
from vedette_events import _native

_LOOKUP_FROM = 3
"""From so many selectors that rest on equality of one field, the field is looked up in one table for all of them."""


@dataclass(frozen=True)
class _Plan:
    """One selector, compiled: indexes into the type plan's masks and groups."""

    unit: int
    masks: tuple[int, ...]
    groups: tuple[int, ...]
    threat: str | None


class _TailSearch:
    """All literals of one tail, and which groups each belongs to (compressed rows)."""

    def __init__(self, members: dict[bytes, set[int]]) -> None:
        literals = sorted(members)
        self.matcher = _native.Matcher(literals)
        self.starts = np.zeros(len(literals) + 1, dtype=np.int64)
        self.starts[1:] = np.cumsum([len(members[literal]) for literal in literals])
        self.groups = np.array([g for literal in literals for g in sorted(members[literal])], dtype=np.int64)

    def search(self, segment: Segment, tail: str) -> tuple[Array, Array] | None:
        """(rows, groups) found, or None."""
        heap = segment.tails.get(tail)
        if heap is None:
            return None
        raw_rows, raw_literals = self.matcher.search(heap.data, heap.offsets.data)
        if not raw_rows:
            return None
        rows = np.frombuffer(raw_rows, dtype=np.uint32).astype(np.int64)
        literals = np.frombuffer(raw_literals, dtype=np.uint32)
        first = self.starts[literals]
        counts = self.starts[literals + 1] - first
        ends = np.cumsum(counts)
        within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        return np.repeat(rows, counts), self.groups[np.repeat(first, counts) + within]


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


class _TypePlan:
    """Everything that is asked of one event type."""

    def __init__(self, selectors: list[tuple[int, Selector]]) -> None:
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
            mask_ids = tuple(masks.setdefault(mask, len(masks)) for mask in selector.masks)
            plans.append(_Plan(unit, mask_ids, tuple(group_ids), selector.threat))
        plans = list(dict.fromkeys(plans))
        self.masks = list(masks)
        shortest = [min(map(len, literals)) for _, literals in groups]
        self.tails = {tail: _TailSearch(dict(found)) for tail, found in members.items()}
        self.by_group: dict[int, list[_Plan]] = defaultdict(list)
        self.threats: dict[str, list[_Plan]] = defaultdict(list)
        self.plain: list[_Plan] = []
        for plan in plans:
            if plan.groups:
                # Any of the groups may lead to the selector; the one with the longest shortest literal is rarest.
                self.by_group[max(plan.groups, key=lambda g: shortest[g])].append(plan)
            elif plan.threat is not None:
                self.threats[plan.threat].append(plan)
            else:
                self.plain.append(plan)
        self.lookups: list[_ValueLookup | _NetworkLookup] = []
        self._move_to_lookups()

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

    def select(self, name: str, segment: Segment, threats: ThreatLists) -> set[tuple[int, int]]:
        """(row, unit) of everything to confirm."""
        out: set[tuple[int, int]] = set()
        columns = _Columns(segment, self.masks)
        for plan in self.plain:
            if plan.masks:
                rows = columns.mask(plan.masks[0]).nonzero()[0]
                rows = columns.keep(rows, plan.masks[1:])
            else:
                rows = np.arange(len(segment.rows))
            _add(out, rows, plan.unit)
        for lookup in self.lookups:
            for plan, rows in lookup.select(segment):
                _add(out, columns.keep(rows, plan.masks), plan.unit)
        for kind, plans in self.threats.items():
            rows = _threat_rows(kind, name, segment, columns, threats)
            if len(rows):
                for plan in plans:
                    _add(out, columns.keep(rows, plan.masks), plan.unit)
        self._select_by_literals(name, segment, columns, threats, out)
        return out

    def _select_by_literals(
        self, name: str, segment: Segment, columns: _Columns, threats: ThreatLists, out: set[tuple[int, int]]
    ) -> None:
        found = [pair for tail, search in self.tails.items() if (pair := search.search(segment, tail)) is not None]
        if not found:
            return
        rows = np.concatenate([pair[0] for pair in found])
        groups = np.concatenate([pair[1] for pair in found])
        count = len(segment.rows)
        unique = sorted_unique(groups * count + rows)
        groups, rows = unique // count, unique % count
        present, starts = np.unique(groups, return_index=True)
        ends = [*starts[1:].tolist(), len(groups)]
        of_group = {
            group: rows[start:end] for group, start, end in zip(present.tolist(), starts.tolist(), ends, strict=True)
        }
        for group, hit in of_group.items():
            for plan in self.by_group.get(group, ()):
                keep = hit
                for other in plan.groups:
                    if other != group:
                        keep = np.intersect1d(keep, of_group.get(other, _NONE), assume_unique=True)
                keep = columns.keep(keep, plan.masks)
                if plan.threat is not None and len(keep):
                    keep = np.intersect1d(keep, _threat_rows(plan.threat, name, segment, columns, threats))
                _add(out, keep, plan.unit)


_NONE: Array = np.empty(0, dtype=np.int64)


def _add(out: set[tuple[int, int]], rows: Array, unit: int) -> None:
    for row in rows.tolist():
        out.add((row, unit))


def _threat_rows(kind: str, name: str, segment: Segment, columns: _Columns, threats: ThreatLists) -> Array:
    if kind == "ip":
        if not threats.has_ips:
            return _NONE
        return np.flatnonzero(threats.match_ips(columns.get("family"), segment.rows["raddr"]))
    table = threats.domain_hashes
    heap = segment.tails.get("payload")
    if len(table) == 0 or heap is None:
        return _NONE
    return np.frombuffer(_native.dns_match(heap.data, heap.offsets.data, table.data), dtype=np.uint32).astype(np.int64)


class Prefilter:
    """The selectors of many units (rules and detectors), by event type."""

    def __init__(self, units: Sequence[Sequence[Selector]]) -> None:
        by_type: dict[str, list[tuple[int, Selector]]] = defaultdict(list)
        for number, selectors in enumerate(units):
            for selector in selectors:
                by_type[selector.event].append((number, selector))
        self._plans = {name: _TypePlan(selectors) for name, selectors in by_type.items()}

    def select(self, name: str, segment: Segment, threats: ThreatLists) -> list[tuple[int, int]]:
        """(row, unit) pairs to confirm, in order of rows."""
        plan = self._plans.get(name)
        if plan is None:
            return []
        return sorted(plan.select(name, segment, threats))

    def describe(self) -> dict[str, Any]:
        """Per event type: how many masks, literals and selectors without literals it has."""
        return {
            name: {
                "masks": len(plan.masks),
                "literals": {tail: len(search.starts) - 1 for tail, search in plan.tails.items()},
                "plain": len(plan.plain),
                "lookups": len(plan.lookups),
            }
            for name, plan in self._plans.items()
        }
