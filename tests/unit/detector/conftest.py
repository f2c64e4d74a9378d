"""What the detector's tests share: batches made of real records, rules, a running service, a client on its socket."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

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


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A directory with the one rule."""
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "scanner.yml").write_text(RULE)
    return folder


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path is short enough for unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="vd-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def settings(tmp_path: Path, short_dir: Path, rules: Path) -> Settings:
    """Settings of a detector of its own."""
    return Settings(
        data_dir=tmp_path / "data",
        listen=f"unix://{short_dir}/d.sock",
        rules=(rules,),
        builtin_rules=False,
        workers=1,
        reload_s=0.05,
        store_timeout_s=1.0,
    )


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
    connector = aiohttp.UnixConnector(settings.listen.removeprefix("unix://"))
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


def _find_postgres() -> Path | None:
    found = shutil.which("initdb")
    candidates = [Path(found).parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((c for c in candidates if (c / "initdb").exists() and (c / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A real PostgreSQL on a unix socket; its SQLAlchemy URL without a database name."""
    binaries = _find_postgres()
    if binaries is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="vd-pg-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    data = folder / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"],
        check=True,
        capture_output=True,
        cwd=folder,
        **user,
    )
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-F"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **user,
    )
    try:
        deadline = time.monotonic() + 30
        while subprocess.run([binaries / "pg_isready", "-q", "-h", folder], check=False).returncode:
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.05)
        yield f"postgresql://postgres@/{{}}?host={folder}"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """URL of a fresh database."""
    import psycopg

    name = f"v{time.monotonic_ns()}"
    folder = postgresql_server.partition("host=")[2]
    with psycopg.connect(host=folder, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    return postgresql_server.format(name)
