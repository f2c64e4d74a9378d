r"""Conditions of rules: exact on an event, and the necessary condition that the prefilter can evaluate.

A condition is a tree of `All`, `AnyOf`, `Negation` and leaves. Every node answers two questions:

- ``matches(event)``: the exact answer, with Sigma's semantics (ASCII case ignored, ``*`` and ``?``, null).
- ``necessary(event_type, negated)``: alternatives, each a set of numeric masks and literal groups, of which at least
  one holds for every event that the node (negated: that the node does not) matches. It may be too weak, never too
  strong: ``[TRUE]`` says nothing is known, ``[]`` that no event of the type can match. The tests hold this invariant
  with random rules and events.

Trees are plain data, so that rules travel between processes.
"""

# The nodes' methods are described once, at `Node`.
# ruff: noqa: D102

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from re import _parser  # type: ignore[attr-defined]
from typing import Any, Literal

from sigma.policy import default_policy

from vedette_detector.engine.event import Event
from vedette_detector.engine.selector import AnyLiteral, Mask, MaskOp
from vedette_detector.engine.text import split_args
from vedette_detector.sigma.fields import FieldSpec, Literals, Value, categories
from vedette_events import schema

MAX_ALTERNATIVES = 64
"""More alternatives than this are weakened to fewer: they would cost more than they save."""


@dataclass(frozen=True)
class Conjunction:
    """Masks and literal groups that hold together."""

    masks: frozenset[Mask] = frozenset()
    literals: frozenset[AnyLiteral] = frozenset()

    @property
    def says_nothing(self) -> bool:
        """Whether every event fulfils it."""
        return not self.masks and not self.literals


TRUE = Conjunction()
Alternatives = list[Conjunction]


class Node:
    """A node of a condition."""

    def matches(self, event: Event) -> bool:
        """Whether the event fulfils the node, exactly."""
        raise NotImplementedError

    def necessary(self, event: str, negated: bool = False) -> Alternatives:
        """Alternatives of which one holds whenever the node (negated: its opposite) does."""
        raise NotImplementedError


@dataclass(frozen=True)
class All(Node):
    """Every part holds."""

    parts: tuple[Node, ...]

    def matches(self, event: Event) -> bool:
        return all(part.matches(event) for part in self.parts)

    def necessary(self, event: str, negated: bool = False) -> Alternatives:
        found = [part.necessary(event, negated) for part in self.parts]
        return any_of(found) if negated else all_of(found)


@dataclass(frozen=True)
class AnyOf(Node):
    """At least one part holds."""

    parts: tuple[Node, ...]

    def matches(self, event: Event) -> bool:
        return any(part.matches(event) for part in self.parts)

    def necessary(self, event: str, negated: bool = False) -> Alternatives:
        found = [part.necessary(event, negated) for part in self.parts]
        return all_of(found) if negated else any_of(found)


@dataclass(frozen=True)
class Negation(Node):
    """The part does not hold."""

    part: Node

    def matches(self, event: Event) -> bool:
        return not self.part.matches(event)

    def necessary(self, event: str, negated: bool = False) -> Alternatives:
        return self.part.necessary(event, not negated)


@dataclass(frozen=True)
class Leaf(Node):
    """A condition on one field of a category."""

    category: str
    field: str

    def spec(self, event: str) -> FieldSpec | None:
        """The field in an event type; None where the type lacks it (of a category with several types)."""
        return categories()[self.category].fields.get((event, self.field))

    def value(self, event: Event) -> Value:
        """The field's value; None where the event has none."""
        spec = self.spec(event.type)
        return spec.get(event) if spec is not None else None

    def necessary(self, event: str, negated: bool = False) -> Alternatives:
        spec = self.spec(event)
        if spec is None:
            # The type lacks the field: its value is null, which only `IsNull` matches.
            return [TRUE] if negated != self.matches_null else []
        return self._necessary(spec, negated)

    @property
    def matches_null(self) -> bool:
        """Whether a missing field fulfils the leaf."""
        return False

    def _necessary(self, spec: FieldSpec, negated: bool) -> Alternatives:
        return [TRUE]


