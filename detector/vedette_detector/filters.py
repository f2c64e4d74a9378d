"""What agents are asked to send beyond the ordinary: derived from the selectors of the loaded rules and detectors.

The kernel side reports every open for writing, but opens for reading only of wanted names. The wanted names are the
last path components of the literals in `open` selectors that do not demand write access.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from vedette_detector.engine.selector import AnyLiteral, Selector

MAX_OPEN_NAMES = 8192
"""As many as the agent's kernel table holds."""
DEDUPE_TTL_MS = 60_000
_WRITE_BITS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_ORDINARY_FAMILIES = frozenset({1, 2, 10, 16})
_ORDINARY_REGIONS = 1 << 2 | 1 << 3  # anonymous and file mappings; stack and heap are always reported


class Unit(Protocol):
    """A rule or a detector. It may have ``open_names`` besides: names that its selectors do not spell out."""

    @property
    def selectors(self) -> Sequence[Selector]:
        """When it is asked."""
        ...


def derive(units: Iterable[Unit]) -> dict[str, Any]:
    """The filters document for agents (``docs/ingest.md``). Pure; equal rules give an equal version."""
    names: set[str] = set()
    all_sockets = all_mprotect = False
    for unit in units:
        names.update(n for n in getattr(unit, "open_names", ()) if _is_name(n))
        for selector in unit.selectors:
            if selector.event == "open":
                names |= open_names(selector)
            elif selector.event == "socket":
                all_sockets = all_sockets or _asks(selector, "family", _ORDINARY_FAMILIES)
            elif selector.event == "mprotect":
                all_mprotect = all_mprotect or any(
                    m.field == "region" and isinstance(m.value, int) and m.value & _ORDINARY_REGIONS
                    for m in selector.masks
                )
    content = {
        "open_names": sorted(names)[:MAX_OPEN_NAMES],
        "disabled_types": [],
        "dedupe_ttl_ms": DEDUPE_TTL_MS,
        "all_sockets": all_sockets,
        "all_mprotect": all_mprotect,
    }
    version = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return {"version": version, **content}


def open_names(selector: Selector) -> set[str]:
    """Last path components of which a selector on `open` wants reads; empty when it wants writes only.

    Of several groups of literals, all of which must hold, the one that tells most is enough: the first whose literals
    all end where the path ends.
    """
    for mask in selector.masks:
        demands = mask.field == "oflags" and mask.op in ("any_bits", "all_bits", "eq") and isinstance(mask.value, int)
        if demands and mask.value and not int(mask.value) & ~_WRITE_BITS:  # type: ignore[arg-type]
            return set()
    groups = [g for g in selector.literals if "path" in g.tails]
    anchored = [g for g in groups if all(literal.endswith(b"\0") for literal in g.literals)]
    for group in anchored or groups:
        names = _names(group)
        if names:
            return names
    return set()


def _names(group: AnyLiteral) -> set[str]:
    names = (literal.strip(b"\0").rpartition(b"/")[2] for literal in group.literals)
    return {text for name in names if _is_name(text := name.decode("utf-8", "replace"))}


def _is_name(name: str) -> bool:
    return (
        0 < len(name.encode("utf-8", "replace")) <= 255 and name.isprintable() and "/" not in name and name != "\ufffd"
    )


def _asks(selector: Selector, field: str, values: frozenset[int]) -> bool:
    for mask in selector.masks:
        if mask.field == field and mask.op in ("eq", "in_"):
            wanted = mask.value if isinstance(mask.value, tuple) else (mask.value,)
            if values & {v for v in wanted if isinstance(v, int)}:
                return True
    return False
