"""Every behaviour of the attack catalogue, for real: kernel, agent, detector, store. What must be found is, no more.

Vedette runs as a user runs it. After each behaviour a marker is performed on the host whose finding must come: batches
of a node are applied in order, so once it is there everything that the behaviour did has been judged. Nothing waits for
a fixed time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.attacks import CATALOGUE, Behaviour, Performed, ensure_programs, open_place, perform
from tools.attacks.catalogue import C2_IP, THREAT_LIST
from tools.attacks.programs import DIRECTORY
from tools.containers import HostSandbox, ensure_rootfs
from vedette_detector.store import Filters, Finding, Store

MARKER_IP = "203.0.113.99"
MARKER_PATIENCE_S = 30.0
SLACK_NS = 1_000_000_000
"""The wall clock may be adjusted between an act and the comparison."""


class World:
    """A running Vedette and a reader of its store."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        lists = directory / "lists"
        lists.mkdir()
        (lists / "test.txt").write_text(THREAT_LIST)
        (lists / "marker.txt").write_text(f"{MARKER_IP}\n")
        self.data = directory / "data"
        command = [sys.executable, "-m", "vedette_cli", "run", "--threat-lists", str(lists)]
        command += ["--data-dir", str(self.data), "--run-dir", str(directory / "run")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.said = ""
        assert self.process.stderr is not None
        while "watching" not in self.said:
            line = self.process.stderr.readline()
            assert line, f"vedette run ended: {self.said}"
            self.said += line
        self.store = Store(f"sqlite:///{self.data / 'detector' / 'findings.db'}", read_only=True)
        self.sandbox = HostSandbox()
        self.sandbox.__enter__()
        self.marks = 0
        self.mark()

    def _marker_count(self) -> int:
        found = self.store.list(Filters(types=(C2_IP,), resource_type="Instance"))
        return sum(f.count for f in found if is_marker(f))

    def mark(self) -> None:
        """Do something on the host that is found for certain, and wait until it is."""
        before = self._marker_count()
        done = self.sandbox.run([f"{ensure_programs() / DIRECTORY}/net", "tcp", MARKER_IP, "443"])
        assert done.returncode == 0
        deadline = time.monotonic() + MARKER_PATIENCE_S
        while self._marker_count() <= before:
            assert time.monotonic() < deadline, f"the marker's finding never came; vedette run said: {self.said}"
            time.sleep(0.01)

    def findings_of(self, done: Performed, since: int) -> list[Finding]:
        """Findings about a behaviour: in its container, and on the host with this test among the ancestors."""
        found, _ = self.store.since(since, Filters(archived=None))
        on_host = [f for f in found if f.resource_type == "Instance" and os.getpid() in ancestors(f)]
        in_container = [f for f in found if f.resource_id == done.container_id]
        return in_container + [f for f in on_host if not is_marker(f)]

    def close(self) -> None:
        self.sandbox.close()
        self.store.close()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        assert self.process.stderr is not None
        self.process.stderr.close()


def process_of(finding: Finding) -> dict[str, Any]:
    process: dict[str, Any] = finding.document["service"]["runtimeDetails"]["process"]
    return process


def ancestors(finding: Finding) -> set[int]:
    return {ancestor["pid"] for ancestor in process_of(finding).get("lineage", [])}


def is_marker(finding: Finding) -> bool:
    return finding.type == C2_IP and MARKER_IP in finding.document["description"]


@pytest.fixture(scope="module")
def world(needs_root: None, bpf_object: Path) -> Iterator[World]:
    for program in ("runc", "gcc", "openssl", "strace", "gdb"):
        if shutil.which(program) is None:
            pytest.skip(f"the attack catalogue needs {program}")
    ensure_rootfs()
    ensure_programs()
    directory = Path(tempfile.mkdtemp(prefix="vedette-findings-"))
    directory.chmod(0o755)
    made = World(directory)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(directory)


def carry_out(world: World, behaviour: Behaviour) -> tuple[Performed, list[Finding]]:
    since = world.store.cursor()
    with open_place(behaviour) as place:
        done = perform(behaviour, place)
        world.mark()
    return done, world.findings_of(done, since)


ATTACKS = [behaviour for behaviour in CATALOGUE if behaviour.findings]
ORDINARY = [behaviour for behaviour in CATALOGUE if not behaviour.findings]


@pytest.mark.parametrize("behaviour", ATTACKS, ids=lambda b: b.name)
def test_attack_is_found(world: World, behaviour: Behaviour) -> None:
    done, found = carry_out(world, behaviour)

    assert {f.type for f in found} == set(behaviour.findings), (done.output, [f.document for f in found])
    first = found[0]
    process = process_of(first)
    if behaviour.executable is not None:
        assert process["name"] == behaviour.executable
    if behaviour.severity is not None:
        assert first.severity == behaviour.severity
    assert os.getpid() in ancestors(first)
    # On the host somebody else may have done the same before and after: it is one finding then.
    assert boottime(first.first_seen_ns) <= done.ended + SLACK_NS
    assert boottime(first.last_seen_ns) >= done.began - SLACK_NS
    if behaviour.where == "container":
        assert first.document["resource"]["containerDetails"]["id"] == done.container_id
    else:
        assert first.resource_type == "Instance"


def boottime(wall_ns: int) -> int:
    """A wall clock time in ns since boot, the clock of `Performed`."""
    return wall_ns - (time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME))


@pytest.mark.parametrize("behaviour", ORDINARY, ids=lambda b: b.name)
def test_ordinary_behaviour_is_not_found(world: World, behaviour: Behaviour) -> None:
    done, found = carry_out(world, behaviour)

    assert [(f.type, process_of(f)["executablePath"], f.document["description"]) for f in found] == []
    assert done.returncode is not None


def test_catalogue_is_wide_enough() -> None:
    assert len(ATTACKS) >= 40
    assert len(ORDINARY) >= 30
    assert all(behaviour.look_alike for behaviour in ORDINARY)
    assert len({behaviour.name for behaviour in CATALOGUE}) == len(CATALOGUE)
