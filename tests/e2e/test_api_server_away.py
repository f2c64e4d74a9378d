"""The API server is away for more than a minute: findings go on with what is known, and say what is not.

First it hangs: connections are open and nobody answers, so that nobody can know at once. Tokens are to be reviewed
again meanwhile; pods that are known keep their names. Then it dies, and a pod begins of which only the kubelet knows.
Then it comes back.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_kinds import ATTACK_AND_STAY, NAMESPACE, container
from e2e_world import World, container_part, eventually, kill, kubernetes, pod_part, workload_part

from tools.attacks.catalogue import C2_IP, C2_LISTED_IP, CRYPTO_MINER
from tools.attacks.programs import DIRECTORY
from tools.containers.pod import Pod

Json = dict[str, Any]
TOKEN_REVIEWS_ARE_ASKED_AGAIN_S = 62
"""A review is good for 60 s (`token_cache_s`)."""


class Outage:
    """The API server, stopped as a machine that hangs is: connections open and nobody answers."""

    def __init__(self, world: World, pod: Pod) -> None:
        self.world = world
        self.pod = pod
        assert world.cluster.local is not None
        self.cluster = world.cluster.local
        (pid,) = [c.pid for c in self.cluster.status().components if c.name == "kube-apiserver"]
        assert pid is not None
        self.pid = pid
        kill(pid, signal.SIGSTOP)
        self.began = time.monotonic()

    def in_container(self, container_id: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container without the API server, by its runtime."""
        return subprocess.run(
            self.cluster.in_node(
                *("ctr", "--namespace", "k8s.io", "tasks", "exec", "--exec-id", secrets.token_hex(4)),
                *(container_id, *command),
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def die(self) -> None:
        kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Whatever has become of it: it runs again."""
        kill(self.pid, signal.SIGCONT)
        self.cluster.up()


@pytest.fixture(scope="module")
def outage(world: World, kinds: World) -> Iterator[Outage]:
    if world.cluster.local is None:
        pytest.skip("place: this test needs a node that is this machine (CLUSTER=local)")
    with world.pod(labels={"app": "known"}) as pod:
        world.mark()
        made = Outage(world, pod)
        try:
            yield made
        finally:
            made.end()


def test_known_pod_keeps_its_name(outage: Outage) -> None:
    world, pod = outage.world, outage.pod
    assert pod.container_id is not None

    outage.in_container(pod.container_id, f"/{DIRECTORY}/net", "tcp", C2_LISTED_IP, "443")

    finding = world.wait_for(pod.uid, C2_IP)
    assert workload_part(finding)["name"] == pod.name
    assert container_part(finding)["name"] == "main"


def test_deliveries_go_on_when_tokens_are_to_be_reviewed_again(outage: Outage) -> None:
    world, pod = outage.world, outage.pod
    assert pod.container_id is not None
    # Not a guess at how long something takes: a review is good for so long.
    time.sleep(max(0.0, outage.began + TOKEN_REVIEWS_ARE_ASKED_AGAIN_S - time.monotonic()))

    outage.in_container(pod.container_id, "/usr/local/bin/xmrig", "--help")
    world.mark()

    finding = world.wait_for(pod.uid, CRYPTO_MINER)
    assert workload_part(finding)["name"] == pod.name


def test_unknown_pod_says_what_is_missing(outage: Outage) -> None:
    """A static pod starts without the API server, which learns of it when it is back."""
    world, name = outage.world, f"unseen-{secrets.token_hex(3)}"
    outage.die()
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container(command=ATTACK_AND_STAY)]},
    }
    known = {f["id"] for f in world.findings.all()}
    file = outage.cluster.static_pods / f"{name}.json"
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(manifest))
    draft.rename(file)

    def new() -> Json | None:
        found = [f for f in world.findings.all() if f["id"] not in known and f["type"] == C2_IP]
        return next((f for f in found if f["resource"]["resourceType"] == "EKSCluster"), None)

    try:
        finding = eventually(new, "the finding about a pod that nobody has reported", 60)
    finally:
        file.unlink()

    assert pod_part(finding) == {}
    assert workload_part(finding)["uid"]
    missing = " ".join(kubernetes(finding)["missing"])
    assert "pod" in missing
    assert "not answered since" in missing, missing
    assert kubernetes(finding)["node"]["name"] == world.node


def test_all_recovers(outage: Outage) -> None:
    world = outage.world
    outage.end()

    def recovered() -> Json | None:
        with contextlib.suppress(Exception):
            state = world.installation.status() or {}
            context = state["detector"]["kubernetes"]
            return state if context["connected"] and context["synced"] else None
        return None

    status = eventually(recovered, "the watches are connected again", 90, 0.5)
    reviews = status["detector"]["access"]["token_review"]
    assert reviews["admitted_without_review"] > 0, "deliveries went on by an earlier review"
    with world.pod(command=ATTACK_AND_STAY, addresses=False) as pod:
        finding = world.wait_for(pod.uid, C2_IP)
    assert workload_part(finding)["name"] == pod.name
    assert kubernetes(finding).get("missing", []) == []
    newest = max(world.node_status()["ledger"], key=lambda entry: entry["session"])
    assert newest["balance"] in ("balanced", "outstanding"), newest
