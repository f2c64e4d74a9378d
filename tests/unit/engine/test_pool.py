"""Worker processes: order, hot swap, death and replacement, refusal of batches that kill."""

import asyncio
import importlib
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from vedette_detector.engine import pool as pool_module
from vedette_detector.engine.context import EngineSettings
from vedette_detector.engine.pool import EngineError, WorkerPool
from vedette_detector.engine.worker import SETUP, STATUS, pack
from vedette_detector.sigma.loader import Ruleset, load_rule_text
from vedette_detector.sigma.rule_tests import encode_events, make_header
from vedette_detector.threat_lists import ThreatLists
from vedette_events.framing import BatchError, encode_batch

RULE = """
title: {name} was run
id: 00000000-0000-4000-8000-00000000000{digit}
logsource: {{product: linux, category: process_creation}}
detection:
  selection: {{Image|endswith: /{name}}}
  condition: selection
level: high
vedette: {{key: [ParentImage]}}
"""


def rules(name: str, digit: int = 1) -> Ruleset:
    loaded = load_rule_text(RULE.format(name=name, digit=digit))
    assert loaded.errors == []
    return loaded


def frame(node: str, sequence: int, *events: dict[str, object]) -> bytes:
    records, _ = encode_events(events)
    return encode_batch(make_header(node, sequence, len(events) + 2), records)


def exec_of(path: str, pid: int = 7, ppid: int = 6) -> dict[str, object]:
    return {"event": "exec", "path": path, "argv": [path], "pid": pid, "ppid": ppid}


async def test_every_node_is_judged_by_one_worker_with_its_own_history() -> None:
    pool = WorkerPool(2, rules("nmap"))
    await pool.start()
    try:
        nodes = [f"node-{n}" for n in range(6)]
        assert {pool.number_of(node) for node in nodes} == {0, 1}
        for node in nodes:
            await pool.submit(frame(node, 1, exec_of(f"/opt/{node}", pid=6, ppid=1)))
        outcomes = await asyncio.gather(*(pool.submit(frame(node, 2, exec_of("/usr/bin/nmap"))) for node in nodes))
        found = {outcome.detections[0].node: outcome.detections[0].key for outcome in outcomes}
        assert found == {node: (f"/opt/{node}",) for node in nodes}
        sizes = [list(worker.nodes) for worker in await pool.status()]
        assert sorted(node for names in sizes for node in names) == nodes
    finally:
        await pool.close()


async def test_rules_and_lists_are_swapped_while_batches_flow() -> None:
    pool = WorkerPool(2, rules("nmap"))
    await pool.start()
    try:
        before = await pool.submit(frame("a", 1, exec_of("/usr/bin/nmap")))
        await pool.replace_rules(rules("socat", 2))
        await pool.replace_threat_lists(ThreatLists.of(["203.0.113.9"]))
        after = await pool.submit(frame("a", 2, exec_of("/usr/bin/nmap"), exec_of("/usr/bin/socat")))
        assert [d.title for d in before.detections] == ["nmap was run"]
        assert [d.title for d in after.detections] == ["socat was run"]
    finally:
        await pool.close()


async def test_a_dead_worker_is_replaced_and_its_history_rebuilt() -> None:
    journal = [frame("a", 1, exec_of("/opt/parent", pid=6, ppid=1)), frame("b", 1, exec_of("/opt/other", pid=6))]
    asked: list[bool] = []

    def history(wanted: Callable[[str], bool]) -> Iterator[bytes]:
        asked.append(wanted("a"))
        yield from (batch for batch, node in zip(journal, "ab", strict=True) if wanted(node))

    pool = WorkerPool(1, rules("nmap"), history=history)
    await pool.start()
    try:
        pid = pool.pids[0]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        outcome = await pool.submit(frame("a", 2, exec_of("/usr/bin/nmap")))
        assert [d.key for d in outcome.detections] == [("/opt/parent",)]
        assert asked == [True, True]
        assert (await pool.status())[0].restarts == 1
        assert pool.pids[0] != pid
    finally:
        await pool.close()


