"""Vedette in a cluster, in figures (``make bench-cluster``): prints each beside the load average, writes JSON.

- ``cluster_start_cold_s``: from nothing to a node that is ready and a DNS that answers, components cached;
  ``cluster_start_warm_s``: ``up`` of a cluster that is up; ``install_s``: from the first object applied to an agent
  that has reported.
- ``image_MB_*``: compressed, as a registry would send them.
- ``agent_*``: private memory of the agent's process (its ring and maps are the kernel's and are not in it) and its CPU
  time in percent of one core: while nothing but the cluster goes on, and while a pod makes `STORM_RATE` events a
  second.
- ``act_to_finding_ms_*``: a process in a pod connects to listed addresses, each a finding of its own, and notes the
  time before each call; a reader polls the detector's database. From the one to the other, quiet and in the storm.
- ``pod_*``: a pod whose first program attacks: from when that program was started (the event's time) to the stored
  finding with the pod's name, and how many findings lacked something of it.
- ``rollout_gap_s``: how long no agent watched while the DaemonSet was rolled out, as the ledger says.

Needs root and what the local cluster needs. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.attacks.catalogue import C2_LISTED_IP, C2_LISTED_NETWORK, THREAT_LIST
from tools.attacks.programs import DIRECTORY
from tools.containers.pod import Kubectl, Pod, pids_of_container
from tools.demo.installation import (
    ATTACK_IMAGE,
    DETECTOR,
    IMAGES,
    NAMESPACE,
    Installation,
    archive,
    build_images,
    node_kubectl,
)
from tools.localcluster.cluster import Cluster
from vedette_cli.findings import dig, extras
from vedette_detector.ledger import NoteKind
from vedette_detector.store import Filters, Store

ROOT = Path(__file__).resolve().parents[1]
ACTS = 120
PAUSE_S = 0.12
STORM_RATE = 20_000
INSTANT_PODS = 20
SETTLE_S = 10.0
SAMPLE_S = 20.0
PATIENCE_S = 60.0
WORK = "bench"

ACT = """
import socket, sys, time
first, count, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for n in range(count):
    address = f"2001:db8:bad::{first + n:x}"
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        began = time.time_ns()
        s.connect((address, 443))
    print(address, began, flush=True)
    time.sleep(pause)
"""


class Figures:
    """What was measured, printed as it comes."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def add(self, **values: float | None) -> None:
        """Take figures, with the machine's load at this moment."""
        load = os.getloadavg()[0]
        for name, value in values.items():
            self.values[name] = value
            shown = "-" if value is None else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
            print(f"  {name:44} {shown:>12}   load {load:.2f}", flush=True)
        self.values["load_average"] = max(self.values.get("load_average", 0.0), load)


class Reader:
    """The detector's database, polled as any consumer would."""

    def __init__(self, database: Path) -> None:
        self.store = Store(f"sqlite:///{database}", read_only=True)
        self._cursor = self.store.cursor()

    def new(self) -> list[tuple[dict[str, Any], int]]:
        """Findings that are new or changed, and when they were read (ns since the epoch)."""
        found, self._cursor = self.store.since(self._cursor, Filters(archived=None))
        now = time.time_ns()
        return [(f.document, now) for f in found]


def percentiles(values: Sequence[float], name: str) -> dict[str, float]:
    """Median, 99th percentile and greatest."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"{name}_p50": cuts[49], f"{name}_p99": cuts[98], f"{name}_max": max(values)}


def wait_until(condition: Any, what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Wait for something true.

    Raises:
        SystemExit: it did not come.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)
    return value


def agent_pid(kubectl: Kubectl) -> int:
    """The agent's process on this machine."""
    pods = kubectl.json("get", "pods", f"--namespace={NAMESPACE}", "-l", "app.kubernetes.io/component=agent")["items"]
    (status,) = pods[0]["status"]["containerStatuses"]
    return pids_of_container(str(status["containerID"]).partition("://")[2])[0]


