"""What agents that misbehave do to a real detector: sessions without end, batches on which the engine fails."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.unit.detector.detector_parts import (
    BOOT,
    SECOND,
    SESSION,
    Client,
    batch,
    client_of,
    eventually,
    running,
    scan,
)
from vedette_detector import fair_queue
from vedette_detector import service as service_module
from vedette_detector import sessions as sessions_module
from vedette_detector.config import Settings
from vedette_detector.engine.pool import WorkerPool
from vedette_detector.errors import OverloadedError
from vedette_detector.intake import Intake
from vedette_detector.journal import iter_entries
from vedette_detector.service import Service
from vedette_events.encode import encode_event
from vedette_events.framing import BatchFlags, Counters, decode_header


def acknowledged(document: dict[str, list[dict[str, int]]]) -> list[tuple[int, int]]:
    return [(entry["session"], entry["sequence"]) for entry in document["acknowledged"]]


@pytest.fixture
def few_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts of two sessions for each node."""
    monkeypatch.setattr(sessions_module, "PER_NODE", 2)


@pytest.mark.usefixtures("few_sessions")
async def test_an_agent_that_starts_again_and_again_leaves_few_accounts_and_nothing_twice(settings: Settings) -> None:
    begun = [SESSION + n * 100 * SECOND for n in range(6)]
    async with running(settings) as (service, client):
        for session in begun:
            for sequence in (1, 2):
                status, _ = await client.post(batch(sequence, session=session, counters=Counters(sequence, 0, 3)))
                assert status == 200
        assert [a.session for a in service.store.accounts()] == begun[-2:]
        sums = service.store.totals()["node-a"]
        assert (sums.sessions, sums.batches, sums.received, sums.dropped) == (4, 8, 8, 12)
        # As an agent does that comes back with what it had no answer for.
        status, document = await client.post(batch(1, session=begun[0]), batch(2, session=begun[0]))
        assert (status, acknowledged(document)) == (200, [(begun[0], 1), (begun[0], 2)])
        assert [f.count for f in service.store.list()] == [12]
    async with running(settings) as (service, client):
        # Their batches are in the journal still, and applied is applied.
        assert (service.recovery.batches, service.recovery.dropped) == (12, 0)
        status, _ = await client.post(batch(2, session=begun[1]))
        assert status == 200
        assert [f.count for f in service.store.list()] == [12]
        (node,) = (await client.get("/v1/status"))[1]["nodes"]
        assert [entry["session"] for entry in node["ledger"]] == begun[-2:]
        assert (node["ledger_before"]["sessions"], node["ledger_before"]["emitted"]) == (4, 8)
        assert node["losses"]["recent"]["dropped_events"] == 18
        # A session that goes on after all is taken up where it was.
        status, _ = await client.post(batch(3, session=begun[1], counters=Counters(3, 0, 3)))
        assert status == 200
        assert [f.count for f in service.store.list()] == [13]
        assert [(a.last_sequence, a.missing_batches, a.balance) for a in service.store.accounts()][-1] == (3, 0, "lost")


@pytest.mark.usefixtures("few_sessions")
async def test_sessions_that_come_in_one_request_are_bounded_as_well(settings: Settings) -> None:
    async with running(settings) as (service, client):
        status, document = await client.post(*(batch(1, session=SESSION + n * SECOND) for n in range(50)))
        assert (status, len(document["acknowledged"])) == (200, 50)
        assert len(service.store.accounts()) == 2
        assert service.store.totals()["node-a"].sessions == 48
        assert len(service.store.applied()) == 50
        assert [f.count for f in service.store.list()] == [50]


async def test_a_loss_is_a_problem_for_a_day_and_history_afterwards(settings: Settings) -> None:
    async with running(settings) as (service, client):
        await client.post(batch(1), batch(2, counters=Counters(2, 0, 5, 1, 7)))
        (node,) = (await client.get("/v1/status"))[1]["nodes"]
        assert {k: v for k, v in node["losses"]["recent"].items() if v} == {
            "dropped_events": 5,
            "spool_lost_events": 7,
            "spool_lost_batches": 1,
            # The ledger is at odds: two events were emitted, two came, seven more are said to be lost.
            "contradictions": 1,
        }
        with sqlite3.connect(settings.data_dir / "findings.db") as database:
            database.execute("UPDATE ledger_notes SET at_ns = at_ns - 90000 * 1000000000")
        (node,) = (await client.get("/v1/status"))[1]["nodes"]
        assert {k: v for k, v in node["losses"]["recent"].items() if v} == {}
        assert {k: v for k, v in node["losses"]["earlier"].items() if v} == {
            "dropped_events": 5,
            "spool_lost_events": 7,
            "spool_lost_batches": 1,
        }
        await service._retain()
        assert [a.session for a in service.store.accounts()] == [SESSION]


@asynccontextmanager
async def breaking(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Service, Client]]:
    """A detector with detectors that break its engine; the workers import them by name, as they do real ones."""
    folder = os.path.dirname(__file__)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)
    breaker = importlib.import_module("engine_breaker")
    service = Service(settings)
    service.detectors = [breaker.Breaker(), breaker.Killer()]
    try:
        await service.start()
        async with client_of(settings) as client:
            yield service, client
    finally:
        await service.stop()


