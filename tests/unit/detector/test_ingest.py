"""Delivery over a real unix socket and HTTPS into a real detector: acknowledgement, refusal, backpressure, reload."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.unit.detector.detector_parts import (
    BOOT,
    RULE,
    SECOND,
    SESSION,
    WALL_OFFSET,
    batch,
    client_of,
    eventually,
    running,
    scan,
)
from vedette_detector import ingest, intake
from vedette_detector.config import Settings
from vedette_detector.errors import ConfigError
from vedette_detector.events_query import EventQuery, rows
from vedette_detector.ingest import MalformedHeartbeatError, parse_body, parse_heartbeat
from vedette_detector.journal import iter_entries
from vedette_detector.service import Service
from vedette_events.encode import encode_event
from vedette_events.framing import Counters, decode_header, encode_batch


def acknowledged(document: dict[str, Any]) -> list[int]:
    return [entry["sequence"] for entry in document["acknowledged"]]


async def test_a_batch_becomes_a_finding_before_it_is_acknowledged(settings: Settings) -> None:
    async with running(settings) as (service, client):
        status, document = await client.post(batch(1), batch(2))
        assert (status, acknowledged(document)) == (200, [1, 2])
        (finding,) = service.store.list()
        assert (finding.type, finding.count, finding.resource_id) == ("Execution:Runtime/SuspiciousTool", 2, "node-a")
        assert finding.first_seen_ns == WALL_OFFSET + SESSION + SECOND
        assert service.store.applied() == {("node-a", BOOT, SESSION): 2}
        assert [e.sequence for e in iter_entries(settings.journal_dir)] == [1, 2]


async def test_a_batch_that_comes_again_is_acknowledged_and_not_applied(settings: Settings) -> None:
    async with running(settings) as (service, client):
        await client.post(batch(1), batch(2))
        assert acknowledged((await client.post(batch(1), batch(2), batch(3)))[1]) == [1, 2, 3]
        assert acknowledged((await client.post(batch(4), batch(4)))[1]) == [4, 4]
        assert [f.count for f in service.store.list()] == [4]
    async with running(settings) as (service, client):
        assert acknowledged((await client.post(batch(4)))[1]) == [4]
        assert [f.count for f in service.store.list()] == [4]


async def test_many_senders_at_once_are_all_applied(settings: Settings) -> None:
    async with running(settings) as (service, client):

        async def deliver(node: str) -> None:
            for number in range(1, 6):
                status, document = await client.post(batch(number, node=node))
                assert (status, acknowledged(document)) == (200, [number])

        await asyncio.gather(*(deliver(f"node-{n}") for n in range(20)))
        assert sorted(f.count for f in service.store.list()) == [5] * 20
        assert {a.balance for a in service.store.accounts()} == {"balanced"}


def damaged(data: bytes, position: int) -> bytes:
    broken = bytearray(data)
    broken[position] ^= 0xFF
    return bytes(broken)


BAD_RECORD = encode_batch(decode_header(batch(2))[0], scan(2)[:-8] + b"\xff" * 8 + scan(2)[:64])


@pytest.mark.parametrize(
    ("bad", "reason", "sequence"),
    [
        (b"garbage, not a batch", "BadMagic", None),
        (batch(2)[:40], "Truncated", None),
        (batch(2)[:-1], "Truncated", 2),
        (damaged(batch(2), 30), "HeaderChecksum", None),
        (damaged(batch(2), -1), "PayloadChecksum", 2),
        (BAD_RECORD, "BadRecord", 2),
        (batch(2, schema_version=0), "UnsupportedVersion", 2),
        (
            batch(2**63, scan(2), created_ns=0, first_time=0, last_time=0, ring_from=0, ring_to=1, emitted=1),
            "OutOfRange",
            2**63,
        ),
        (batch(2, session=2**64 - 1, created_ns=0, first_time=0, last_time=0), "OutOfRange", 2),
        (b"", "EmptyBody", None),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
async def test_a_malformed_batch_is_refused_for_good_and_named(
    settings: Settings, bad: bytes, reason: str, sequence: int | None
) -> None:
    async with running(settings) as (service, client):
        assert (await client.post(batch(1)))[0] == 200
        status, document = await client.post(bad)
        assert (status, document["reason"], document["sequence"]) == (400, reason, sequence)
        assert document["message"]
        # The agent gives it up and goes on; the detector does too.
        status, document = await client.post(batch(3))
        assert (status, acknowledged(document)) == (200, [3])
        assert [f.count for f in service.store.list()] == [2]


async def test_good_batches_around_a_bad_one_are_applied(settings: Settings) -> None:
    async with running(settings) as (service, client):
        status, document = await client.post(batch(1), damaged(batch(2), -1), batch(3))
        assert (status, document["reason"], document["session"], document["sequence"]) == (
            400,
            "PayloadChecksum",
            SESSION,
            2,
        )
        assert acknowledged(document) == [1, 3]
        notes = [n.message for n in service.store.notes("node-a") if n.kind == "BatchRejected"]
        assert notes == [
            "batch 2 was refused for good: PayloadChecksum: the payload does not match its checksum",
        ]
    async with running(settings) as (service, _):
        assert (service.recovery.batches, service.recovery.dropped) == (2, 1)
        assert [f.count for f in service.store.list()] == [2]


async def test_a_batch_of_a_newer_agent_is_kept_by_it(settings: Settings) -> None:
    async with running(settings) as (_, client):
        body = batch(1, schema_version=77)
        async with client.session.post("http://d/v1/batches", data=body) as answer:
            document = await answer.json()
            assert (answer.status, document["reason"]) == (503, "UnsupportedVersion")
            assert answer.headers["Retry-After"] == "30"


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_no_body_crashes_the_detector(data: st.DataObject, hostile: tuple[Service, Any]) -> None:
    _, client = hostile
    base = bytearray(batch(data.draw(st.integers(1, 1000)), node="hostile"))
    for _ in range(data.draw(st.integers(0, 4))):
        base[data.draw(st.integers(0, len(base) - 1))] = data.draw(st.integers(0, 255))
    body = bytes(base)[: data.draw(st.integers(0, len(base)))] + data.draw(st.binary(max_size=50))
    status, document = await client.post(body)
    assert status in (200, 400, 503), document
    if status == 400:
        assert document["reason"]
    status, _ = await client.get("/healthz")
    assert status == 200


@pytest.fixture
async def hostile(settings: Settings) -> Any:
    async with running(settings) as pair:
        yield pair


@given(st.binary(max_size=300))
def test_any_body_is_cut_into_batches_or_refused(body: bytes) -> None:
    batches, error = parse_body(batch(1) + body)
    assert len(batches) >= 1
    assert (error is None) == (sum(len(b) for _, b in batches) == len(body) + len(batch(1)))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["node", "boot_id", "session", "host", "hooks", "x"]), _VALUES))
def test_any_heartbeat_is_taken_or_refused(document: dict[str, Any]) -> None:
    try:
        node, boot_id, shown = parse_heartbeat(json.dumps(document).encode())
    except MalformedHeartbeatError:
        return
    assert 0 < len(node.encode()) <= 253
    assert len(boot_id) == 16
    json.dumps(shown, allow_nan=False)


async def test_what_waits_is_bounded(settings: Settings) -> None:
    async with running(replace(settings, max_waiting_bytes=1, store_timeout_s=20.0)) as (service, client):
        path = settings.data_dir / "findings.db"
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        first = asyncio.create_task(client.post(batch(1)))
        await eventually(lambda: service.intake.waiting_bytes, "the first batch waits")
        async with client.session.post("http://d/v1/batches", data=batch(1, node="b")) as answer:
            assert (answer.status, (await answer.json())["reason"], answer.headers["Retry-After"]) == (
                503,
                "Overloaded",
                "1",
            )
        blocker.execute("ROLLBACK")
        blocker.close()
        assert (await first)[0] == 200


async def test_bodies_that_arrive_take_room(settings: Settings) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield batch(1)
        await forever.wait()

    async with running(replace(settings, max_waiting_bytes=settings.max_body_bytes)) as (service, client):
        forever = asyncio.Event()
        slow = asyncio.create_task(client.session.post("http://d/v1/batches", data=slowly()))
        await eventually(lambda: service.intake.arriving_bytes, "the first body begins to arrive")
        status, document = await client.post(batch(1))
        assert (status, document["reason"]) == (503, "Overloaded")
        forever.set()
        async with await slow as answer:
            assert answer.status == 200
        assert service.intake.arriving_bytes == 0
        assert (await client.post(batch(2)))[0] == 200


async def test_a_body_that_never_comes_gives_its_room_back(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BODY_TIMEOUT_S", 0.2)

    async def never() -> AsyncIterator[bytes]:
        yield b"V"
        await asyncio.Event().wait()

    async with running(settings) as (service, client):
        async with client.session.post("http://d/v1/batches", data=never()) as answer:
            assert (answer.status, (await answer.json())["reason"]) == (408, "RequestTimeout")
        assert service.intake.arriving_bytes == 0


async def test_a_body_that_holds_too_much_is_to_be_split(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    large = batch(1, *[scan()] * 100)
    monkeypatch.setattr(ingest, "MAX_RAW_BYTES", decode_header(large)[0].raw_size + 1)
    async with running(settings) as (_, client):
        status, document = await client.post(large, batch(2))
        assert (status, document["reason"]) == (413, "TooLarge")
        assert acknowledged((await client.post(large))[1]) == [1]
        monkeypatch.setattr(ingest, "MAX_BATCHES", 1)
        assert (await client.post(batch(2), batch(3)))[0] == 413
        assert acknowledged((await client.post(batch(2)))[1]) == [2]


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(settings: Settings) -> None:
    async with running(replace(settings, max_body_bytes=1000)) as (_, client):
        status, document = await client.post(b"x" * 1001)
        assert (status, document["reason"]) == (413, "TooLarge")


async def test_a_heartbeat_of_unsaid_length_is_refused_while_it_still_comes(settings: Settings) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async with running(settings) as (_, client):
        with contextlib.suppress(aiohttp.ClientConnectionError):  # it may be gone before the answer is read
            async with client.session.post("http://d/v1/heartbeat", data=endless()) as answer:
                assert (answer.status, (await answer.json())["reason"]) == (413, "TooLarge")
        assert (await client.get("/healthz"))[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("batches", batch(1), "BadMagic"),
        ("heartbeat", json.dumps({"node": "node-a", "boot_id": BOOT.hex()}).encode(), "MalformedHeartbeat"),
    ],
)
async def test_a_body_is_taken_as_it_comes_and_not_unpacked(
    settings: Settings, path: str, body: bytes, reason: str
) -> None:
    headers = {"Content-Encoding": "deflate"}
    async with running(settings) as (_, client):
        for data, status in ((body, 200), (zlib.compress(body), 400)):
            async with client.session.post(f"http://d/v1/{path}", data=data, headers=headers) as answer:
                assert (answer.status, (await answer.json()).get("reason")) == (
                    status,
                    reason if data != body else None,
                )


async def test_a_locked_database_loses_nothing(settings: Settings) -> None:
    async with running(replace(settings, store_timeout_s=0.2)) as (service, client):
        assert (await client.post(batch(1)))[0] == 200
        blocker = sqlite3.connect(settings.data_dir / "findings.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        status, document = await client.post(batch(2), batch(3))
        assert (status, document["reason"]) == (503, "StoreBusy")
        assert (await client.get("/healthz"))[0] == 503
        blocker.execute("ROLLBACK")
        blocker.close()
        engine_seconds = service.intake.statistics.engine_seconds
        status, document = await client.post(batch(2), batch(3))
        assert (status, acknowledged(document)) == (200, [2, 3])
        assert (await client.get("/healthz"))[0] == 200
        assert [f.count for f in service.store.list()] == [3]
        assert [e.sequence for e in iter_entries(settings.journal_dir)] == [1, 2, 3]
        assert service.intake.statistics.engine_seconds > engine_seconds


async def test_what_waits_behind_a_batch_that_fails_does_not_take_its_number(settings: Settings) -> None:
    async with running(replace(settings, store_timeout_s=1.0)) as (service, client):
        assert (await client.post(batch(1)))[0] == 200
        blocker = sqlite3.connect(settings.data_dir / "findings.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        first = asyncio.create_task(client.post(batch(2)))
        await eventually(lambda: service.intake.waiting_bytes, "2 waits for the database")
        size = service.intake.waiting_bytes
        # As after a timeout: the agent sends again what it has no answer for, and what has come to it since.
        second = asyncio.create_task(client.post(batch(2), batch(3)))
        await eventually(lambda: service.intake.waiting_bytes > size, "3 waits behind 2")
        assert (await first)[0] == 503
        blocker.execute("ROLLBACK")
        blocker.close()
        status, document = await second
        assert (status, document["reason"]) == (503, "StoreBusy")
        status, document = await client.post(batch(2), batch(3))
        assert (status, acknowledged(document)) == (200, [2, 3])
        assert [f.count for f in service.store.list()] == [3]
        assert [(a.batches, a.missing_batches) for a in service.store.accounts()] == [(3, 0)]
        assert service.intake.waiting_bytes == 0


async def test_a_detector_that_gets_no_further_is_not_healthy(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings) as (service, client):
        assert (await client.get("/healthz"))[0] == 200
        monkeypatch.setattr(intake, "STALLED_AFTER_S", 0.1)
        pids = [pid for pid in service.pool.pids if pid is not None]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        posted = asyncio.create_task(client.post(batch(1)))
        await eventually(lambda: service.intake.stalled_s, "the group is under way")
        status, document = await client.get("/healthz")
        assert status == 503
        assert document["message"].startswith("Stalled: batches have been under way for")
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert (await posted)[0] == 200
        assert (await client.get("/healthz"))[0] == 200


async def test_a_full_disk_refuses_and_recovers(settings: Settings, small_disk: Path) -> None:
    settings = replace(settings, data_dir=small_disk / "data")
    filler = small_disk / "filler"
    async with running(settings) as (service, client):
        assert (await client.post(batch(1)))[0] == 200
        fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(fd, b"x" * 4096)
        os.close(fd)
        number, status = 1, 200
        document: dict[str, Any] = {}
        while status == 200 and number < 200:
            number += 1
            status, document = await client.post(batch(number))
        assert (status, document["reason"]) == (503, "StorageFull")
        assert service.store.applied() == {("node-a", BOOT, SESSION): number - 1}
        filler.unlink()
        status, document = await client.post(batch(number))
        assert (status, acknowledged(document)) == (200, [number])
        assert [f.count for f in service.store.list()] == [number]


async def test_a_clock_that_is_set_back_disturbs_nothing(settings: Settings) -> None:
    hour = 3600 * SECOND
    async with running(settings) as (service, client):
        for number, offset in ((1, 0), (2, -hour), (3, 10 * hour), (4, -(2**62))):
            status, document = await client.post(batch(number, wall_offset_ns=WALL_OFFSET + offset))
            assert (status, acknowledged(document)) == (200, [number])
        (finding,) = service.store.list()
        assert finding.count == 4
        (account,) = service.store.accounts()
        assert account.balance == "balanced"
        steps = [n.message for n in service.store.notes() if n.kind == "ClockStep"]
        assert steps[-2:] == [
            "the node's wall clock was set forward by 39600.000 s",
            "the node's wall clock was set back by 3600.000 s",
        ]
        status, document = await client.get("/v1/status")
        assert status == 200


async def test_status_tells_of_nodes_hooks_ledger_and_rates(settings: Settings) -> None:
    heartbeat = {
        "node": "node-a",
        "boot_id": BOOT.hex(),
        "session": SESSION,
        "agent_version": "0.1.0",
        "host": {"hostname": "h\x1b[2J", "machine_id": "m" * 32, "kernel": "6.1", "arch": "x86_64"},
        "hooks": [{"event": "dns", "hook": "cgroup_skb", "state": "missing", "reason": "no BTF"}],
        "spool": {"bytes": 5, "batches": 1, "limit_bytes": 100},
    }
    async with running(settings) as (service, client):
        async with client.session.post("http://d/v1/heartbeat", json=heartbeat) as answer:
            assert answer.status == 200
            assert (await answer.json())["filters"]["version"] == service.filters()["version"]
        await client.post(batch(1))
        status, document = await client.get("/v1/status")
        assert status == 200
        assert document["detector"]["rules"] == {"loaded": 1, "detectors": 0, "errors": [], "failing": []}
        assert document["findings"]["medium"] == 1
        (node,) = document["nodes"]
        assert (node["node"], node["silent"], node["host"]["hostname"]) == ("node-a", False, "h\\x1b[2J")
        assert node["hooks"][0]["reason"] == "no BTF"
        assert (node["ledger"][0]["received"], node["ledger"][0]["balance"]) == (1, "balanced")
        assert node["rates"]["events_per_second"] > 0
        (finding,) = service.store.list()
        assert finding.document["vedette"]["host"]["machineId"] == "m" * 32
        status, text = await client.get("/metrics")
        assert 'vedette_events_total{type="exec"} 1\n' in text
    # The heartbeat outlives the process.
    async with running(settings) as (_, client):
        (node,) = (await client.get("/v1/status"))[1]["nodes"]
        assert node["host"]["kernel"] == "6.1"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "the body is not a JSON object"),
        (b"{", "the body is not JSON"),
        (b'{"node": ""}', "node is not a text of 1 to 253 bytes"),
        (b'{"node": "a", "boot_id": "xyz"}', "boot_id is not 32 hex digits"),
        (b"[" * 100_000, "the body is not JSON"),
    ],
)
async def test_a_malformed_heartbeat_is_refused(settings: Settings, body: bytes, message: str) -> None:
    async with (
        running(settings) as (_, client),
        client.session.post("http://d/v1/heartbeat", data=body) as answer,
    ):
        document = await answer.json()
        assert (answer.status, document["reason"]) == (400, "MalformedHeartbeat")
        assert document["message"].startswith(message)


async def test_filters_are_handed_over_only_when_they_differ(settings: Settings) -> None:
    async with running(settings) as (service, client):
        _, document = await client.post(batch(1), filters="other")
        assert document["filters"] == service.filters()
        _, document = await client.post(batch(2), filters=service.filters()["version"])
        assert document["filters"] is None


async def test_rules_are_reloaded_and_a_broken_file_leaves_the_others(settings: Settings, rules: Path) -> None:
    async with running(settings) as (service, client):
        await client.post(batch(1))
        changed = RULE.replace("/scanner", "/other").replace("000000000001", "000000000002")
        (rules / "other.yml").write_text(changed)
        (rules / "broken.yml").write_text("title: [unclosed\n")
        await eventually(lambda: len(service.ruleset.rules) == 2, "the new rule is loaded")
        await eventually(lambda: service.ruleset.errors, "the broken rule is reported")

        async def other_is_seen() -> bool:
            sequence = service.store.applied()["node-a", BOOT, SESSION] + 1
            await client.post(batch(sequence, scan(sequence, path="/usr/bin/other")))
            return any(f.document["vedette"]["ruleId"].endswith("2") for f in service.store.list())

        for _ in range(100):
            if await other_is_seen():
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the new rule never matched")
        _, document = await client.get("/v1/status")
        (error,) = document["detector"]["rules"]["errors"]
        assert error["file"] == str(rules / "broken.yml")
        status, answer = await client.post(batch(service.store.applied()["node-a", BOOT, SESSION] + 1))
        assert (status, len(answer["acknowledged"])) == (200, 1)


async def test_raw_events_can_be_asked_for_while_the_detector_runs(settings: Settings) -> None:
    async with running(settings) as (_, client):
        await client.post(batch(1), batch(2, encode_event("connect", time=SESSION + 2 * SECOND, pid=9)))
        found = list(rows(settings.journal_dir, EventQuery(types=("connect",))))
        assert [(r["type"], r["pid"]) for r in found] == [("connect", 9)]


async def test_history_is_rebuilt_after_a_restart(settings: Settings) -> None:
    child = scan(2, pid=50, ppid=40, parent_start=SESSION + SECOND // 2)
    async with running(settings) as (_, client):
        parent = scan(1, path="/usr/bin/parent", pid=40, start=SESSION + SECOND // 2)
        await client.post(batch(1, parent))
    async with running(settings) as (service, client):
        await client.post(batch(2, child))
        (finding,) = service.store.list()
        lineage = finding.document["service"]["runtimeDetails"]["process"]["lineage"]
        assert [p["executablePath"] for p in lineage][:1] == ["/usr/bin/parent"]


async def test_a_flood_of_different_findings_ends_in_one(settings: Settings) -> None:
    async with running(replace(settings, findings_per_hour=3)) as (service, client):
        for number in range(1, 9):
            await client.post(batch(number, scan(number, path=f"/tmp/{number}/scanner")))
        counts = {f.document["vedette"]["aggregationKey"][0]: f.count for f in service.store.list()}
        assert counts == {f"/tmp/{n}/scanner": 1 for n in (1, 2, 3)} | {"(many different)": 5}
        (overflow,) = [f for f in service.store.list() if f.count == 5]
        assert overflow.document["vedette"]["notes"][0].startswith("More than 3 different findings of this type")


async def test_an_engine_worker_that_dies_is_replaced_with_its_history(settings: Settings) -> None:
    async with running(settings) as (service, client):
        parent = scan(1, path="/usr/bin/parent", pid=40, start=SESSION + SECOND // 2)
        await client.post(batch(1, parent))
        (worker,) = service.pool.pids
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        child = scan(2, pid=50, ppid=40, parent_start=SESSION + SECOND // 2)
        status, document = await client.post(batch(2, child))
        assert (status, acknowledged(document)) == (200, [2])
        assert service.pool.pids != [worker]
        (finding,) = service.store.list()
        lineage = finding.document["service"]["runtimeDetails"]["process"]["lineage"]
        assert [p["executablePath"] for p in lineage][:1] == ["/usr/bin/parent"]


async def test_a_second_detector_on_the_same_data_is_refused(settings: Settings) -> None:
    async with running(settings):
        with pytest.raises(ConfigError) as raised:
            Service(settings)
        assert raised.value.reason == "AlreadyRunning"


async def test_the_socket_admits_the_agent_and_root_and_nobody_else(settings: Settings, short_dir: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("changing users needs root")
    os.chmod(short_dir, 0o755)
    program = (
        "import http.client,os,socket,sys\n"
        "user=int(sys.argv[3])\n"
        "os.setgroups([])\n"
        "os.setgid(user)\n"
        "os.setuid(user)\n"
        "s=socket.socket(socket.AF_UNIX)\n"
        "s.connect(sys.argv[1])\n"
        "c=http.client.HTTPConnection('d')\n"
        "c.sock=s\n"
        "c.request('GET', sys.argv[2])\n"
        "a=c.getresponse()\n"
        "print(a.status, a.read().decode())\n"
    )

    async def ask(path: str, user: int, mode: int) -> str:
        socket_path = short_dir / "d.sock"
        os.chmod(socket_path, mode)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            str(socket_path),
            path,
            str(user),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate()
        return (out or err).decode()

    async with running(settings):
        assert (short_dir / "d.sock").stat().st_mode & 0o777 == 0o660
        assert (await ask("/v1/status", 0, 0o660)).startswith("200 ")
        assert "NotAdministrator" in await ask("/v1/status", 60700, 0o660)
        assert "UserNotAdmitted" in await ask("/v1/status", 65534, 0o666)
        assert "PermissionError" in await ask("/v1/status", 12345, 0o660)
        assert (await ask("/v1/status", 12345, 0o666)).startswith("403 ")
        assert "UserNotAdmitted" in await ask("/v1/status", 12345, 0o666)
        assert (await ask("/healthz", 12345, 0o666)).startswith("200 ")


@pytest.fixture
def https(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a certificate, tokens and a port of their own."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    (tmp_path / "tokens").write_text("# comment\nnode-a aaaaaaaaaaaaaaaaaaaa\n* oooooooooooooooooooo\n")
    return replace(
        settings,
        listen=(f"https://127.0.0.1:{port}",),
        tls_cert=tmp_path / "cert.pem",
        tls_key=tmp_path / "key.pem",
        token_file=tmp_path / "tokens",
    )


async def test_over_https_a_token_speaks_for_its_own_node_only(https: Settings, tmp_path: Path) -> None:
    service = Service(https)
    await service.start()
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

            async def post(token: str | None, body: bytes) -> tuple[int, str]:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                async with session.post(f"{https.listen[0]}/v1/batches", data=body, headers=headers) as answer:
                    return answer.status, (await answer.json()).get("reason", "")

            assert await post(None, batch(1)) == (401, "NoToken")
            assert await post("b" * 20, batch(1)) == (401, "UnknownToken")
            assert await post("a" * 20, batch(1, node="node-b")) == (403, "WrongNode")
            assert await post("o" * 20, batch(1)) == (403, "WrongNode")
            assert await post("a" * 20, batch(1)) == (200, "")
            for token, status in (("a" * 20, 403), ("o" * 20, 200)):
                headers = {"Authorization": f"Bearer {token}"}
                async with session.get(f"{https.listen[0]}/v1/status", headers=headers) as answer:
                    assert answer.status == status
            (tmp_path / "tokens").write_text("node-a cccccccccccccccccccc\n")
            assert await post("a" * 20, batch(2)) == (401, "UnknownToken")
            assert await post("c" * 20, batch(2)) == (200, "")
            assert [f.count for f in service.store.list()] == [2]
    finally:
        await service.stop()


# A real process, killed


async def start(settings: Settings) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "vedette_detector",
        *("--data-dir", str(settings.data_dir), "--listen", settings.listen[0], "--rules", str(settings.rules[0])),
        *("--builtin-rules", "false", "--workers", "1", "--log-level", "warning", "--journal-segment-bytes", "4000"),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 60)
    assert line.startswith(b"ready "), line
    return process


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_kill_9_again_and_again_loses_and_doubles_nothing(settings: Settings) -> None:
    """A sender sends until acknowledged, in order; the detector is killed at moments that do not suit it."""
    total, kills = 90, 5
    sent: list[int] = []
    running_process: list[asyncio.subprocess.Process] = [await start(settings)]
    finished = asyncio.Event()

    async def killer() -> None:
        for number in range(kills):
            goal = (number + 1) * total // (kills + 2)
            while len(sent) < goal:  # noqa: ASYNC110 - the moment to kill at is a number of batches
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.0007 * number)
            running_process[0].kill()
            await running_process[0].wait()
            running_process[0] = await start(settings)

    async def sender() -> None:
        number = 1
        while number <= total:
            size = 1 + number % 3
            group = [batch(n, counters=Counters(emitted=n)) for n in range(number, min(number + size, total + 1))]
            try:
                async with client_of(settings) as client:
                    status, document = await client.post(*group)
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(0.01)
                continue
            assert status == 200, document
            sent.extend(acknowledged(document))
            number = sent[-1] + 1
        finished.set()

    await asyncio.wait_for(asyncio.gather(killer(), sender()), 280)
    assert finished.is_set()
    running_process[0].terminate()
    assert await running_process[0].wait() == 0
    service = Service(settings)
    try:
        (finding,) = service.store.list()
        assert finding.count == total
        (account,) = service.store.accounts()
        assert (account.last_sequence, account.batches, account.received) == (total, total, total)
        assert (account.missing_batches, account.balance) == (0, "balanced")
        assert [e.sequence for e in iter_entries(settings.journal_dir)] == list(range(1, total + 1))
        assert len(list(rows(settings.journal_dir, EventQuery(types=("exec",))))) == total
        numbers = [o.number for o in service.store.occurrences(finding.id)]
        assert numbers == list(range(total - 19, total + 1))
    finally:
        service.close()


async def test_sigterm_ends_in_order(settings: Settings) -> None:
    process = await start(settings)
    async with client_of(settings) as client:
        assert (await client.post(batch(1)))[0] == 200
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert (settings.journal_dir / "0000000000000001.idx").exists()