_MULTI, _SINGLE = "*", "?"
Part = bytes | Literal["*", "?"]
_ONE_CHARACTER = rb"(?:[\x00-\x7f]|[\xc0-\xff][\x80-\xbf]*|[\x80-\xbf])"


@dataclass(frozen=True)
class Text(Leaf):
    """A text field matches a pattern of plain parts, ``*`` (anything) and ``?`` (one character)."""

    parts: tuple[Part, ...]
    cased: bool = False

    @cached_property
    def _test(self) -> Callable[[bytes], bool]:
        return text_test(self.parts, self.cased)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_test"}

    def matches(self, event: Event) -> bool:
        value = self.value(event)
        if isinstance(value, int):
            value = str(value).encode("ascii")
        return value is not None and self._test(value)

    def _necessary(self, spec: FieldSpec, negated: bool) -> Alternatives:
        if negated or spec.literals is None:
            return [TRUE]
        literal = best_literal(self.parts, spec.literals)
        if literal is None:
            return [TRUE]
        return [Conjunction(literals=frozenset({AnyLiteral(spec.literals.tails, frozenset({literal}))}))]


def text_test(parts: Sequence[Part], cased: bool) -> Callable[[bytes], bool]:
    """The fastest exact test for a pattern."""
    plain = [part for part in parts if isinstance(part, bytes)]
    plain = plain if cased else [part.lower() for part in plain]

    def fold(value: bytes) -> bytes:
        return value if cased else value.lower()

    shape = "".join("x" if isinstance(part, bytes) else part for part in parts)
    if shape == "":
        return lambda value: value == b""
    if shape == "*":
        return lambda value: True
    if shape == "x":
        return lambda value: fold(value) == plain[0]
    if shape == "x*":
        return lambda value: fold(value).startswith(plain[0])
    if shape == "*x":
        return lambda value: fold(value).endswith(plain[0])
    if shape == "*x*":
        return lambda value: plain[0] in fold(value)
    pattern = b"".join(
        re.escape(part) if isinstance(part, bytes) else b".*" if part == _MULTI else _ONE_CHARACTER for part in parts
    )
    # bytes.lower and re.IGNORECASE on bytes both know ASCII letters only.
    compiled = re.compile(pattern, re.DOTALL | (0 if cased else re.IGNORECASE))
    return lambda value: compiled.fullmatch(value) is not None


def best_literal(parts: Sequence[Part], where: Literals) -> bytes | None:
    """The literal that must occur in a tail when its text matches the pattern, the most telling one; None if none."""
    candidates: list[bytes] = []
    for number, part in enumerate(parts):
        if not isinstance(part, bytes):
            continue
        candidates += literals_of(part, where, number == 0, number == len(parts) - 1)
    useful = [c for c in candidates if len(c.strip(b"\0")) >= 2]
    return max(useful, key=telling, default=None)


_EVERYWHERE = frozenset(
    b"usr bin sbin lib lib64 local share etc var run tmp home root proc sys dev opt log cache http https python "
    b"python3 bash kernel systemd config service x86_64-linux-gnu com net org io example amazonaws svc cluster "
    b"kube".split()
)


def telling(literal: bytes) -> int:
    """How rare a literal is likely to be: its length, with little for what is in nearly every path or name."""
    return sum(1 if word in _EVERYWHERE else len(word) for word in re.split(rb"[/. \0]", literal)) + literal.count(
        b"\0"
    )