FAILING = batch(2, scan(2, path="/tmp/fail-the-engine"))
KILLING = batch(2, scan(2, path="/tmp/kill-the-worker"))


async def test_a_batch_on_which_the_engine_fails_each_time_is_refused_in_the_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody looks for changed rules meanwhile: a reload would take the test's detectors away.
    settings = replace(settings, reload_s=3600.0)
    async with breaking(settings, monkeypatch) as (service, client):
        assert (await client.post(batch(1)))[0] == 200
        for _ in range(2):
            status, document = await client.post(FAILING, batch(3))
            assert (status, document["reason"]) == (503, "EngineFailed")
        status, document = await client.post(FAILING, batch(3))
        assert (status, document["reason"], document["sequence"]) == (400, "EngineFailed", 2)
        assert acknowledged(document) == [(SESSION, 3)]
        (note,) = [n for n in service.store.notes("node-a") if n.kind == "BatchRejected"]
        assert note.message.startswith("batch 2 was refused for good: EngineFailed: the engine failed on it 3 times")
        # The agent counts it as given up: it is lost once.
        await client.post(batch(4, counters=Counters(4, 0, 0, 1, 1)))
        (node,) = (await client.get("/v1/status"))[1]["nodes"]
        told = {k: v for k, v in node["losses"]["recent"].items() if v}
        assert told == {"spool_lost_events": 1, "spool_lost_batches": 1, "refused_batches": 1}
        assert [(a.balance, a.outstanding) for a in service.store.accounts()] == [("lost", 0)]
        assert [f.count for f in service.store.list()] == [3]


@pytest.mark.parametrize(("bad", "reason"), [(FAILING, "EngineFailed"), (KILLING, "EngineCrashed")])
async def test_a_refused_batch_is_not_replayed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bad: bytes, reason: str
) -> None:
    settings = replace(settings, reload_s=3600.0)
    async with breaking(settings, monkeypatch) as (service, client):
        await client.post(batch(1))
        status, document = await client.post(bad)
        while status == 503:
            status, document = await client.post(bad)
        assert (status, document["reason"]) == (400, reason)
        await client.post(batch(3))
        assert service.store.refused() == {(("node-a", BOOT, SESSION), 2)}
    caplog.set_level(logging.INFO)
    async with running(settings) as (service, client):
        assert "rebuilt its history from 2 batches" in caplog.text
        # It stays readable.
        assert [e.sequence for e in iter_entries(settings.journal_dir)] == [1, 2, 3]


async def beat(client: Client, **document: object) -> None:
    body = {"node": "node-a", "boot_id": BOOT.hex(), **document}
    async with client.session.post("http://d/v1/heartbeat", json=body) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(("gap_s", "too_long"), [(8, False), (31, True)])
async def test_the_gap_between_two_agents_is_stated_with_its_length(
    settings: Settings, gap_s: int, too_long: bool
) -> None:
    drained = SESSION + 40 * SECOND
    new = drained + gap_s * SECOND
    async with running(settings) as (_, client):
        await beat(client, session=SESSION, drained_ns=drained, counters={"emitted": 3})
        await client.post(batch(1))
    async with running(settings) as (_, client):
        # The new agent's heartbeat comes first, then what the old one left in the spool, then its own.
        await beat(client, session=new, attached_ns=new, counters={"emitted": 0})
        await client.post(batch(2), batch(1, session=new))
        (node,) = (await client.get("/v1/status"))[1]["nodes"]
        assert {k: node["gaps"][k] for k in ("count", "seconds", "longest_s", "too_long")} == {
            "count": 1,
            "seconds": float(gap_s),
            "longest_s": float(gap_s),
            "too_long": too_long,
        }
        assert node["losses"]["recent"]["ring_lost_events"] == 1
        assert f'vedette_gap_seconds_total{{node="node-a"}} {gap_s}\n' in (await client.get("/metrics"))[1]
        # Another boot is no gap.
        await client.post(batch(1, session=new + 900 * SECOND, boot_id=bytes(16)))
        (node,) = (await client.get("/v1/status"))[1]["nodes"]
        assert node["gaps"]["count"] == 1
        assert [n["kind"] for n in node["notes"]].count("NodeRestarted") == 1


async def test_a_version_that_takes_over_leaves_no_gap(settings: Settings) -> None:
    async with running(settings) as (_, client):
        new = SESSION + 2 * SECOND
        final = batch(2, flags=BatchFlags.FINAL, created_ns=SESSION + 3 * SECOND)
        await client.post(batch(1), final, batch(1, session=new))
        (node,) = (await client.get("/v1/status"))[1]["nodes"]
        assert node["gaps"]["count"] == 0