async def test_a_worker_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WorkerPool(1, rules("nmap"))
    await pool.start()
    try:
        pid = pool.pids[0]
        assert pid is not None
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/nonexistent")
            os.kill(pid, signal.SIGKILL)
            while pool._workers[0].restarts < 3:  # noqa: ASYNC110 - nobody is told of an attempt
                await asyncio.sleep(0.01)
            submitted = asyncio.create_task(pool.submit(frame("a", 1, exec_of("/usr/bin/nmap"))))
        assert len((await submitted).detections) == 1
    finally:
        await pool.close()


async def test_a_worker_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WorkerPool(1, rules("nmap"))
    await pool.start()
    try:
        await pool.status()
        pid = pool.pids[0]
        assert pid is not None
        with monkeypatch.context() as patched:
            patched.setattr(pool_module, "HANGS_AFTER_S", 0.4)
            os.kill(pid, signal.SIGSTOP)
            submitted = asyncio.create_task(pool.submit(frame("a", 1, exec_of("/usr/bin/nmap"))))
            while pool.pids[0] == pid:  # noqa: ASYNC110 - nobody is told of a new process
                await asyncio.sleep(0.01)
        assert len((await submitted).detections) == 1
    finally:
        await pool.close()


async def test_batches_under_way_survive_the_death_of_their_worker() -> None:
    pool = WorkerPool(1, rules("nmap"))
    await pool.start()
    try:
        pid = pool.pids[0]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        submitted = [asyncio.create_task(pool.submit(frame("a", n, exec_of("/usr/bin/nmap")))) for n in range(1, 6)]
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        outcomes = await asyncio.gather(*submitted)
        assert [len(outcome.detections) for outcome in outcomes] == [1] * 5
    finally:
        await pool.close()


async def test_a_worker_that_dies_while_its_history_is_rebuilt_does_not_get_it_twice() -> None:
    journal = [frame("a", n, exec_of(f"/opt/p{n}", pid=100 + n, ppid=1)) for n in range(1, 41)]
    kills: list[int] = []

    def history(wanted: Callable[[str], bool]) -> Iterator[bytes]:
        kill = len(kills) < 3
        # Each time at another batch: one that two workers died of would be left out.
        at = 8 + 12 * len(kills)
        for number, one in enumerate(journal):
            if kill and number == at:
                pid = pool.pids[0]
                assert pid is not None
                kills.append(pid)
                os.kill(pid, signal.SIGKILL)
            if kill and number > at:
                time.sleep(0.02)  # so that the next worker starts while this one's batches still come
            yield one

    once = WorkerPool(1, rules("nmap"), history=lambda wanted: iter(journal))
    pool = WorkerPool(1, rules("nmap"), history=history)
    try:
        await once.start()
        await pool.start()
        outcome = await pool.submit(frame("a", 41, exec_of("/usr/bin/nmap", pid=7, ppid=140)))
        assert [d.key for d in outcome.detections] == [("/opt/p40",)]
        await once.submit(frame("a", 41, exec_of("/usr/bin/nmap", pid=7, ppid=140)))
        (died,), (undisturbed,) = await pool.status(), await once.status()
        assert (died.restarts, len(kills)) == (3, 3)
        assert died.nodes["a"]["rows"] == undisturbed.nodes["a"]["rows"]
    finally:
        await pool.close()
        await once.close()


