"""Hypothesis strategies that make values for every event type from the schema."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from vedette_events import schema
from vedette_events.schema import EVENT_TYPES, HEADER, EventType, Field

_RANGES = {"u8": (0, 2**8 - 1), "u16": (0, 2**16 - 1), "u32": (0, 2**32 - 1), "u64": (0, 2**64 - 1)}
_RANGES |= {"s32": (-(2**31), 2**31 - 1), "s64": (-(2**63), 2**63 - 1)}


def field_values(field: Field) -> st.SearchStrategy[Any]:
    if field.kind == "comm":
        return st.binary(max_size=15).map(lambda b: b.rstrip(b"\0"))
    if field.kind in ("addr", "sha256"):
        size = schema.FIELD_SIZES[field.kind]
        return st.binary(min_size=size, max_size=size)
    return st.integers(*_RANGES[field.kind])


def event_values(event: EventType, version: int = schema.SCHEMA_VERSION) -> st.SearchStrategy[dict[str, Any]]:
    fields = [f for f in (*HEADER, *schema.fields_of(event, version)) if f.name not in ("size", "type")]
    values: dict[str, st.SearchStrategy[Any]] = {f.name: field_values(f) for f in fields}
    values |= {t.name: st.binary(max_size=min(t.limit, 40)) for t in schema.tails_of(event, version)}
    return st.fixed_dictionaries(values)


def events() -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.sampled_from(EVENT_TYPES).flatmap(lambda e: st.tuples(st.just(e.name), event_values(e)))
