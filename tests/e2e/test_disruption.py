"""Parts that are killed, replaced and given new certificates while pods attack: nothing is lost, nothing comes twice.

A pod connects to one address of a listed network after another; each makes a finding of its own. Meanwhile the same pod
makes thousands of other events a second.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from e2e_world import World, eventually, kill, pod_part, process

from tools.attacks.catalogue import C2_IP, C2_LISTED_IP, C2_LISTED_NETWORK
from tools.attacks.programs import DIRECTORY
from tools.containers.pod import Pod
from tools.demo.installation import DETECTOR, NAMESPACE, ROOT
from vedette_cli.findings import dig
from vedette_detector.ledger import Note, NoteKind

Json = dict[str, Any]
STORM_RATE = 5_000
ACT = """
import socket, sys, time
for n in range(1, 65536):
    address = f"2001:db8:bad:{sys.argv[1]}::{n:x}"
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.connect((address, 443))
    print(address, flush=True)
    time.sleep(0.04)
"""


class Storm:
    """A pod that acts and makes noise until it is told to stop."""

    def __init__(self, world: World, pod: Pod, network: str) -> None:
        self.pod = pod
        self._world = world
        self._acting = pod.popen(["python3", "-I", "-S", "-c", ACT, network])
        self._noise = pod.popen(["/load/agent_load", "storm", "0", str(STORM_RATE * 600), str(STORM_RATE)])
        self.acts: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        eventually(lambda: len(self.acts) > 10, "the pod acts")

    def _read(self) -> None:
        assert self._acting.stdout is not None
        for line in self._acting.stdout:
            self.acts.append(line.strip())

    def go_on(self, count: int = 25) -> None:
        """Wait until the pod has acted so often again."""
        already = len(self.acts)
        eventually(lambda: len(self.acts) >= already + count, "the pod goes on acting")

    def stop(self) -> list[str]:
        """End both, in the pod too; what was done."""
        for pid in self._processes():
            kill(pid, signal.SIGTERM)
        for running in (self._acting, self._noise):
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(20)
            running.kill()
        self._reader.join(20)
        for running in (self._acting, self._noise):
            for pipe in (running.stdout, running.stderr):
                if pipe is not None:
                    pipe.close()
        return self.acts

    def _processes(self) -> list[int]:
        from tools.containers.pod import pids_of_container

        assert self.pod.container_id is not None
        return [pid for pid in pids_of_container(self.pod.container_id) if pid != self.pod.init_pid]

    def counts(self) -> dict[str, int]:
        """How often each address was told, over the findings about this pod."""
        told: dict[str, int] = {}
        for finding in self._world.findings.of_pod(self.pod.uid):
            action = dig(finding, "service", "action", "networkConnectionAction", "remoteIpDetails") or {}
            address = action.get("ipAddressV6")
            if finding["type"] == C2_IP and address:
                assert address not in told, f"two findings about {address}"
                told[address] = finding["service"]["count"]
        return told

    def assert_all_told_once(self) -> None:
        """Every act has one finding with one occurrence, and names the pod."""
        acts = self.stop()
        eventually(lambda: set(acts) <= set(self.counts()), f"findings of all {len(acts)} acts", 60, 0.3)
        assert {a: n for a, n in self.counts().items() if n != 1} == {}
        assert set(self.counts()) == set(acts)


@pytest.fixture(scope="module")
def load_program(world: World) -> Path:
    """The directory with the load generator, static, where the node finds it."""
    directory = world.directory / "load"
    directory.mkdir(exist_ok=True)
    source = ROOT / "benchmarks" / "agent_load.c"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(directory / "agent_load"), str(source)], check=True)
    return directory


@pytest.fixture
def storm(node_here: World, load_program: Path) -> Iterator[Storm]:
    world = node_here
    mounts = [{"destination": "/load", "type": "bind", "source": str(load_program), "options": ["bind", "ro"]}]
    pod = world.pod(mounts=mounts, labels={"app": "storm"})
    with pod:
        subprocess.run(
            [
                *("nsenter", f"--net=/proc/{pod.init_pid}/ns/net"),
                *("ip", "-6", "route", "replace", "local", C2_LISTED_NETWORK, "dev", "lo"),
            ],
            check=True,
        )
        made = Storm(world, pod, f"{1 + int(time.time()) % 65_534:x}")
        try:
            yield made
        finally:
            made.stop()


def sessions(world: World) -> dict[int, Json]:
    """The ledger's entries by session."""
    return {entry["session"]: entry for entry in world.node_status()["ledger"]}


def assert_balanced(world: World, before: Json) -> None:
    """Nothing of what was emitted since ``before`` was lost, and all has arrived."""

    def settled() -> Json | None:
        status = world.node_status()
        entries = status["ledger"]
        # Other programs of this machine go on: a little is always on the way.
        on_the_way = sum(entry["outstanding"] for entry in entries)
        return status if on_the_way < STORM_RATE and not status["silent"] else None

    after = eventually(settled, "the ledger settles", 90, 0.5)
    for entry in since(before, after):
        assert_adds_up(entry)
        assert entry["balance"] in ("balanced", "outstanding"), entry
    assert losses(after) == losses(before)


