"""``make demo``: a real Kubernetes on this machine, Vedette in it, attacks from pods; then all is gone.

Everything is done as a user would do it: images built from the Dockerfile, ``vedette certificates``, ``vedette
manifests | kubectl apply``, findings read through ``kubectl exec``. Exit code 1 when a finding that must come does not,
names another pod, or one comes that must not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tools.attacks import Behaviour, by_name, perform
from tools.attacks.catalogue import THREAT_LIST
from tools.containers.pod import Kubectl, Pod, PodError
from tools.demo.installation import (
    ATTACK_IMAGE,
    DETECTOR,
    IMAGES,
    NAMESPACE,
    Installation,
    InstallationError,
    archive,
    build_images,
    node_kubectl,
)
from tools.demo.script import IN_PODS
from tools.localcluster.errors import ClusterError
from vedette_cli.findings import dig, process_line
from vedette_cli.output import band, severity_style
from vedette_cli.text import safe

SHOP = "shop"
"""The namespace whose pods are attacked."""
PATIENCE_S = 8.0
QUIET_S = 1.5


@dataclass
class Outcome:
    """What came of one behaviour in a pod."""

    behaviour: Behaviour
    pod: str
    findings: list[tuple[dict[str, Any], float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Follower:
    """``kubectl exec vedette-detector-0 -- vedette findings watch -o json``, and what it has printed."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._process = subprocess.Popen(
            kubectl.command(
                *("exec", f"--namespace={NAMESPACE}", DETECTOR, "--"),
                *("vedette", "findings", "watch", "--since", "1h", "-o", "json"),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._lines: queue.SimpleQueue[tuple[dict[str, Any], float]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            now = time.time()
            with contextlib.suppress(ValueError):
                self._lines.put((json.loads(line), now))

    def take(self, timeout_s: float) -> tuple[dict[str, Any], float] | None:
        """The next finding and when it was read (seconds since the epoch); None when none comes in time."""
        try:
            return self._lines.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None

    def close(self) -> None:
        """Stop following."""
        self._process.terminate()
        self._process.wait()


def workload(finding: dict[str, Any]) -> dict[str, Any]:
    """GuardDuty's ``kubernetesWorkloadDetails`` of a finding; empty when it has none."""
    details = dig(finding, "resource", "kubernetesDetails", "kubernetesWorkloadDetails")
    return details if isinstance(details, dict) else {}


def pod_of(finding: dict[str, Any]) -> str:
    """Namespace and name of the pod that a finding is about; empty for none."""
    details = workload(finding)
    return f"{details.get('namespace')}/{details.get('name')}" if details else ""


def age_ms(finding: dict[str, Any], read: float) -> float:
    """Milliseconds from the act to when the finding was read."""
    seen = datetime.fromisoformat(str(dig(finding, "service", "eventLastSeen")).replace("Z", "+00:00"))
    return (read - seen.timestamp()) * 1000


def finding_line(finding: dict[str, Any], read: float) -> Text:
    line = Text("   → ", "dim")
    line.append(f"{age_ms(finding, read):>5.0f} ms  ", "green")
    severity = float(finding["severity"])
    line.append(f"{band(severity):>6} {severity:.1f}", severity_style(severity))
    line.append(f"  {safe(str(finding['type']))}", "bold")
    line.append(f"  {safe(pod_of(finding) or 'the node', limit=50)}  ")
    line.append(safe(process_line(finding), limit=70))
    return line


@contextlib.contextmanager
def step(show: Console, text: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    show.print(f"{text} ...", style="dim")
    began = time.monotonic()
    yield
    show.print(f"   {time.monotonic() - began:.1f} s", style="dim")


def play(behaviour: Behaviour, pod: Pod, follower: Follower, show: Console) -> Outcome:
    """Carry one behaviour out in a pod and wait for what it must bring."""
    outcome = Outcome(behaviour, f"{pod.namespace}/{pod.name}")
    acting = threading.Thread(target=lambda: perform(behaviour, pod))
    acting.start()
    missing = set(behaviour.findings)
    deadline = float("inf")
    while time.monotonic() < deadline:
        if deadline == float("inf") and not acting.is_alive():
            deadline = time.monotonic() + (PATIENCE_S if behaviour.findings else QUIET_S)
        got = follower.take(0.1)
        if got is not None:
            finding, read = got
            if pod_of(finding) != outcome.pod and finding["type"] not in behaviour.findings:
                continue  # something else on this machine
            if all(finding["id"] != known["id"] for known, _ in outcome.findings):
                show.print(finding_line(finding, read), no_wrap=True, overflow="ellipsis")
                outcome.findings.append((finding, read))
            if pod_of(finding) != outcome.pod:
                outcome.problems.append(f"{finding['type']} names {pod_of(finding) or 'no pod'}")
            elif finding["type"] not in behaviour.findings:
                outcome.problems.append(f"unexpected {finding['type']}")
            missing.discard(str(finding["type"]))
        if behaviour.findings and not missing and not acting.is_alive():
            break
    acting.join()
    outcome.problems += [f"no {kind} within {PATIENCE_S:.0f} s" for kind in sorted(missing)]
    for problem in outcome.problems:
        show.print(f"   ✘ {problem}", style="bold red")
    if not behaviour.findings and not outcome.problems:
        show.print("     quiet, as it should be", style="dim")
    return outcome


def table_of(outcomes: Sequence[Outcome]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in ("BEHAVIOUR", "POD", "FINDING"):
        table.add_column(name, no_wrap=True)
    table.add_column("ACT → SCREEN", justify="right", no_wrap=True)
    for outcome in outcomes:
        text = Text(", ".join(outcome.behaviour.findings) or "none, as it should be")
        if outcome.problems:
            text = Text("; ".join(outcome.problems), "bold red")
        mark = Text("✘", "bold red") if outcome.problems else Text("✔", "green")
        times = [age_ms(finding, read) for finding, read in outcome.findings]
        table.add_row(mark, outcome.behaviour.name, outcome.pod, text, f"{times[0]:.0f} ms" if times else "-")
    return table


def show_one(finding: dict[str, Any], show: Console) -> None:
    """The Kubernetes part of one finding, as Security Hub and people get it."""
    part = {
        "type": finding["type"],
        "resource": {k: v for k, v in finding["resource"].items() if k != "instanceDetails"},
    }
    show.print(Rule("one of them in GuardDuty's format (the resource)", style="bold"))
    show.print(json.dumps(part, indent=2)[:2400])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="behaviours to play instead of the usual ones")
    parser.add_argument("--keep", action="store_true", help="leave the cluster with Vedette running at the end")
    options = parser.parse_args()
    show = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 140)
    if os.geteuid() != 0:
        print(
            "make demo needs root: it starts a Kubernetes node and loads BPF programs (sudo make demo)", file=sys.stderr
        )
        return 1
    from tools.localcluster.cluster import Cluster

    texts = dict(IN_PODS)
    plays = [(by_name(n), texts.get(n, by_name(n).title)) for n in options.names or texts]
    show.print(Rule("Vedette in Kubernetes: demo", style="bold"))
    with step(show, "Building the images (minutes the first time, then seconds)"):
        build_images()
    cluster = Cluster(name="demo")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="vedette-demo-") as directory:
        try:
            with step(show, "Starting Kubernetes on this machine (its components are compiled the first time)"):
                cluster.up()
                for image in IMAGES:
                    cluster.load_image(archive(image))
            kubectl = Kubectl(cluster.kubeconfig, node_kubectl(cluster.layout.state_file))
            lists = {"demo.txt": THREAT_LIST}
            installation = Installation(kubectl, Path(directory), cluster="demo", threat_lists=lists)
            with step(show, "Installing Vedette: vedette certificates, vedette manifests | kubectl apply -f -"):
                installation.certificates()
                installation.apply()
                installation.wait_for_rollout()
                installation.wait_until_watched()
            show.print(kubectl.run("get", "pods", f"--namespace={NAMESPACE}", "-o", "wide").stdout.rstrip())
            kubectl.run("create", "namespace", SHOP)
            follower = Follower(kubectl)
            try:
                for number, (behaviour, explanation) in enumerate(plays, 1):
                    show.print()
                    heading = Text(f"{number:>2}/{len(plays)}  ", "dim")
                    heading.append(explanation, "bold")
                    show.print(heading, no_wrap=True, overflow="ellipsis")
                    with Pod(
                        kubectl,
                        ATTACK_IMAGE,
                        namespace=SHOP,
                        name=f"checkout-{number}",
                        labels={"app": "checkout"},
                        privileged=behaviour.privileged,
                        capabilities=behaviour.capabilities,
                        mounts=behaviour.mounts,
                    ) as pod:
                        pod.run(["mkdir", "-p", "/tmp/work"])
                        outcomes.append(play(behaviour, pod, follower, show))
            finally:
                follower.close()
            show.print()
            show.print(Rule("behaviour → pod → finding → time from act to screen", style="bold"))
            show.print(table_of(outcomes))
            show.print()
            example = next((f for o in outcomes for f, _ in o.findings), None)
            if example is not None:
                show_one(example, show)
            show.print(Rule("vedette status, in the detector's pod", style="bold"))
            show.print(installation.vedette("status").stdout.rstrip())
            if any(o.problems for o in outcomes):
                show.print(installation.logs(), style="dim")
        finally:
            if options.keep:
                show.print(
                    f"The cluster stays: export KUBECONFIG={cluster.kubeconfig}\n"
                    "End it with: make cluster-down ARGS='--name demo'"
                )
            else:
                with step(show, "Taking everything down"):
                    cluster.down()
    good = sum(not o.problems for o in outcomes)
    show.print(
        f"{good} of {len(plays)} behaviours judged as expected" + ("." if good == len(plays) else ": see ✘ above."),
        style="bold green" if good == len(plays) else "bold red",
    )
    return 0 if good == len(plays) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClusterError, InstallationError, PodError) as error:
        sys.exit(f"make demo: {error}")
