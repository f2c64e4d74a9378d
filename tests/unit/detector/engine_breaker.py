"""Detectors that break the engine, importable by a worker: one makes it fail, one ends its process."""

import os
import signal
from collections.abc import Iterable
from typing import Any

from vedette_detector.engine import AnyLiteral, Detection, Selector


class Breaker:
    title = "Breaker"
    selectors = (Selector("exec", literals=(AnyLiteral(("path",), frozenset({b"fail-the-engine"})),)),)
    failed = False

    @property
    def id(self) -> str:
        # The engine catches what `confirm` raises and asks for the unit's name then: this is what it does not catch.
        if self.failed:
            raise RuntimeError("broken")
        return "breaker"

    def confirm(self, event: Any, history: Any, context: Any) -> Iterable[Detection]:
        self.failed = True
        raise ValueError("first")

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Killer:
    id = "killer"
    title = "Killer"
    selectors = (Selector("exec", literals=(AnyLiteral(("path",), frozenset({b"kill-the-worker"})),)),)

    def confirm(self, event: Any, history: Any, context: Any) -> Iterable[Detection]:
        os.kill(os.getpid(), signal.SIGKILL)
        return ()
