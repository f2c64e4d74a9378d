"""``vedette nodes`` against a real detector's socket."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Vedette
from tests.unit.detector.detector_parts import BOOT, SESSION, batch, running
from vedette_detector.config import Settings
from vedette_events.framing import Counters


@pytest.fixture
async def detector(tmp_path: Path) -> AsyncIterator[None]:
    """A detector on the command's socket that knows two nodes."""
    (tmp_path / "run").mkdir()
    settings = Settings(
        data_dir=tmp_path / "detector",
        listen=(f"unix://{tmp_path}/run/detector.sock",),
        builtin_rules=False,
        workers=1,
    )
    async with running(settings) as (_, client):
        body = {
            "node": "web-1",
            "boot_id": BOOT.hex(),
            "session": SESSION,
            "agent_version": "0.1.0\x1b[2J",
            "host": {"kernel": "6.12.0"},
        }
        async with client.session.post("http://d/v1/heartbeat", json=body) as answer:
            assert answer.status == 200
        await client.post(batch(1, node="gone", counters=Counters(1, 0, 4)))
        yield


@pytest.mark.usefixtures("detector")
async def test_nodes_are_listed_and_one_that_is_gone_is_forgotten(vedette: Vedette) -> None:
    result = await asyncio.to_thread(vedette, "nodes", "list")
    assert (result.exit_code, result.stderr) == (0, "")
    shown = re.sub(r"\d+s ago", "0s ago", result.stdout)
    assert [line.split() for line in shown.splitlines()] == [
        ["NODE", "STATE", "HEARD", "OF", "AGENT", "KERNEL"],
        ["gone", "silent", "never", "-", "-"],
        ["web-1", "reporting", "0s", "ago", "0.1.0\\x1b[2J", "6.12.0"],
    ]
    result = await asyncio.to_thread(vedette, "nodes", "forget", "gone")
    assert (result.exit_code, result.stdout) == (0, "gone is forgotten\n")
    result = await asyncio.to_thread(vedette, "nodes", "list", "-o", "json")
    assert [node["node"] for node in json.loads(result.stdout)] == ["web-1"]
    result = await asyncio.to_thread(vedette, "nodes", "list")
    assert result.stdout.splitlines()[-1] == "forgotten nodes: 1 sessions, 1 events received, 4 lost"


@pytest.mark.usefixtures("detector")
async def test_a_node_that_nobody_knows_cannot_be_forgotten(vedette: Vedette) -> None:
    result = await asyncio.to_thread(vedette, "nodes", "forget", "x\x1b")
    assert result.exit_code == 1
    assert "no node x\\x1b is known, or batches of it are under way" in result.stderr