def literals_of(text: bytes, where: Literals, at_start: bool, at_end: bool) -> list[bytes]:
    """Literals that must occur when ``text`` occurs in the field, anchored where it begins or ends the field."""
    text = text.lower()
    if b"\0" in text:
        return []  # NUL is the anchor; a field that holds one (an abstract socket's name) has no telling literal
    if where.form == "dns":
        return text.split(b".")  # on the wire the labels lie apart, each behind its length
    if where.form == "path":
        return text.split(b"/")  # what lies between two slashes stays whole when paths are joined and normalised
    if text.startswith(b"@") and where.form == "whole":
        text, at_start = text[1:], False  # it may stand for the NUL of an abstract socket's name
    if not text:
        return []
    return [(b"\0" if at_start else b"") + text + (b"\0" if at_end else b"")]


@dataclass(frozen=True)
class Regex(Leaf):
    """A regular expression is found in a text field (RE2, on UTF-8 text).

    RE2 needs time linear in the text: an attacker who chooses the text cannot make it hang, as he could with ``re``.
    """

    pattern: str
    flags: int

    @cached_property
    def _compiled(self) -> Any:
        return compile_regex(self.pattern, self.flags)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_compiled"}

    def matches(self, event: Event) -> bool:
        value = self.value(event)
        if value is None:
            return False
        text = str(value) if isinstance(value, int) else value.decode("utf-8", "replace")
        return self._compiled.search(text) is not None

    def _necessary(self, spec: FieldSpec, negated: bool) -> Alternatives:
        if negated or spec.literals is None:
            return [TRUE]
        groups = regex_literals(self.pattern, self.flags, spec.literals)
        if not groups:
            return [TRUE]
        best = max(groups, key=lambda group: (min(map(telling, group)), -len(group), sorted(group)))
        return [Conjunction(literals=frozenset({AnyLiteral(spec.literals.tails, frozenset(best))}))]


def compile_regex(pattern: str, flags: int) -> Any:
    """Compile an expression with the engine that pySigma checks rules with: RE2.

    Raises:
        ValueError: RE2 does not understand the pattern.
    """
    try:
        return default_policy.regex_engine.compile(pattern, flags)
    except default_policy.regex_engine.error as e:
        raise ValueError(str(e)) from e


def regex_literals(pattern: str, flags: int, where: Literals) -> list[set[bytes]]:
    """Groups of literals; of each group one must occur wherever the pattern is found.

    Python's parser reads the pattern; where it and RE2 could understand it differently, nothing is concluded.
    """
    if any(special in pattern for special in _READ_DIFFERENTLY):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parsed = _parser.parse(pattern, flags)
    except (re.error, Warning, OverflowError):
        return []
    groups: list[set[bytes]] = []
    _collect(parsed, where, bool(flags & re.IGNORECASE) or "(?" in pattern, groups)
    return groups


_READ_DIFFERENTLY = ("[:", "{,", "\\Q", "\\C", "\\z", "\\p", "\\P", "\\x{", "(?U", "(?x")
_FOLD_TO_OTHERS = frozenset("kKsS")
"""ASCII letters that the Kelvin sign and the long s fold to when case is ignored; the search knows ASCII only."""


def _collect(parsed: Any, where: Literals, folded: bool, groups: list[set[bytes]]) -> None:
    run: list[str] = []

    def finish() -> None:
        if run:
            options = literals_of("".join(run).encode("utf-8"), where, at_start=False, at_end=False)
            best = max((o for o in options if len(o) >= 2), key=telling, default=None)
            if best is not None:
                groups.append({best})
            run.clear()

    for op, argument in parsed:
        name = str(op)
        if name == "LITERAL" and 0 < argument < 0x80 and not (folded and chr(argument) in _FOLD_TO_OTHERS):
            run.append(chr(argument))
        else:
            finish()
            if name == "SUBPATTERN":
                _collect(argument[-1], where, folded, groups)
            elif name == "ATOMIC_GROUP":
                _collect(argument, where, folded, groups)
            elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
                if argument[0] >= 1:
                    _collect(argument[2], where, folded, groups)
            elif name == "BRANCH":
                branches: list[list[set[bytes]]] = []
                for branch in argument[1]:
                    found: list[set[bytes]] = []
                    _collect(branch, where, folded, found)
                    branches.append(found)
                if all(branches):
                    best = [max(found, key=lambda g: min(len(x) for x in g)) for found in branches]
                    groups.append(set().union(*best))
    finish()