async def test_a_node_that_is_forgotten_leaves_its_sums_and_is_not_applied_twice(settings: Settings) -> None:
    async with running(settings) as (service, client):
        await beat(client, session=SESSION)
        await client.post(batch(1), batch(2, counters=Counters(2, 0, 4)), batch(1, node="other"))
        assert await service.forget("node-a") is True
        assert await service.forget("node-a") is False
        document = (await client.get("/v1/status"))[1]
        assert [node["node"] for node in document["nodes"]] == ["other"]
        assert (document["forgotten"]["sessions"], document["forgotten"]["dropped"]) == (1, 4)
        assert [list(worker.nodes) for worker in await service.pool.status()] == [["other"]]
    async with running(settings) as (service, client):
        document = (await client.get("/v1/status"))[1]
        assert ([node["node"] for node in document["nodes"]], document["forgotten"]["sessions"]) == (["other"], 1)
        assert service.store.notes("node-a") == []
        status, _ = await client.post(batch(2), batch(3))
        assert status == 200
        assert [f.count for f in service.store.list() if f.node == "node-a"] == [3]


async def test_nodes_without_a_sign_are_forgotten_after_a_while(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(replace(settings, node_forget_s=100.0)) as (service, client):
        await client.post(batch(1), batch(1, node="other"))
        start = service.liveness.clock()
        service.liveness.clock = lambda: start + 99.0
        await beat(client)
        service.liveness.clock = lambda: start + 150.0
        await service._keep_house()
        assert service.liveness.nodes == ["node-a", "other"]  # it has not run for long enough to know
        monkeypatch.setattr(service_module, "FORGET_GRACE_S", 120.0)
        await service._keep_house()
        assert service.liveness.nodes == ["node-a"]
        service.liveness.clock = lambda: start + 300.0
        await service._keep_house()
        assert service.liveness.nodes == []


async def test_a_node_with_much_waiting_makes_itself_wait_and_not_others(settings: Settings) -> None:
    quiet_work = scan(1, path="/usr/bin/true")
    large = [batch(n, *[quiet_work] * 4000, node="loud") for n in range(1, 14)]
    assert decode_header(large[0])[0].raw_size > fair_queue.TURN
    async with running(replace(settings, store_timeout_s=20.0)) as (service, client):
        blocker = sqlite3.connect(settings.data_dir / "findings.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        posted = [asyncio.create_task(client.post(large[0]))]
        await eventually(lambda: service.intake._group_began, "the first batch is under way")
        posted.append(asyncio.create_task(client.post(*large[1:])))
        await eventually(lambda: len(service.intake._queue) == 12, "the others wait")
        posted.append(asyncio.create_task(client.post(batch(1, node="quiet"))))
        await eventually(lambda: len(service.intake._queue) == 13, "so does the other node's")
        blocker.execute("ROLLBACK")
        blocker.close()
        assert [(await task)[0] for task in posted] == [200, 200, 200]
        order = [e.node for e in iter_entries(settings.journal_dir)]
        assert order.index("quiet") <= 2
        assert order.count("loud") == 13


def test_one_node_leaves_room_for_others(settings: Settings) -> None:
    service = Service(replace(settings, max_waiting_bytes=1200))
    try:
        intake = Intake(
            pool=WorkerPool(1),
            journal=service.journal,
            store=service.store,
            to_finding=service.to_finding,
            max_waiting_bytes=1200,
            occurrences=1,
        )

        def fill(node: str, size: int) -> int:
            """How much the node gets in, in requests of ``size`` that stay."""
            taken = 0
            with contextlib.suppress(OverloadedError):
                while True:
                    stack.enter_context(intake.room_for(size, node))
                    taken += size
            return taken

        with contextlib.ExitStack() as stack:
            assert fill("loud", 100) == 600
            assert fill("second", 100) == 300
            assert fill("third", 100) == 200  # one is always admitted, so long as there is room at all
            with pytest.raises(OverloadedError, match="600 bytes of this node's batches wait already") as refused:
                intake.admit(100, "loud")
            assert refused.value.reason == "Overloaded"
            assert fill("fourth", 100) == 100
        assert (intake.arriving_bytes, dict(intake._bytes_of)) == (0, {})
        with contextlib.ExitStack() as stack:
            assert fill("", 100) == 1200  # whoever may speak for any node is not held to a share
    finally:
        service.close()


async def test_a_node_that_makes_up_containers_ends_in_one_finding_of_the_node(settings: Settings) -> None:
    async with running(replace(settings, findings_per_hour=2)) as (service, client):
        for number in range(1, 13):
            path = f"/kubepods/pod{number:032d}/{number:064x}"
            group = encode_event("cgroup", time=SESSION + number * SECOND, cgroup=number, path=path)
            await client.post(batch(number, group, scan(number, cgroup=number)))
        await client.post(batch(1, node="other"))
        found = service.store.list(limit=100)
        assert len([f for f in found if f.resource_type == "Container"]) == 8
        (overflow,) = [f for f in found if f.node == "node-a" and f.resource_type == "Instance"]
        assert overflow.count == 4
        assert overflow.document["vedette"]["notes"][0].startswith("More than 8 different findings of this and other")
        assert [f.count for f in found if f.node == "other"] == [1]