def private_mb(pid: int) -> float:
    """Memory that only this process has (``Private_*`` of /proc/PID/smaps_rollup), MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


def cpu_s(pid: int) -> float:
    """CPU time of a process, user and system (fields 14 and 15 of /proc/PID/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def agent_use(pid: int, name: str, seconds: float = SAMPLE_S) -> dict[str, float]:
    """Memory now and CPU over some time, in percent of one core."""
    before, began = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    used = (cpu_s(pid) - before) / (time.monotonic() - began)
    return {f"agent_private_mb_{name}": private_mb(pid), f"agent_cpu_percent_{name}": used * 100}


def latencies(pod: Pod, reader: Reader, first: int) -> list[float]:
    """From each act to its stored finding, ms."""
    process = pod.popen(["python3", "-I", "-S", "-c", ACT, str(first), str(ACTS), str(PAUSE_S)])
    seen: dict[str, int] = {}
    deadline = time.monotonic() + ACTS * (PAUSE_S + 0.5) + PATIENCE_S
    while len(seen) < ACTS:
        if time.monotonic() > deadline:
            raise SystemExit(f"{ACTS - len(seen)} of {ACTS} acts have no finding")
        for document, read in reader.new():
            address = dig(document, "service", "action", "networkConnectionAction", "remoteIpDetails", "ipAddressV6")
            if dig(extras(document), "kubernetes", "pod", "uid") == pod.uid and address:
                seen.setdefault(str(address), read)
        time.sleep(0.005)
    output, errors = process.communicate(timeout=60)
    times = {address: int(began) for address, began in (line.split() for line in output.splitlines())}
    if len(times) != ACTS:
        raise SystemExit(f"the acts failed: {errors}")
    return [(seen[address] - began) / 1e6 for address, began in times.items()]


@contextlib.contextmanager
def storm(pod: Pod) -> Iterator[None]:
    """The pod makes `STORM_RATE` events a second meanwhile."""
    process = pod.popen(["/load/agent_load", "storm", "0", str(STORM_RATE * 3600), str(STORM_RATE)])
    try:
        time.sleep(2)
        yield
    finally:
        for pid in pids_of_container(str(pod.container_id)):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "agent_load":
                    os.kill(pid, 15)
        process.communicate(timeout=60)


def instant_pods(kubectl: Kubectl, reader: Reader) -> dict[str, float]:
    """Pods whose first program attacks; one after another, as they are scheduled."""
    waits: list[float] = []
    starts: list[float] = []
    incomplete = 0
    for _ in range(INSTANT_PODS):
        name = f"instant-{secrets.token_hex(3)}"
        pod = Pod(
            kubectl, ATTACK_IMAGE, namespace=WORK, name=name, command=[f"/{DIRECTORY}/net", "tcp", C2_LISTED_IP, "443"]
        )
        applied = time.time_ns()
        kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(pod.manifest()))

        def look(name: str = name) -> tuple[dict[str, Any], int] | None:
            for document, read in reader.new():
                if name in json.dumps(document.get("resource")) or name in json.dumps(
                    extras(document).get("kubernetes")
                ):
                    return document, read
            return None

        document, read = wait_until(look, f"the finding about pod {name}")
        acted = datetime.fromisoformat(document["service"]["eventFirstSeen"].replace("Z", "+00:00")).timestamp() * 1e9
        starts.append((acted - applied) / 1e6)
        waits.append((read - acted) / 1e6)
        incomplete += bool(dig(extras(document), "kubernetes", "missing"))
        kubectl.run("delete", "pod", name, f"--namespace={WORK}", "--wait=false")
    return {
        **percentiles(starts, "pod_applied_to_first_act_ms"),
        **percentiles(waits, "pod_first_act_to_named_finding_ms"),
        "pod_findings_with_something_missing": float(incomplete),
    }