@dataclass(frozen=True)
class Number(Leaf):
    """A number field compares with a number; ``any_bits`` and ``all_bits`` test flags."""

    op: MaskOp
    number: int

    def matches(self, event: Event) -> bool:
        value = self.value(event)
        return isinstance(value, int) and Mask(self.field, self.op, self.number).holds(value)

    def _necessary(self, spec: FieldSpec, negated: bool) -> Alternatives:
        if spec.column is None:
            return [TRUE]
        if not negated:
            return [Conjunction(frozenset({Mask(spec.column, self.op, self.number)}))]
        opposite = _OPPOSITES.get(self.op)
        return [TRUE] if opposite is None else [Conjunction(frozenset({Mask(spec.column, opposite, self.number)}))]


_OPPOSITES: dict[MaskOp, MaskOp] = {
    "eq": "ne",
    "ne": "eq",
    "lt": "ge",
    "ge": "lt",
    "gt": "le",
    "le": "gt",
    "any_bits": "no_bits",
}


@dataclass(frozen=True)
class Network(Leaf):
    """An address field lies in a network."""

    network: str

    @cached_property
    def _network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        return ipaddress.ip_network(self.network)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_network"}

    def matches(self, event: Event) -> bool:
        value = self.value(event)
        if not isinstance(value, bytes):
            return False
        return ipaddress.ip_address(value.decode("ascii")) in self._network

    def _necessary(self, spec: FieldSpec, negated: bool) -> Alternatives:
        if negated or spec.column is None:
            return [TRUE]
        return [Conjunction(frozenset({Mask(spec.column, "net", (self.network,))}))]


@dataclass(frozen=True)
class IsNull(Leaf):
    """The field does not exist or is empty."""

    def matches(self, event: Event) -> bool:
        return self.value(event) in (None, b"")

    @property
    def matches_null(self) -> bool:
        return True


@dataclass(frozen=True)
class SameAs(Leaf):
    """The field equals another field (or begins with it, ends with it, holds it)."""

    other: str
    starts_with: bool = False
    ends_with: bool = False

    def matches(self, event: Event) -> bool:
        spec = self.spec(event.type)
        other_spec = categories()[self.category].fields.get((event.type, self.other))
        if spec is None or other_spec is None:
            return False
        mine, others = _as_text(spec.get(event)), _as_text(other_spec.get(event))
        if mine is None or others is None:
            return False
        if self.starts_with and self.ends_with:
            return others in mine
        if self.starts_with:
            return mine.startswith(others)
        if self.ends_with:
            return mine.endswith(others)
        return mine == others


def _as_text(value: Value) -> bytes | None:
    return str(value).encode("ascii") if isinstance(value, int) else value.lower() if value is not None else None


@dataclass(frozen=True)
class Keyword(Node):
    """A pattern is found anywhere in one of the event's tails."""

    parts: tuple[Part, ...]
    cased: bool = False

    @cached_property
    def _test(self) -> Callable[[bytes], bool]:
        return text_test(("*", *self.parts, "*"), self.cased)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_test"}

    def matches(self, event: Event) -> bool:
        for tail in schema.BY_NAME[event.type].tails:
            raw = event.tail(tail.name)
            if tail.kind == "args":
                raw = b" ".join(split_args(raw))
            if self._test(raw):
                return True
        return False

    def necessary(self, event: str, negated: bool = False) -> Alternatives:
        if negated:
            return [TRUE]
        tails = tuple(tail.name for tail in schema.BY_NAME[event].tails)
        if not tails:
            return []
        literal = best_literal(("*", *self.parts, "*"), Literals(tails, "args"))
        if literal is None:
            return [TRUE]
        return [Conjunction(literals=frozenset({AnyLiteral(tails, frozenset({literal}))}))]


