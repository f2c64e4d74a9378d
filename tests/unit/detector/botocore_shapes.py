"""Validates JSON documents against the shapes that botocore ships for GuardDuty."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import botocore.session
from botocore.utils import parse_timestamp

_PYTHON: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "long": int,
    "double": (int, float),
    "float": (int, float),
    "boolean": bool,
}


@cache
def _model() -> Any:
    return botocore.session.get_session().get_service_model("guardduty")


def problems(value: Any, shape_name: str = "Finding", allowed: frozenset[str] = frozenset()) -> list[str]:
    """What in ``value`` is not as the shape has it; paths in ``allowed`` may be unknown to it."""
    return list(_check(value, _model().shape_for(shape_name), "", allowed))


def _check(value: Any, shape: Any, path: str, allowed: frozenset[str]) -> Iterator[str]:
    kind = shape.type_name
    if kind == "structure":
        if not isinstance(value, dict):
            yield f"{path}: {type(value).__name__}, not an object"
            return
        members = {m.serialization.get("name", n): m for n, m in shape.members.items()}
        required = {shape.members[n].serialization.get("name", n) for n in shape.required_members}
        for name in sorted(required - set(value)):
            yield f"{path}.{name}: missing"
        for name, item in value.items():
            if name in members:
                yield from _check(item, members[name], f"{path}.{name}", allowed)
            elif f"{path}.{name}" not in allowed:
                yield f"{path}.{name}: unknown"
    elif kind == "list":
        if not isinstance(value, list):
            yield f"{path}: {type(value).__name__}, not a list"
            return
        for number, item in enumerate(value):
            yield from _check(item, shape.member, f"{path}[{number}]", allowed)
    elif kind == "map":
        for name, item in value.items():
            yield from _check(item, shape.value, f"{path}.{name}", allowed)
    elif kind == "timestamp":
        try:
            parse_timestamp(value)
        except (ValueError, TypeError) as error:
            yield f"{path}: {error}"
    else:
        wanted = _PYTHON[kind]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            yield f"{path}: {type(value).__name__}, not {kind}"
        elif shape.metadata.get("enum") and value not in shape.metadata["enum"]:
            yield f"{path}: {value!r} is not one of {shape.metadata['enum']}"
        elif kind == "string":
            low, high = shape.metadata.get("min"), shape.metadata.get("max")
            assert isinstance(value, str)
            if (low is not None and len(value) < low) or (high is not None and len(value) > high):
                yield f"{path}: {len(value)} characters, not {low} to {high}"
