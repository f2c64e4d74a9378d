"""Records of the live tests: run something, get what the kernel reported meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vedette_agent import loader
from vedette_events import _native
from vedette_events.encode import decode_event

FILTERS: dict[str, Any] = {"open_names": ["shadow"], "dedupe_ttl_ms": 0}
"""What the session's programs report unless a test says otherwise: every act, deduplication off."""


@dataclass
class Record:
    """One decoded record; fields and tails by their schema names."""

    event: str
    values: dict[str, Any] = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def arguments(self) -> list[bytes]:
        """``argv`` as a list."""
        argv: bytes = self.values["argv"]
        return argv.removesuffix(b"\0").split(b"\0")

    def __repr__(self) -> str:
        shown = {k: v for k, v in self.values.items() if v not in (0, b"", "", [])}
        return f"<{self.event} {shown}>"


def drain(ring: Any) -> list[Record]:
    """Everything that is in the ring, decoded; the ring is empty afterwards."""
    found: list[Record] = []
    while True:
        data, position, count = ring.drain(1 << 20)
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            name, values = decode_event(data[at : at + size])
            found.append(Record(name, values))
            at += size
        ring.commit(position)
        if not count:
            return found


class Collector:
    """Runs an action and returns the records made meanwhile, whoever made them; select by pid, path and so on."""

    def __init__(self, programs: loader.Programs) -> None:
        self.programs = programs
        self.ring = _native.Ring(programs.ring_fd, programs.ring_size)

    def __call__(self, action: Callable[[], Any], *, settle_s: float = 0.0) -> list[Record]:
        drain(self.ring)
        action()
        if settle_s:
            time.sleep(settle_s)
        return drain(self.ring)

    def until(
        self, action: Callable[[], Any], wanted: Callable[[Record], bool], *, count: int = 1, timeout_s: float = 5.0
    ) -> list[Record]:
        """Like calling, but for what happens on another CPU: waits until ``count`` records are as wanted."""
        drain(self.ring)
        action()
        deadline = time.monotonic() + timeout_s
        found: list[Record] = []
        while time.monotonic() < deadline:
            found += [record for record in drain(self.ring) if wanted(record)]
            if len(found) >= count:
                break
            time.sleep(0.01)
        return found

    @contextlib.contextmanager
    def filters(self, **changes: Any) -> Iterator[None]:
        """Other filters for a while."""
        self.programs.set_filters({**FILTERS, **changes})
        try:
            yield
        finally:
            self.programs.set_filters(FILTERS)

    def close(self) -> None:
        self.ring.close()