def since(before: Json, after: Json) -> list[Json]:
    """The ledger's entries without those of sessions in which something had been lost before."""
    lost = {entry["session"] for entry in before["ledger"] if entry["balance"] in ("lost", "unbalanced")}
    return [entry for entry in after["ledger"] if entry["session"] not in lost]


def assert_adds_up(entry: Json) -> None:
    """What the kernel emitted is accounted for."""
    accounted = entry["received"] + entry["outstanding"] + entry["spool_lost_events"] + entry["ring_lost_events"]
    assert entry["emitted"] == accounted, entry
    assert entry["balance"] != "unbalanced", entry


LOSSES = (
    *("dropped", "spool_lost_events", "spool_lost_batches", "ring_lost_events"),
    *("missing_batches", "rejected_batches"),
)


def losses(status: Json) -> Json:
    """Sums over sessions of what was lost, by where."""
    return {name: sum(entry[name] for entry in status["ledger"]) for name in LOSSES}


def notes(world: World, kind: NoteKind, began: int) -> list[Note]:
    return [note for note in world.findings.notes(world.node) if note.kind is kind and note.at_ns >= began]


def restarts(world: World, component: str) -> int:
    pod = world.detector_pod() if component == "detector" else world.agent_pod()
    return sum(s["restartCount"] for s in pod["status"].get("containerStatuses", []))


def ready(world: World, pod: Callable[[], Json]) -> bool:
    with contextlib.suppress(Exception):
        statuses = pod()["status"].get("containerStatuses", [])
        return bool(statuses) and all(s["ready"] for s in statuses)
    return False


def test_detector_killed_in_a_storm(node_here: World, storm: Storm) -> None:
    world = node_here
    before, restarted = world.node_status(), restarts(world, "detector")

    kill(world.pids(world.detector_pod(), "detector")[0])

    eventually(lambda: restarts(world, "detector") > restarted, "the kubelet starts the detector again", 90, 0.3)
    world.status()
    storm.go_on()
    storm.assert_all_told_once()
    assert_balanced(world, before)


def test_detector_pod_deleted_in_a_storm(node_here: World, storm: Storm) -> None:
    world = node_here
    before, uid = world.node_status(), world.detector_pod()["metadata"]["uid"]

    world.kubectl.run("delete", "pod", DETECTOR, f"--namespace={NAMESPACE}", "--force", "--grace-period=0")

    def replaced() -> bool:
        return world.detector_pod()["metadata"]["uid"] != uid and ready(world, world.detector_pod)

    def look() -> bool:
        with contextlib.suppress(Exception):
            return replaced()
        return False

    eventually(look, "another pod of the detector is ready", 90, 0.3)
    world.status()
    storm.go_on()
    storm.assert_all_told_once()
    assert_balanced(world, before)


def told_of_gap(world: World, began: int, what: str) -> Note:
    """The ledger's note about the time without an agent."""
    found = eventually(lambda: notes(world, NoteKind.WITHOUT_AGENT, began), f"the gap is stated: {what}", 60, 0.3)
    note = found[0]
    print(f"{what}: {note.message}")
    assert re.match(r"no agent watched for \d+\.\d{3} s", note.message)
    assert note.from_ns is not None
    assert note.to_ns is not None
    assert note.from_ns <= note.to_ns
    return note


def test_agent_killed(node_here: World, storm: Storm) -> None:
    """What it had seen is in the spool and arrives; what happened without it is stated as a gap."""
    world = node_here
    before, began, known = world.node_status(), time.time_ns(), set(sessions(world))
    restarted = restarts(world, "agent")

    kill(agent_process(world))

    eventually(lambda: restarts(world, "agent") > restarted, "the kubelet starts the agent again", 90, 0.3)
    eventually(lambda: set(sessions(world)) - known, "a new session reports", 60, 0.3)
    note = told_of_gap(world, began, "agent killed with SIGKILL")
    assert "the agent before was killed" in note.message
    storm.go_on()
    assert_gap_only(world, storm)
    after = world.node_status()
    for entry in since(before, after):
        assert_adds_up(entry)
    # At most what was in the kernel's ring when it died, and that is said; whatever had left it has arrived.
    only_the_ring = {name: 0 for name in LOSSES if name != "ring_lost_events"}
    assert {name: losses(after)[name] - losses(before)[name] for name in only_the_ring} == only_the_ring


def agent_process(world: World) -> int:
    return world.pids(world.agent_pod(), "agent")[0]


def assert_gap_only(world: World, storm: Storm) -> None:
    """Acts are missing in one row at most, the gap's, and none came twice."""
    acts = storm.stop()
    eventually(lambda: acts[-1] in storm.counts(), "the last act's finding", 60, 0.3)
    told = storm.counts()
    assert {a: n for a, n in told.items() if n != 1} == {}
    missing = [n for n, act in enumerate(acts) if act not in told]
    assert missing == list(range(missing[0], missing[0] + len(missing))) if missing else True
    assert set(told) <= set(acts)
    print(f"{len(missing)} of {len(acts)} acts happened without an agent")


