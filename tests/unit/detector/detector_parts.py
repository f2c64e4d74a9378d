"""What the detector's tests share: batches made of real records, a running service, a client on its socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp

from vedette_detector.config import Settings
from vedette_detector.service import Service
from vedette_events.encode import encode_event
from vedette_events.framing import BatchHeader, Counters, encode_batch

BOOT = bytes(range(16))
SESSION = 1_000_000_000
SECOND = 10**9
WALL_OFFSET = 1_790_000_000 * SECOND

RULE = """\
title: A scanner was started
id: 3f2b6a52-8e0a-4f0e-9b7b-000000000001
status: test
description: Test rule.
references: [https://example.org/]
author: test
date: 2026-01-01
tags: [attack.discovery]
logsource: {product: linux, category: process_creation}
detection:
  selection:
    Image|endswith: /scanner
  condition: selection
falsepositives: [none]
level: medium
vedette:
  finding: Execution:Runtime/SuspiciousTool
  key: [Image]
  context: {toolName: scanner, toolCategory: Network Scanner}
  triage: |
    Look at the parent.
  tests:
    - name: it is seen
      match: true
      events: [{event: exec, path: /usr/bin/scanner, argv: [scanner]}]
    - name: another program
      match: false
      events: [{event: exec, path: /usr/bin/true, argv: ["true"]}]
"""


def scan(number: int = 1, *, path: str = "/usr/bin/scanner", **more: Any) -> bytes:
    """An exec record that RULE matches."""
    values: dict[str, Any] = {
        "time": SESSION + number * SECOND,
        "pid": 1000 + number,
        "start": SESSION + number * SECOND - 5,
        "ppid": 1,
        "cgroup": 77,
        "argv": ["scanner", "-p", "1-65535", "198.51.100.7"],
        "cwd": "/root",
        "filename": path,
    }
    return encode_event("exec", path=path, **(values | more))


def batch(
    sequence: int,
    *records: bytes,
    node: str = "node-a",
    session: int = SESSION,
    boot_id: bytes = BOOT,
    emitted: int | None = None,
    **more: Any,
) -> bytes:
    """A framed batch; by default one scan, and counters as if every batch so far held as many."""
    records = records or (scan(sequence),)
    emitted = sequence * len(records) if emitted is None else emitted
    header = BatchHeader(
        node=node,
        boot_id=boot_id,
        session=session,
        sequence=sequence,
        count=len(records),
        ring_from=(sequence - 1) * 4096,
        ring_to=sequence * 4096,
        wall_offset_ns=WALL_OFFSET,
        created_ns=session + sequence * SECOND,
        first_time=session + sequence * SECOND,
        last_time=session + sequence * SECOND,
        counters=Counters(emitted=emitted),
        agent_version="0.1.0",
    )
    return encode_batch(replace(header, **more), b"".join(records))


class Client:
    """Talks to a detector's unix socket."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def post(self, *batches: bytes, filters: str = "") -> tuple[int, dict[str, Any]]:
        """Deliver batches."""
        headers = {"X-Vedette-Filters": filters}
        async with self.session.post("http://d/v1/batches", data=b"".join(batches), headers=headers) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str) -> tuple[int, Any]:
        """Ask."""
        async with self.session.get(f"http://d{path}") as answer:
            return answer.status, await (answer.json() if "json" in answer.content_type else answer.text())


@asynccontextmanager
async def client_of(settings: Settings) -> AsyncIterator[Client]:
    """A client of the detector with these settings."""
    connector = aiohttp.UnixConnector(settings.listen[0].removeprefix("unix://"))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Client(session)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Service, Client]]:
    """A detector in this process."""
    service = Service(settings)
    try:
        await service.start()
        async with client_of(settings) as client:
            yield service, client
    finally:
        await service.stop()


async def eventually(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Wait until ``condition`` gives something true."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.02)
    return value