async def test_what_waits_for_a_worker_that_dies_again_is_judged_once_with_history() -> None:
    journal = [frame("a", n, exec_of("/opt/other", pid=200 + n)) for n in range(1, 29)]
    journal.append(frame("a", 29, exec_of("/opt/parent", pid=6, ppid=1)))
    rounds: list[int] = []

    def history(wanted: Callable[[str], bool]) -> Iterator[bytes]:
        rounds.append(len(rounds))
        for number, one in enumerate(journal):
            if len(rounds) == 2 and number == 10:
                pid = pool.pids[0]
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
            if len(rounds) >= 2:
                time.sleep(0.01)
            yield one

    pool = WorkerPool(1, rules("nmap"), history=history)
    await pool.start()
    try:
        pid = pool.pids[0]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        submitted = [asyncio.create_task(pool.submit(frame("a", n, exec_of("/usr/bin/nmap")))) for n in range(30, 34)]
        while len(pool._workers[0].waiting) < 4:  # noqa: ASYNC110 - nobody is told of a request
            await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        outcomes = await asyncio.gather(*submitted)
        assert [[d.key for d in outcome.detections] for outcome in outcomes] == [[("/opt/parent",)]] * 4
        assert len(rounds) == 3
    finally:
        await pool.close()


async def test_a_batch_in_the_history_that_kills_workers_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Judged by rules, it would be refused; replayed it is not judged, so what kills here is the worker's own code.
    bad = frame("a", 2, exec_of("/bin/true"))
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    killer = importlib.import_module("replay_killer").ReplayKiller(bad)
    journal = [frame("a", 1, exec_of("/opt/parent", pid=6, ppid=1)), bad, frame("a", 3, exec_of("/bin/other"))]
    pool = WorkerPool(1, rules("nmap"), detectors=(killer,), history=lambda wanted: iter(journal))
    await pool.start()
    try:
        outcome = await pool.submit(frame("a", 4, exec_of("/usr/bin/nmap")))
        assert [d.key for d in outcome.detections] == [("/opt/parent",)]
        assert (await pool.status())[0].restarts == 2
    finally:
        await pool.close()


async def test_a_worker_whose_parent_dies_ends_without_a_word() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "vedette_detector.engine.worker",
            str(theirs.fileno()),
            pass_fds=(theirs.fileno(),),
            stderr=asyncio.subprocess.PIPE,
        )
    setup = pickle.dumps((rules("nmap"), ThreatLists(), EngineSettings(), ()))
    ours.sendall(pack(SETUP, setup) + setup + pack(STATUS, b""))
    ours.recv(1, socket.MSG_PEEK)  # an answer is there, and will not be read: closing resets the connection
    ours.sendall(pack(STATUS, b"") * 100)
    ours.close()
    _, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")


async def test_a_batch_that_kills_two_workers_is_refused_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # The worker imports the detector by name, as it does real ones.
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    killer = importlib.import_module("engine_killer").Killer()
    pool = WorkerPool(1, rules("nmap"), detectors=(killer,))
    await pool.start()
    try:
        with pytest.raises(BatchError) as caught:
            await pool.submit(frame("a", 1, exec_of("/bin/kill-the-worker")))
        assert caught.value.reason == "EngineCrashed"
        assert caught.value.header is not None
        assert caught.value.header.sequence == 1
        outcome = await pool.submit(frame("a", 2, exec_of("/usr/bin/nmap")))
        assert len(outcome.detections) == 1
    finally:
        await pool.close()


async def test_a_malformed_batch_is_the_batch_error_of_the_engine() -> None:
    good = frame("a", 1, exec_of("/usr/bin/nmap"))
    pool = WorkerPool(1, rules("nmap"))
    await pool.start()
    try:
        with pytest.raises(BatchError) as caught:
            await pool.submit(good[:-3] + b"xyz")
        assert caught.value.reason == "PayloadChecksum"
        records, _ = encode_events([exec_of("/bin/true")])
        with pytest.raises(BatchError) as bad_record:
            await pool.submit(encode_batch(make_header("a", 2, 4), records + bytes(8)))
        assert bad_record.value.reason == "BadRecord"
        assert (await pool.submit(good)).event_count == 3
    finally:
        await pool.close()


async def test_a_closed_pool_says_so() -> None:
    pool = WorkerPool(1, rules("nmap"))
    await pool.start()
    await pool.close()
    with pytest.raises(EngineError, match="closed"):
        await pool.submit(frame("a", 1, exec_of("/usr/bin/nmap")))
