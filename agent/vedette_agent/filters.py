"""The detector's filters: checked, handed from the sender's thread to the draining one, and remembered.

The document says which opens for reading are wanted and what is left out (`Filters`). It is kept beside the spool, so
that an agent that starts while the detector is away filters as it was told last.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vedette_events.schema import BY_NAME

MAX_OPEN_NAMES = 8192
"""As many as the kernel's table holds."""
_MAX_NAME = 255


@dataclass(frozen=True)
class Filters:
    """What the kernel side is told. The default asks for everything that is on without being asked for."""

    version: str = ""
    open_names: tuple[str, ...] = ()
    disabled_types: tuple[str, ...] = ()
    dedupe_ttl_ms: int = 60_000
    all_sockets: bool = False
    all_mprotect: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The document, as the detector sends it."""
        return {**asdict(self), "open_names": list(self.open_names), "disabled_types": list(self.disabled_types)}


def parse(document: Any) -> tuple[Filters, list[str]]:
    """Read a filters document leniently: what cannot be used is left out and named.

    A newer detector may know event types that this agent does not; that must not cost the rest.
    """
    problems: list[str] = []
    if not isinstance(document, dict):
        return Filters(), ["the document is not an object"]
    version = document.get("version")
    if not isinstance(version, str) or not version or len(version) > 128 or not version.isprintable():
        return Filters(), ["the document has no version"]
    names = _strings(document, "open_names", problems)
    long = [name for name in names if not 0 < len(os.fsencode(name)) <= _MAX_NAME or "/" in name]
    if long:
        problems.append(f"open_names: {len(long)} are no file names")
        names = [name for name in names if name not in set(long)]
    if len(names) > MAX_OPEN_NAMES:
        problems.append(f"open_names: only the first {MAX_OPEN_NAMES} of {len(names)} are used")
        names = names[:MAX_OPEN_NAMES]
    disabled = _strings(document, "disabled_types", problems)
    unknown = [name for name in disabled if name not in BY_NAME]
    if unknown:
        problems.append(f"disabled_types: unknown: {', '.join(unknown[:5])}")
    ttl = document.get("dedupe_ttl_ms", Filters.dedupe_ttl_ms)
    if isinstance(ttl, bool) or not isinstance(ttl, int) or not 0 <= ttl <= 86_400_000:
        problems.append("dedupe_ttl_ms: not a number of milliseconds up to a day")
        ttl = Filters.dedupe_ttl_ms
    filters = Filters(
        version=version,
        open_names=tuple(names),
        disabled_types=tuple(name for name in disabled if name in BY_NAME),
        dedupe_ttl_ms=ttl,
        all_sockets=document.get("all_sockets") is True,
        all_mprotect=document.get("all_mprotect") is True,
    )
    return filters, problems


def _strings(document: dict[str, Any], name: str, problems: list[str]) -> list[str]:
    value = document.get(name, [])
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        problems.append(f"{name}: not a list of strings")
        return []
    return list(dict.fromkeys(value))


class FilterSlot:
    """Where the sender leaves the newest filters and the draining thread picks them up."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._pending: Filters | None = None
        self._version = ""

    @property
    def version(self) -> str:
        """Version of the filters in force; empty before the first."""
        return self._version

    def put(self, filters: Filters) -> None:
        """Leave filters for the draining thread (any thread)."""
        with self._lock:
            if filters.version != self._version:
                self._pending = filters

    def take(self) -> Filters | None:
        """The filters to put into force now, or None."""
        if self._pending is None:
            return None
        with self._lock:
            filters, self._pending = self._pending, None
            return filters

    def in_force(self, filters: Filters) -> None:
        """Say that the kernel has them, and remember them for the next start.

        Raises:
            OSError: they could not be written; they are in force all the same.
        """
        self._version = filters.version
        temporary = self._file.with_name(self._file.name + ".new")
        temporary.write_text(json.dumps(filters.as_dict()))
        temporary.replace(self._file)

    def remembered(self) -> Filters | None:
        """The filters that were in force last; None when there are none or they cannot be read."""
        try:
            filters, _ = parse(json.loads(self._file.read_text()))
        except (OSError, ValueError):
            return None
        return filters if filters.version else None
