"""From pySigma's parsed rule to a condition tree and selectors."""

from __future__ import annotations

import difflib
import ipaddress
import re
from typing import Any, ClassVar

from sigma import modifiers as sigma_modifiers
from sigma.conditions import (
    ConditionAND,
    ConditionFieldEqualsValueExpression,
    ConditionNOT,
    ConditionOR,
    ConditionValueExpression,
)
from sigma.exceptions import SigmaValueError
from sigma.modifiers import SigmaValueModifier
from sigma.types import (
    CompareOperators,
    NoPlainConversionMixin,
    SigmaBool,
    SigmaCasedString,
    SigmaCIDRExpression,
    SigmaCompareExpression,
    SigmaExists,
    SigmaExpansion,
    SigmaFieldReference,
    SigmaNull,
    SigmaNumber,
    SigmaRegularExpression,
    SigmaRegularExpressionFlag,
    SigmaString,
    SigmaType,
    SpecialChars,
)

from vedette_detector.engine.selector import Selector
from vedette_detector.sigma.condition import (
    All,
    AnyOf,
    IsNull,
    Keyword,
    Negation,
    Network,
    Node,
    Number,
    Part,
    Regex,
    SameAs,
    Text,
    compile_regex,
)
from vedette_detector.sigma.fields import Category
from vedette_detector.sigma.names import Names, names_of