def test_agent_pod_deleted(node_here: World, storm: Storm) -> None:
    world = node_here
    began, uid = time.time_ns(), world.agent_pod()["metadata"]["uid"]
    known = set(sessions(world))

    world.kubectl.run(
        "delete", "pod", world.agent_pod()["metadata"]["name"], f"--namespace={NAMESPACE}", "--wait=false"
    )

    eventually(lambda: set(sessions(world)) - known, "a new session reports", 90, 0.3)
    assert world.agent_pod()["metadata"]["uid"] != uid
    note = told_of_gap(world, began, "agent pod deleted")
    # It was asked to end and had the time to: it drained the ring and said that it ends.
    assert "killed" not in note.message
    storm.go_on()
    assert_gap_only(world, storm)


def test_agents_rolled_out(node_here: World, storm: Storm) -> None:
    world = node_here
    before, began, known = world.node_status(), time.time_ns(), set(sessions(world))

    world.kubectl.run("rollout", "restart", "daemonset/vedette-agent", f"--namespace={NAMESPACE}")
    world.installation.wait_for_rollout()

    eventually(lambda: set(sessions(world)) - known, "a new session reports", 60, 0.3)
    note = told_of_gap(world, began, "rollout of the agents")
    assert "killed" not in note.message
    storm.go_on()
    assert_gap_only(world, storm)
    assert_balanced(world, before)


def test_spool_of_a_killed_agent_is_delivered(node_here: World) -> None:
    """The detector is away, a pod attacks, the agent is killed: the next one delivers what the first one saw."""
    world = node_here
    with world.pod() as pod:
        world.kubectl.run("scale", "statefulset/vedette-detector", f"--namespace={NAMESPACE}", "--replicas=0")
        world.kubectl.run(
            "wait", "--for=delete", f"pod/{DETECTOR}", f"--namespace={NAMESPACE}", "--timeout=60s", timeout_s=90
        )
        try:
            restarted = restarts(world, "agent")
            spool = world.cluster.local.node_path("/var/lib/vedette/agent")  # type: ignore[union-attr]
            began = time.time_ns()
            assert pod.run([f"/{DIRECTORY}/net", "tcp", C2_LISTED_IP, "443"]).returncode == 0
            eventually(lambda: spooled_since(spool, began), "the agent has written the act to its spool")
            kill(agent_process(world))
            eventually(lambda: restarts(world, "agent") > restarted, "the agent is started again", 90, 0.3)
        finally:
            world.kubectl.run("scale", "statefulset/vedette-detector", f"--namespace={NAMESPACE}", "--replicas=1")
        world.installation.wait_for_rollout()

        finding = world.wait_for(pod.uid, C2_IP, timeout_s=60)

    assert process(finding)["name"] == "net"
    assert pod_part(finding)["name"] == pod.name


def spooled_since(spool: Path, moment_ns: int) -> bool:
    """Whether batches made two seconds after a moment are on the disk: the agent writes several in a second."""
    from vedette_events.framing import BatchError, iter_batches

    offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    for segment in spool.rglob("*"):
        if not segment.is_file():
            continue
        with contextlib.suppress(OSError, BatchError):
            for header, _ in iter_batches(segment.read_bytes()):
                if header.created_ns + offset > moment_ns + 500_000_000:
                    return True
    return False


def served_certificate(world: World, port: int) -> x509.Certificate:
    """The certificate that the detector shows now."""
    context = ssl.create_default_context(cafile=str(world.installation.tls / "ca.crt"))
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    with context.wrap_socket(raw, server_hostname=f"vedette-detector.{NAMESPACE}.svc") as secured:
        found = secured.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found)


def test_certificate_rotated_under_load(node_here: World, storm: Storm) -> None:
    world = node_here
    before, restarted = world.node_status(), restarts(world, "detector")
    world.installation.certificates("--renew")
    wanted = x509.load_pem_x509_certificate((world.installation.tls / "tls.crt").read_bytes())
    files = {
        name: base64.b64encode((world.installation.tls / name).read_bytes()).decode() for name in ("tls.crt", "tls.key")
    }

    world.kubectl.run(
        *("patch", "secret", "vedette-detector-tls", f"--namespace={NAMESPACE}", "--type=merge"),
        *("-p", json.dumps({"data": files})),
    )
    # The kubelet looks at a pod's volumes once a minute, and when the pod changes.
    world.kubectl.run(
        "annotate", "pod", DETECTOR, f"--namespace={NAMESPACE}", "--overwrite", f"example.com/seen={os.getpid()}"
    )

    with world.forwarded() as port:
        eventually(lambda: served_certificate(world, port) == wanted, "the new certificate is served", 120, 0.5)
    storm.go_on()
    storm.assert_all_told_once()
    assert_balanced(world, before)
    assert restarts(world, "detector") == restarted
