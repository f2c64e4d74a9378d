"""Whose pod it is: pods of every kind of workload, every kind of container, and what is in no pod at all.

Every container here attacks as its first act: its entry point connects to a listed address. So each test is also one of
a process in a pod that has only just come to be.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from e2e_kinds import CONNECT, NAMESPACE, find, pod_spec, workload
from e2e_world import World, container_part, eventually, kubernetes, pod_part, process, workload_part

from tools.attacks import ensure_programs
from tools.attacks.catalogue import C2_IP, C2_LISTED_IP, CRYPTO_MINER
from tools.attacks.programs import DIRECTORY
from tools.containers import Container, ensure_rootfs
from tools.containers.container import cgroup_roots
from tools.containers.pod import pids_of_container
from tools.demo.installation import ATTACK_IMAGE

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("name", "kind", "owner"),
    [
        ("web", "Deployment", "web"),
        ("db", "StatefulSet", "db"),
        ("logs", "DaemonSet", "logs"),
        ("migrate", "Job", "migrate"),
        ("bare", "Pod", "bare"),
    ],
)
def test_finding_names_the_workload(kinds: World, name: str, kind: str, owner: str) -> None:
    finding = find(kinds, name)

    named = kubernetes(finding)["workload"]
    assert (named["kind"], named["name"]) == (kind, owner)
    assert kubernetes(finding)["namespace"] == NAMESPACE
    assert workload_part(finding)["serviceAccountName"] == "keeper"
    assert workload_part(finding)["type"] == "pods"
    assert workload_part(finding)["containers"][0]["image"] == ATTACK_IMAGE
    assert process(finding)["name"] == "net"
    assert "sh" in {ancestor["name"] for ancestor in process(finding)["lineage"]} | {"sh"}
    assert kubernetes(finding).get("missing", []) == []


@pytest.mark.parametrize(("name", "kind"), [("main", "container"), ("prepare", "init"), ("proxy", "sidecar")])
def test_containers_of_a_pod_are_told_apart(kinds: World, name: str, kind: str) -> None:
    finding = find(kinds, "many", container=name)

    assert container_part(finding)["kind"] == kind
    details = workload_part(finding)
    assert details["containers"][0]["name"] == name
    assert {c["name"] for c in details["containers"]} == {"main", "other", "prepare", "proxy"}
    privileged = {c["name"]: c["securityContext"]["privileged"] for c in details["containers"]}
    assert privileged == {"main": False, "other": True, "prepare": False, "proxy": False}
    assert {"name": "names", "hostPath": {"path": "/etc"}} in details["volumes"]


def test_debug_container_is_told_apart(kinds: World) -> None:
    uid = kinds.get("pod", "bare", namespace=NAMESPACE)["metadata"]["uid"]

    kinds.kubectl.run(
        *("debug", f"--namespace={NAMESPACE}", "bare", f"--image={ATTACK_IMAGE}", "--container=debugger"),
        *("--profile=general", "--image-pull-policy=IfNotPresent", "--", "/bin/sh", "-c", f"{CONNECT}; sleep 30"),
    )

    finding = kinds.wait_for(uid, C2_IP, container="debugger")
    assert container_part(finding)["kind"] == "ephemeral"
    assert workload_part(finding)["containers"][0]["name"] == "debugger"


def test_host_namespaces_are_said(kinds: World) -> None:
    details = workload_part(find(kinds, "on-host"))

    assert (details["hostNetwork"], details["hostPID"], details["hostIPC"]) == (True, True, False)


def test_process_that_began_with_its_pod_has_its_name(kinds: World) -> None:
    """The container's first program is the attack: the kubelet has not reported the container's id by then."""
    finding = find(kinds, "instant", CRYPTO_MINER)

    assert workload_part(finding)["name"] == "instant"
    assert container_part(finding)["name"] == "main"
    assert process(finding)["executablePath"] == "/usr/local/bin/xmrig"
    seen = datetime.fromisoformat(finding["service"]["eventLastSeen"].replace("Z", "+00:00"))
    made = datetime.fromisoformat(finding["createdAt"].replace("Z", "+00:00"))
    # The longest wait for metadata is 2 s; what is beyond it is the way through the pipeline on a busy machine.
    assert (made - seen).total_seconds() < 30


def test_static_pod_has_its_name(kinds: World, node_here: World) -> None:
    assert kinds.cluster.local is not None
    manifest = workload("Pod", "v1", "static", pod_spec()) | {}
    # A static pod may not refer to a service account: it runs before there is an API server.
    del manifest["spec"]["serviceAccountName"]
    file = kinds.cluster.local.static_pods / "static.json"
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(manifest))
    draft.rename(file)
    try:
        name = f"static-{kinds.node}"

        def mirrored() -> str | None:
            done = kinds.kubectl.run(
                "get", "pod", name, f"--namespace={NAMESPACE}", "-o", "jsonpath={.metadata.uid}", check=False
            )
            return done.stdout or None

        finding = kinds.wait_for(eventually(mirrored, "the mirror of the static pod", 60, every_s=0.3), C2_IP)
    finally:
        file.unlink()
    assert pod_part(finding)["static"] is True
    named = kubernetes(finding)["workload"]
    assert (named["kind"], named["name"]) == ("Pod", name)
    assert container_part(finding)["name"] == "main"


def connect_on_host(prelude: str = "") -> subprocess.CompletedProcess[str]:
    """A listed address connected to by a process of the node, in a network without a way out."""
    program = ensure_programs() / DIRECTORY / "net"
    script = f"{prelude}\nip link set lo up; ip address add {C2_LISTED_IP}/32 dev lo; {program} tcp {C2_LISTED_IP} 443"
    return subprocess.run(["unshare", "--net", "sh", "-ec", script], capture_output=True, text=True, check=False)


def ancestors(finding: Json) -> set[int]:
    return {ancestor["pid"] for ancestor in process(finding).get("lineage", [])}


def test_process_of_the_node_is_in_no_pod(node_here: World) -> None:
    world = node_here
    done = connect_on_host()

    assert done.returncode == 0, done.stderr
    (finding,) = eventually(
        lambda: [
            f
            for f in world.findings.all()
            if f["type"] == C2_IP
            and f["resource"]["resourceType"] == "Instance"
            and os.getpid() in ancestors(f)
            and C2_LISTED_IP in f["description"]
        ],
        "the finding about the node's process",
    )
    assert "kubernetesDetails" not in finding["resource"]
    assert "pod" not in kubernetes(finding)
    assert kubernetes(finding)["node"]["name"] == world.node
    assert finding["vedette"]["hostProcess"] is True


def test_container_of_another_runtime_is_in_no_pod(node_here: World) -> None:
    world = node_here
    with Container(ensure_rootfs(), layers=(ensure_programs(),)) as other:
        other.run([f"/{DIRECTORY}/net", "tcp", C2_LISTED_IP, "443"])
        assert other.container_id is not None
        identity = other.container_id
        (finding,) = eventually(lambda: world.findings.of_container(identity), "the finding about runc's container")

    assert finding["resource"]["resourceType"] == "Container"
    assert "kubernetesDetails" not in finding["resource"]
    assert "pod" not in kubernetes(finding)
    assert finding["resource"]["containerDetails"]["id"] == identity


def sandbox_of(container_id: str) -> tuple[str, list[Path]]:
    """Id and cgroup directories of the pause container beside a container: the other 64-hex directory of its pod."""
    pid = pids_of_container(container_id)[0]
    (line,) = [v for v in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if v.startswith("0::")]
    pod = Path(line.removeprefix("0::/")).parent
    for directory in (cgroup_roots()[0] / pod).iterdir():
        for found in pids_of_container(directory.name) if len(directory.name) == 64 else ():
            if Path(f"/proc/{found}/exe").readlink() == Path("/pause"):
                everywhere = [root / pod / directory.name for root in cgroup_roots()]
                return directory.name, [path for path in everywhere if path.is_dir()]
    raise AssertionError(f"no pause container beside {container_id}")


ACT_AS_PAUSE = """
address=$1 program=$2; shift 2
for cgroup in "$@"; do echo $$ > "$cgroup/cgroup.procs"; done
ip link set lo up; ip address add "$address/32" dev lo
mount -t tmpfs none /mnt; mkdir /mnt/old; cp "$program" /mnt/pause; cd /mnt
pivot_root . old
exec /pause tcp "$address" 443
"""
"""A program that is /pause to itself and to everybody who asks, in the cgroups of the pause container."""


def test_pause_container_is_no_container_of_the_pod(node_here: World) -> None:
    world = node_here
    with world.pod(name=f"paused-{secrets.token_hex(3)}") as pod:
        assert pod.container_id is not None
        identity, cgroups = sandbox_of(pod.container_id)
        done = subprocess.run(
            [
                *("unshare", "--net", "--mount", "--propagation", "private", "sh", "-ec", ACT_AS_PAUSE, "sh"),
                *(C2_LISTED_IP, str(ensure_programs() / DIRECTORY / "net"), *map(str, cgroups)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        finding = eventually(
            lambda: next((f for f in world.findings.of_container(identity) if f["type"] == C2_IP), None),
            "the finding about the pause container",
        )

    assert container_part(finding)["kind"] == "sandbox"
    assert "name" not in container_part(finding)
    assert pod_part(finding)["uid"] == pod.uid
