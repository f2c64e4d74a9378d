"""kill -9 of the detector and of the agent, again and again under load: nothing is lost, nothing comes twice.

The whole pipeline runs as a user runs it. Acts that each make a finding of their own go on all the time; in between one
part after the other is killed. Afterwards every act has exactly one finding with exactly one occurrence, and the
ledger balances.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.containers import HostSandbox
from vedette_cli import detector_client
from vedette_cli.errors import CommandError
from vedette_cli.location import Location
from vedette_detector.store import Filters, Finding, Store

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "2001:db8:bad::/48"
LOAD_RATE = 10_000

ACT = """
import socket, sys, time
n = 0
while True:
    n += 1
    address = f"2001:db8:bad::{n:x}"
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.connect((address, 443))
    print(address, flush=True)
    time.sleep(0.03)
"""


class Pipeline:
    """``vedette run`` on directories of its own; a part can be killed by name."""

    def __init__(self, directory: Path) -> None:
        self.location = Location(directory / "data", directory / "run")
        (directory / "lists").mkdir()
        (directory / "lists" / "list.txt").write_text(f"{NETWORK}\n")
        self.log = directory / "log"
        command = [sys.executable, "-m", "vedette_cli", "run", "--quiet", "--threat-lists", str(directory / "lists")]
        command += ["--data-dir", str(self.location.data_dir), "--run-dir", str(self.location.run_dir)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def pid(self, part: str) -> int:
        return int(json.loads(self.location.record.read_text())["parts"].get(part, {}).get("pid", 0))

    def kill(self, part: str) -> None:
        """Kill a part and wait for the next one of its name."""
        before = self.pid(part)
        os.kill(before, signal.SIGKILL)
        self.wait(lambda: self.pid(part) not in (0, before), f"the {part} was not started again")

    def accounts(self) -> list[dict[str, int]]:
        try:
            nodes = detector_client.get(self.location.socket, "/v1/status")["nodes"]
        except CommandError:
            return []
        return [entry for node in nodes if not node["silent"] for entry in node["ledger"]]

    def wait(self, done: Callable[[], bool], what: str, seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert self.process.poll() is None, f"vedette ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{what}:\n{self.log.read_text()[-4000:]}"
            time.sleep(0.05)

    def findings(self) -> dict[str, Finding]:
        """Findings by the remote address that they are about; two about one address would be a failure."""
        store = Store(self.location.database_url, read_only=True)
        out: dict[str, Finding] = {}
        for finding in store.list(Filters(types=("Backdoor:Runtime/C&CActivity.B",)), limit=100_000):
            action = finding.document["service"]["action"]["networkConnectionAction"]
            address = action["remoteIpDetails"]["ipAddressV6"]
            assert address not in out, f"two findings about {address}"
            assert len(store.occurrences(finding.id)) == 1
            out[address] = finding
        store.close()
        return out

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout=60)


@pytest.fixture
def pipeline(needs_root: None, bpf_object: Path) -> Iterator[Pipeline]:
    # Not pytest's directory: the agent, as another user, has to reach it.
    directory = Path(tempfile.mkdtemp(prefix="vedette-crash-"))
    directory.chmod(0o755)
    running = Pipeline(directory)
    try:
        running.wait(lambda: len(running.accounts()) == 1, "no agent reported")
        yield running
    finally:
        running.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def load(tmp_path: Path) -> Iterator[None]:
    program = tmp_path / "agent_load"
    subprocess.run(["gcc", "-O2", "-o", str(program), str(ROOT / "benchmarks" / "agent_load.c")], check=True)
    command = [str(program), "storm", "0", str(LOAD_RATE * 600), str(LOAD_RATE)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        yield
        process.kill()


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_doubled_when_parts_are_killed_under_load(pipeline: Pipeline, load: None) -> None:
    with HostSandbox() as place:
        place.run(["ip", "-6", "route", "add", "local", NETWORK, "dev", "lo"])
        actor = place.popen([sys.executable, "-I", "-S", "-c", ACT])
        time.sleep(1)
        for part in ("detector", "agent", "detector", "agent", "agent", "detector", "detector", "agent"):
            pipeline.kill(part)
            time.sleep(3)
        actor.terminate()
        acts = actor.communicate()[0].split()
        assert len(acts) > 300
        pipeline.wait(lambda: len(pipeline.findings()) >= len(acts), "acts have no finding")
    assert pipeline.stop() == 0
    found = pipeline.findings()
    assert set(acts) <= set(found)
    # The last act may have been made and not told, when the actor was stopped in between.
    assert len(set(found) - set(acts)) <= 1
    assert {f.count for f in found.values()} == {1}
    store = Store(pipeline.location.database_url, read_only=True)
    (account,) = store.accounts()
    store.close()
    assert account.balance == "balanced"
    assert account.final
    assert account.emitted == account.received > LOAD_RATE
    assert (account.dropped, account.spool_lost_events, account.missing_batches) == (0, 0, 0)


@pytest.mark.timeout(120)
def test_a_supervisor_that_is_killed_leaves_its_parts_watching_and_the_next_takes_over(pipeline: Pipeline) -> None:
    parts = {name: pipeline.pid(name) for name in ("detector", "agent")}
    os.kill(pipeline.process.pid, signal.SIGKILL)
    pipeline.process.wait()
    time.sleep(1)
    assert all(Path(f"/proc/{pid}").exists() for pid in parts.values())
    assert pipeline.accounts()
    pipeline.process = subprocess.Popen(
        pipeline.process.args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    pipeline.wait(lambda: pipeline.pid("agent") not in (0, parts["agent"]), "the agent was not replaced")
    assert pipeline.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in parts.values())