def all_of(found: Sequence[Alternatives]) -> Alternatives:
    """Alternatives for several conditions that all hold."""
    out: Alternatives = [TRUE]
    # The most telling first, so that what has to be left out says least.
    for alternatives in sorted(found, key=_weight):
        if not alternatives:
            return []
        if alternatives == [TRUE]:
            continue
        if len(out) * len(alternatives) > MAX_ALTERNATIVES:
            continue  # what was taken in before is at least as telling
        out = merged(
            [Conjunction(a.masks | b.masks, a.literals | b.literals) for a in out for b in alternatives],
        )
    return out


def any_of(found: Sequence[Alternatives]) -> Alternatives:
    """Alternatives for several conditions of which one holds."""
    return weaken(merged([conjunction for alternatives in found for conjunction in alternatives]))


def _weight(alternatives: Alternatives) -> tuple[int, int]:
    """Sort key: every alternative has literals, then few alternatives."""
    without = sum(1 for conjunction in alternatives if not conjunction.literals)
    return (without > 0, len(alternatives))


def merged(alternatives: Alternatives) -> Alternatives:
    """The same in fewer alternatives: those that differ in one literal group or in one equality become one."""
    if any(conjunction.says_nothing for conjunction in alternatives):
        return [TRUE]
    by_literal: dict[tuple[frozenset[Mask], tuple[str, ...]], set[bytes]] = {}
    by_equality: dict[tuple[str, frozenset[AnyLiteral]], set[int]] = {}
    rest: dict[Conjunction, None] = {}
    for conjunction in alternatives:
        if len(conjunction.literals) == 1:
            (group,) = conjunction.literals
            by_literal.setdefault((conjunction.masks, group.tails), set()).update(group.literals)
        elif len(conjunction.masks) == 1 and next(iter(conjunction.masks)).op in ("eq", "in_"):
            (mask,) = conjunction.masks
            values = mask.value if isinstance(mask.value, tuple) else (mask.value,)
            by_equality.setdefault((mask.field, conjunction.literals), set()).update(int(v) for v in values)
        else:
            rest[conjunction] = None
    out = [
        Conjunction(masks, frozenset({AnyLiteral(tails, frozenset(literals))}))
        for (masks, tails), literals in by_literal.items()
    ]
    for (field, groups), numbers in by_equality.items():
        if len(numbers) == 1:
            out.append(Conjunction(frozenset({Mask(field, "eq", next(iter(numbers)))}), groups))
        else:
            out.append(Conjunction(frozenset({Mask(field, "in_", tuple(sorted(numbers)))}), groups))
    return absorbed(out + list(rest))


def absorbed(alternatives: Alternatives) -> Alternatives:
    """Without the alternatives that only narrow down another one."""
    return [
        one
        for number, one in enumerate(alternatives)
        if not any(
            other.masks <= one.masks and other.literals <= one.literals and (other != one or place < number)
            for place, other in enumerate(alternatives)
            if place != number
        )
    ]


def weaken(alternatives: Alternatives) -> Alternatives:
    """At most `MAX_ALTERNATIVES`: of each, one literal group, or one mask, is kept, and equals are merged."""
    if len(alternatives) <= MAX_ALTERNATIVES:
        return alternatives
    reduced = []
    for conjunction in alternatives:
        if conjunction.literals:
            group = max(conjunction.literals, key=lambda g: (min(len(x) for x in g.literals), sorted(g.literals)))
            reduced.append(Conjunction(literals=frozenset({group})))
        else:
            mask = min(conjunction.masks, key=lambda m: (m.op != "eq", m.field, m.op, str(m.value)))
            reduced.append(Conjunction(frozenset({mask})))
    found = merged(reduced)
    return found if len(found) <= MAX_ALTERNATIVES else [TRUE]