class CompileError(ValueError):
    """A rule cannot be compiled.

    Attributes:
        reason: stable CamelCase name.
        field: the field concerned, for finding the line.
    """

    def __init__(self, reason: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field


class SigmaFlag(NoPlainConversionMixin, SigmaType):
    """A flag that must be set: what the modifier ``has`` makes of a name."""

    def __init__(self, name: str) -> None:
        self.name = name


class SigmaHasModifier(SigmaValueModifier[Any, Any]):
    """``field|has: NAME``: the flag is set. A list means any of them; with ``|all``, all of them."""

    name: ClassVar[str] = "has"

    def modify(self, val: SigmaType) -> SigmaFlag:
        """Keep the name; the field decides what it means."""
        if not isinstance(val, SigmaString) or val.contains_special():
            raise SigmaValueError("|has takes names of flags", source=self.source)
        return SigmaFlag(str(val))


# pySigma looks modifiers up in this table; there is no other way to add one (pySigma 2.0, sigma/modifiers.py).
sigma_modifiers.modifier_mapping.setdefault("has", SigmaHasModifier)
sigma_modifiers.reverse_modifier_mapping.setdefault("SigmaHasModifier", "has")

UNSUPPORTED_MODIFIERS = frozenset({"expand", "minute", "hour", "day", "week", "month", "year"})
_FLAGS = {
    SigmaRegularExpressionFlag.IGNORECASE: re.IGNORECASE,
    SigmaRegularExpressionFlag.MULTILINE: re.MULTILINE,
    SigmaRegularExpressionFlag.DOTALL: re.DOTALL,
}
_COMPARE = {
    CompareOperators.LT: "lt",
    CompareOperators.LTE: "le",
    CompareOperators.GT: "gt",
    CompareOperators.GTE: "ge",
    CompareOperators.NEQ: "ne",
}


def check_key(key: str, category: Category) -> None:
    """Check one ``field|modifier`` key of a detection.

    Raises:
        CompileError: the field is not one of the category's, or a modifier is not supported.
    """
    field, *used = key.split("|")
    if field and not any(name == field for _, name in category.fields):
        close = difflib.get_close_matches(field, category.field_names, 1, 0.6)
        folded = [name for name in category.field_names if name.lower() == field.lower()]
        hint = f"; did you mean {(folded or close)[0]}?" if folded or close else ""
        raise CompileError("UnknownField", f"category {category.name} has no field {field!r}{hint}", key)
    for modifier in used:
        if modifier in UNSUPPORTED_MODIFIERS:
            raise CompileError("UnsupportedModifier", f"modifier {modifier!r} is not supported", key)
        if modifier not in sigma_modifiers.modifier_mapping:
            raise CompileError("UnknownModifier", f"there is no modifier {modifier!r}", key)
    if "re" in used and ("startswith" in used or "endswith" in used):
        raise CompileError("UnsupportedModifier", "use ^ and $ in the expression in place of startswith, endswith", key)


def compile_condition(parsed: Any, category: Category) -> Node:
    """Turn pySigma's condition tree into ours.

    Raises:
        CompileError: something in it is not supported.
    """
    if isinstance(parsed, ConditionAND):
        return All(tuple(compile_condition(part, category) for part in parsed.args))
    if isinstance(parsed, ConditionOR):
        return AnyOf(tuple(compile_condition(part, category) for part in parsed.args))
    if isinstance(parsed, ConditionNOT):
        return Negation(compile_condition(parsed.args[0], category))
    if isinstance(parsed, ConditionFieldEqualsValueExpression):
        return _field(parsed.field, parsed.value, category)
    if isinstance(parsed, ConditionValueExpression):
        return _keyword(parsed.value)
    raise CompileError("UnsupportedCondition", f"conditions of kind {type(parsed).__name__} are not supported")


def selectors_of(condition: Node, category: Category) -> tuple[Selector, ...]:
    """The necessary condition of a rule as selectors, one per event type and alternative."""
    out = []
    for event, masks in category.masks.items():
        for alternative in condition.necessary(event):
            own = {*masks, *alternative.masks}
            out.append(
                Selector(
                    event,
                    tuple(sorted(own, key=lambda m: (m.field, m.op, str(m.value)))),
                    tuple(sorted(alternative.literals, key=lambda g: (g.tails, sorted(g.literals)))),
                )
            )
    return tuple(out)


def expensive_events(condition: Node, category: Category) -> list[str]:
    """Event types of which the prefilter lets every event of the category through."""
    return [event for event in category.masks if any(c.says_nothing for c in condition.necessary(event))]


def _field(name: str, value: SigmaType, category: Category) -> Node:
    specs = {event: spec for (event, field), spec in category.fields.items() if field == name}
    if not specs:
        check_key(name, category)
    spec = next(iter(specs.values()))
    if isinstance(value, SigmaExpansion):
        return AnyOf(tuple(_field(name, part, category) for part in value.values))
    if isinstance(value, SigmaNull):
        return IsNull(category.name, name)
    if isinstance(value, SigmaExists):
        null = IsNull(category.name, name)
        return Negation(null) if value.exists else null
    if isinstance(value, SigmaFieldReference):
        check_key(value.field, category)
        return SameAs(category.name, name, value.field, value.starts_with, value.ends_with)
    if isinstance(value, SigmaRegularExpression):
        if spec.kind == "int":
            raise CompileError("BadValue", f"{name} is a number; |re applies to text", name)
        return _regex(category.name, name, value)
    if spec.kind == "int":
        return _number(
            category.name, name, value, {event: names_of(event, s.column or name) for event, s in specs.items()}
        )
    if spec.kind == "bool":
        return _boolean(category.name, name, value)
    if isinstance(value, SigmaCIDRExpression):
        if spec.kind != "ip":
            raise CompileError("BadValue", f"{name} is not an address; |cidr does not apply", name)
        return Network(category.name, name, str(value.network))
    if isinstance(value, (SigmaFlag, SigmaCompareExpression)):
        raise CompileError("BadValue", f"{name} is text; numbers and flags do not apply", name)
    parts, cased = _parts(value, name)
    if spec.kind == "ip" and len(parts) == 1 and isinstance(parts[0], bytes):
        try:
            return Network(category.name, name, str(ipaddress.ip_network(parts[0].decode("ascii", "replace"))))
        except ValueError:
            raise CompileError("BadValue", f"{name}: {parts[0]!r} is not an address", name) from None
    return Text(category.name, name, parts, cased)


def _regex(category: str, name: str, value: SigmaRegularExpression) -> Regex:
    flags = 0
    for flag in value.flags:
        flags |= int(_FLAGS[flag])
    pattern = str(value.regexp)
    try:
        compile_regex(pattern, flags)
    except ValueError as e:
        raise CompileError("BadRegex", f"{name}: {e}", name) from e
    return Regex(category, name, pattern, flags)


def _number(category: str, name: str, value: SigmaType, names: dict[str, Names | None]) -> Node:
    known = next((found for found in names.values() if found is not None), None)
    if isinstance(value, SigmaNumber):
        return Number(category, name, "eq", _integer(value, name))
    if isinstance(value, SigmaCompareExpression):
        return Number(category, name, _COMPARE[value.op], _integer(value.number, name))  # type: ignore[arg-type]
    if isinstance(value, SigmaFlag):
        if known is None:
            raise CompileError("BadValue", f"{name} has no named flags", name)
        test = known.test(value.name)
        if test is None:
            raise CompileError("UnknownName", f"{name} has no flag {value.name!r}; {_known(known)}", name)
        if known.flags and test[1] != 0:
            return Number(category, name, test[0], test[1])
        raise CompileError("BadValue", f"{name} is not made of flags; compare with equality", name)
    if isinstance(value, SigmaBool):
        return Number(category, name, "eq", int(value.boolean))
    if isinstance(value, SigmaString) and not value.contains_special():
        text = str(value)
        if known is not None and text in known.values:
            return Number(category, name, "eq", known.values[text])
        if known is not None and text in known.groups:
            return Number(category, name, "any_bits", known.groups[text])
        try:
            return Number(category, name, "eq", int(text, 0))
        except ValueError:
            hint = f"; {_known(known)}" if known is not None else ""
            raise CompileError("BadValue", f"{name} is a number, not {text!r}{hint}", name) from None
    raise CompileError("BadValue", f"{name} is a number; {value!r} does not apply", name)


def _integer(value: SigmaNumber, name: str) -> int:
    if int(value.number) != value.number:
        raise CompileError("BadValue", f"{name}: {value.number} is not a whole number", name)
    return int(value.number)


def _known(names: Names) -> str:
    return "known: " + ", ".join(sorted([*names.values, *names.groups]))


def _boolean(category: str, name: str, value: SigmaType) -> Node:
    if isinstance(value, SigmaBool):
        return Number(category, name, "eq", int(value.boolean))
    if isinstance(value, SigmaString) and str(value).lower() in ("true", "false"):
        return Number(category, name, "eq", int(str(value).lower() == "true"))
    raise CompileError("BadValue", f"{name} is true or false", name)


def _parts(value: SigmaType, name: str) -> tuple[tuple[Part, ...], bool]:
    if isinstance(value, SigmaNumber):
        return (str(value.number).encode("ascii"),), False
    if isinstance(value, SigmaBool):
        return (str(value.boolean).lower().encode("ascii"),), False
    if not isinstance(value, SigmaString):
        raise CompileError("UnsupportedValue", f"{name}: values of kind {type(value).__name__} are not supported", name)
    parts: list[Part] = []
    for part in value.s:
        if isinstance(part, str):
            raw = part.encode("utf-8", "surrogateescape")
            if parts and isinstance(parts[-1], bytes):
                parts[-1] += raw
            else:
                parts.append(raw)
        elif part is SpecialChars.WILDCARD_MULTI:
            if not parts or parts[-1] != "*":
                parts.append("*")
        elif part is SpecialChars.WILDCARD_SINGLE:
            parts.append("?")
        else:
            raise CompileError("UnsupportedValue", f"{name}: placeholders are not supported", name)
    return tuple(parts), isinstance(value, SigmaCasedString)


def _keyword(value: SigmaType) -> Node:
    if isinstance(value, SigmaExpansion):
        return AnyOf(tuple(_keyword(part) for part in value.values))
    parts, cased = _parts(value, "keyword")
    return Keyword(parts, cased)
