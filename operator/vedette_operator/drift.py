"""What differs between an object as wanted and as it is, and what somebody else put into it. Pure.

Server-side apply puts back every field that it is told, and nothing else: a field that somebody added, such as a node
selector that fits no node, stays. Who owns a field stands in ``metadata.managedFields`` (FieldsV1,
https://kubernetes.io/docs/reference/using-api/server-side-apply/), and by that such fields are found and taken out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vedette_operator.syntax import quantity

Object = dict[str, Any]
Pointer = tuple[str | int, ...]
_MISSING: Any = object()
_KEYS = ("name", "mountPath", "uid")
"""What elements of a list are told apart by, the first that all of them have."""
_REPAIRED = ("spec", "data", "rules")
_NOT_OURS: tuple[Pointer, ...] = (("spec", "template", "metadata"),)
"""Where others may add things: `kubectl rollout restart` annotates the pod template."""


def differences(wanted: Any, live: Any, path: str = "") -> list[str]:
    """Paths at which ``live`` is not as ``wanted``; what is only in ``live`` does not count.

    Quantities are compared as numbers, since the API server writes them in its own way.
    """
    if isinstance(wanted, Mapping):
        if not wanted and live is None:
            return []
        if not isinstance(live, Mapping):
            return [path]
        return [d for k, v in wanted.items() for d in differences(v, live.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(wanted, list):
        if not wanted and live is None:
            return []
        if not isinstance(live, list):
            return [path]
        key = _key(wanted)
        if key and _key(live) == key:
            by_key = {item[key]: item for item in live}
            return [d for item in wanted for d in differences(item, by_key.get(item[key]), f"{path}[{item[key]}]")]
        if len(wanted) != len(live):
            return [path]
        return [d for i, item in enumerate(wanted) for d in differences(item, live[i], f"{path}[{i}]")]
    return [] if _same(wanted, live) else [path]


def surplus(wanted: Object, live: Object, manager: str) -> list[str]:
    """Paths of fields that ``manager`` once applied and that are not wanted any more; the next apply removes them."""
    found: list[Pointer] = []
    for entry in _entries(live):
        if entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource"):
            found += _walk(entry["fieldsV1"], live, wanted, ())
    return [".".join(str(part) for part in pointer) for pointer in found]


def strangers(wanted: Object, live: Object, manager: str) -> list[Object]:
    """JSON patch that takes out what others than ``manager`` added to what is ours to say; empty when there is nothing.

    The patch holds only for the version of the object that was looked at.
    """
    found: set[Pointer] = set()
    for entry in _entries(live):
        if entry.get("manager") == manager or entry.get("subresource"):
            continue
        fields = {name: entry["fieldsV1"].get(f"f:{name}") for name in _REPAIRED}
        for name, content in fields.items():
            if isinstance(content, Mapping) and name in wanted and name in live:
                found |= set(_walk(content, live[name], wanted[name], (name,)))
    found = {p for p in found if not any(p[: len(start)] == start for start in _NOT_OURS)}
    if not found:
        return []
    # From the end: an index holds only as long as nothing before it is gone.
    ordered = sorted(found, key=lambda p: [(isinstance(part, str), part) for part in p], reverse=True)
    version = live["metadata"]["resourceVersion"]
    return [
        {"op": "test", "path": "/metadata/resourceVersion", "value": version},
        *({"op": "remove", "path": "".join(f"/{_escaped(part)}" for part in pointer)} for pointer in ordered),
    ]


def _walk(fields: Mapping[str, Any], live: Any, wanted: Any, pointer: Pointer) -> Iterator[Pointer]:
    """Pointers to what ``fields`` names, ``live`` has and ``wanted`` has not."""
    for name, below in fields.items():
        if name.startswith("f:") and isinstance(live, Mapping):
            part: str | int = name[2:]
            inner, wish = (
                live.get(part, _MISSING),
                wanted.get(part, _MISSING) if isinstance(wanted, Mapping) else _MISSING,
            )
        elif name.startswith("k:") and isinstance(live, list):
            keys = json.loads(name[2:])
            part = next((i for i, item in enumerate(live) if _has(item, keys)), -1)
            inner = live[part] if part >= 0 else _MISSING
            wish = (
                next((item for item in wanted if _has(item, keys)), _MISSING) if isinstance(wanted, list) else _MISSING
            )
        else:
            continue
        if inner is _MISSING:
            continue
        if wish is _MISSING:
            yield (*pointer, part)
        elif isinstance(below, Mapping):
            yield from _walk(below, inner, wish, (*pointer, part))


def _has(item: Any, keys: Mapping[str, Any]) -> bool:
    # The protocol of a port is TCP when nobody says otherwise.
    return isinstance(item, Mapping) and all(
        item.get(k, "TCP" if k == "protocol" else None) == value for k, value in keys.items()
    )


def _entries(live: Object) -> list[Any]:
    return [e for e in live.get("metadata", {}).get("managedFields") or [] if isinstance(e.get("fieldsV1"), Mapping)]


def _key(items: list[Any]) -> str:
    for key in _KEYS:
        if items and all(isinstance(item, Mapping) and key in item for item in items):
            return key
    return ""


def _same(wanted: Any, live: Any) -> bool:
    if wanted == live and isinstance(wanted, bool) == isinstance(live, bool):
        return True
    if wanted in (None, "") and live in (None, ""):
        return True
    try:
        return isinstance(live, str) and quantity(str(wanted)) == quantity(live)
    except ValueError:
        return False


def _escaped(part: str | int) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")
