"""The engine in a thread of this process: for one core and for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vedette_detector.engine.context import EngineSettings
from vedette_detector.engine.engine import Engine, Outcome
from vedette_detector.threat_lists import ThreatLists
from vedette_events.framing import BatchError, decode_batch


class InlinePool:
    """One engine, one thread."""

    size = 0

    def __init__(
        self, ruleset: Any, threat_lists: ThreatLists, settings: EngineSettings, detectors: Sequence[Any]
    ) -> None:
        self._engine = Engine(ruleset, threat_lists, settings, detectors)
        self._thread = ThreadPoolExecutor(1, "engine")

    async def submit(self, batch: bytes) -> Outcome:
        """Put a framed batch through the engine."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._process, batch, False)

    def _process(self, batch: bytes, replay: bool) -> Outcome:
        header, records = decode_batch(batch)
        return self._engine.process(header, records, replay)

    async def replay(self, batches: Iterable[bytes]) -> None:
        """Fill the history."""

        def work() -> None:
            for batch in batches:
                try:
                    self._process(batch, True)
                except BatchError:
                    continue

        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def replace_rules(self, ruleset: Any, detectors: Sequence[Any]) -> None:
        """Swap the rules."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.replace_rules, ruleset, detectors)

    async def replace_threat_lists(self, lists: ThreatLists) -> None:
        """Swap the lists."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.replace_threat_lists, lists)

    async def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