def rollout(kubectl: Kubectl, installation: Installation, reader: Reader, node: str) -> dict[str, float]:
    """The ledger's own word on the time without an agent."""
    since, began = time.time_ns(), time.monotonic()
    kubectl.run("rollout", "restart", "daemonset/vedette-agent", f"--namespace={NAMESPACE}")

    def gap() -> float | None:
        for note in reader.store.notes(node):
            if note.kind is NoteKind.WITHOUT_AGENT and note.at_ns >= since:
                match = re.search(r"no agent watched for ([\d.]+) s", note.message)
                return float(match[1]) if match else None
        return None

    seconds = wait_until(gap, "the gap is in the ledger", 120)
    told = time.monotonic() - began
    installation.wait_for_rollout()
    return {"rollout_gap_s": seconds, "rollout_told_after_s": told, "rollout_s": time.monotonic() - began}


def measure(figures: Figures, directory: Path) -> None:
    """Everything, on a cluster of its own."""
    build_images()
    sizes = json.loads((ROOT / "build/images/sizes.json").read_text())
    figures.add(**{f"image_mb_{name}": entry["compressed_bytes"] / 1e6 for name, entry in sizes.items()})
    cluster = Cluster("bench", say=lambda _: None)
    cluster.down()
    try:
        began = time.monotonic()
        cluster.up()
        figures.add(cluster_start_cold_s=time.monotonic() - began)
        began = time.monotonic()
        cluster.up()
        figures.add(cluster_start_warm_s=time.monotonic() - began)
        began = time.monotonic()
        for image in IMAGES:
            cluster.load_image(archive(image))
        figures.add(images_loaded_s=time.monotonic() - began)
        in_cluster(figures, cluster, directory)
        began = time.monotonic()
    finally:
        cluster.down()
    figures.add(cluster_down_s=time.monotonic() - began)


def in_cluster(figures: Figures, cluster: Cluster, directory: Path) -> None:
    """What is measured with Vedette installed."""
    kubectl = Kubectl(cluster.kubeconfig, node_kubectl(cluster.layout.state_file))
    installation = Installation(kubectl, directory, cluster="bench", threat_lists={"list.txt": THREAT_LIST})
    installation.certificates()
    began = time.monotonic()
    installation.apply()
    installation.wait_until_watched(120)
    figures.add(install_s=time.monotonic() - began)
    installation.wait_for_rollout()
    claim = kubectl.json("get", "pvc", f"data-{DETECTOR}", f"--namespace={NAMESPACE}")
    volume = kubectl.json("get", "pv", claim["spec"]["volumeName"])
    reader = Reader(Path(volume["spec"]["local"]["path"]) / "findings.db")
    kubectl.run("create", "namespace", WORK)
    load = directory / "load"
    load.mkdir()
    source = ROOT / "benchmarks" / "agent_load.c"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(load / "agent_load"), str(source)], check=True)
    mounts = [{"destination": "/load", "type": "bind", "source": str(load), "options": ["bind", "ro"]}]
    with Pod(kubectl, ATTACK_IMAGE, namespace=WORK, name="load", mounts=mounts) as pod:
        route = ["ip", "-6", "route", "replace", "local", C2_LISTED_NETWORK, "dev", "lo"]
        subprocess.run(["nsenter", f"--net=/proc/{pod.init_pid}/ns/net", *route], check=True)
        time.sleep(SETTLE_S)
        agent = agent_pid(kubectl)
        figures.add(**agent_use(agent, "idle"))
        figures.add(**percentiles(latencies(pod, reader, 0x1000), "act_to_finding_ms"))
        with storm(pod):
            figures.add(**agent_use(agent, "storm"))
            figures.add(**percentiles(latencies(pod, reader, 0x2000), "act_to_finding_ms_storm"))
        status = installation.status() or {}
        entries = [entry for node in status.get("nodes") or [] for entry in node["ledger"]]
        figures.add(dropped_events=float(sum(entry["dropped"] for entry in entries)))
    figures.add(**instant_pods(kubectl, reader))
    figures.add(**rollout(kubectl, installation, reader, cluster.node_name))
    reader.store.close()


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="make bench-cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-cluster.json")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Linux {os.uname().release}, load average {os.getloadavg()[0]:.2f} at the start")
    figures = Figures()
    directory = Path(tempfile.mkdtemp(prefix="vedette-bench-"))
    try:
        measure(figures, directory)
    finally:
        shutil.rmtree(directory)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(figures.values, indent=2) + "\n")
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
