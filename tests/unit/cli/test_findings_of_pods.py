"""What the command shows of findings in a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import SEEN, Vedette, detection
from tests.unit.detector.kubernetes_objects import ID, NODE, OTHER_ID, UID, node, pod, reference, status
from tests.unit.detector.test_workload import CLUSTER, HARDENED, inside
from vedette_detector.cluster.context import PodContext, Unknown
from vedette_detector.cluster.nodes import parse_node
from vedette_detector.engine.detection import ContainerRef
from vedette_detector.findings.build import Identity, build
from vedette_detector.findings.resource import Host, InCluster, describe
from vedette_detector.store import Effects, Store
from vedette_detector.text import Redactor

HOST = Host(NODE)
NOWHERE = InCluster(
    CLUSTER, None, Unknown("NotSeen", "pod: the API server has reported no pod with this UID", UID, None)
)


@pytest.fixture
def put_in(data_dir: Path) -> Any:
    """Store one occurrence in a place; returns the finding's id."""

    def put(told: InCluster, container: ContainerRef | None = None, **more: Any) -> str:
        identifier = told.found.container_id if isinstance(told.found, PodContext) else ID
        one = detection(container=container or reference(identifier), node=NODE, **more)
        update = build(one, describe(one.container, HOST, None, told), HOST, Identity(), Redactor((), ()))
        store = Store(f"sqlite:///{data_dir}/detector/findings.db")
        store.apply(Effects(findings=[update]), int(SEEN.timestamp()) * 10**9)
        store.close()
        return update.id

    return put


def test_shows_the_pod_of_a_finding(put_in: Any, vedette: Vedette) -> None:
    powerful = {**HARDENED, "securityContext": {"privileged": True, "capabilities": {"add": ["SYS_ADMIN"]}}}
    identifier = put_in(inside(pod("web-1", powerful, spec={"hostPID": True, "hostNetwork": True})))
    put_in(inside(pod("web-2", powerful, uid="u2", statuses=(status("web", OTHER_ID),)), OTHER_ID))
    put_in(inside(pod("web-1", powerful, spec={"hostPID": True, "hostNetwork": True})))
    lines = vedette("findings", "show", identifier).stdout.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("Where"))
    assert lines[begin : begin + 20] == [
        "Where       pod prod/web-1 (web), node node-a",
        "Pod         web-1",
        "            of Deployment web",
        "            namespace: prod",
        "            service account: web",
        "            shares with its node: Network, PID",
        "            has of its node: /var/log",
        "Container   web",
        "            image: registry.example/team/web:1",
        f"            image id: registry.example/team/web@sha256:{'1' * 64}",
        f"            id: {ID}",
        "            runtime: containerd",
        "            privileged",
        "            added capabilities: SYS_ADMIN",
        "Node        node-a (m7i.large, eu-central-1a, Debian GNU/Linux 12)",
        "Pods        web-1 on node-a, 2 times",
        "            web-2 on node-a, 1 times",
        "Process     /usr/bin/bash",
        "            pid 4711 (12 in its container), user root, started 2026-01-31 12:00:00.123 UTC",
        "            arguments: bash -i",
    ]


@pytest.mark.parametrize(
    ("told", "where"),
    [
        (inside(pod("web-1")), "pod prod/web-1 (web)"),
        (inside(pod("web-1", statuses=())), "pod prod/web-1 (web?)"),
        (inside(pod("web-1", "web", "log", statuses=())), "pod prod/web-1 (?)"),
        (inside(pod("web-1"), OTHER_ID, executable="/pause"), "pod prod/web-1 (sandbox?)"),
        (NOWHERE, f"pod {UID} (not known)"),
    ],
    ids=["known", "supposed", "not told apart", "sandbox", "no pod"],
)
def test_lists_pods(put_in: Any, vedette: Vedette, told: InCluster, where: str) -> None:
    put_in(told)
    assert f"  {where}  " in vedette("findings", "list").stdout


def test_what_is_missing_is_said(put_in: Any, vedette: Vedette) -> None:
    identifier = put_in(NOWHERE)
    text = vedette("findings", "show", identifier).stdout
    assert "Missing     pod: the API server has reported no pod with this UID" in text
    assert "            node: the API server has reported no node of this name" in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (inside(pod("p", statuses=())), "web, as far as can be told: the kubelet had not reported it"),
        (inside(pod("p", "web", "log", statuses=())), "not known"),
        (inside(pod("p"), OTHER_ID, executable="/pause"), "sandbox, as far as can be told: the kubelet had"),
        (
            inside(pod("p", init=({"name": "setup"},), init_statuses=(status("setup", OTHER_ID),)), OTHER_ID),
            "setup (init container)",
        ),
        (inside(pod("p", statuses=(status("web", OTHER_ID, last=ID),))), "web, an earlier run"),
    ],
)
def test_what_kind_of_container_it_is(put_in: Any, vedette: Vedette, given: InCluster, words: str) -> None:
    text = vedette("findings", "show", put_in(given)).stdout
    assert f"Container   {words}" in text


def test_only_one_namespace(put_in: Any, vedette: Vedette) -> None:
    put_in(inside(pod("web-1")))
    put_in(inside(pod("other", namespace="production")))
    put_in(InCluster(CLUSTER, parse_node(node()), Unknown("NotInPod", "", "", None)), reference(OTHER_ID, None))
    shown = vedette("findings", "list", "--namespace", "prod").stdout
    assert [n for n in ("prod/web-1", "production/other", "container") if n in shown] == ["prod/web-1"]
    assert vedette("findings", "list", "--namespace", "%").stdout == "No findings match.\n"
    assert "exclude each other" in vedette("findings", "list", "--namespace", "prod", "--host").stderr


@pytest.mark.parametrize("command", ["list", "show {id}", "show {id} -o yaml"])
def test_nothing_of_a_hostile_pod_acts_on_the_terminal(put_in: Any, vedette: Vedette, command: str) -> None:
    hostile = "\x1b[31m[bold]a\nb\u202e\x9b"
    given = pod(
        hostile,
        {"name": hostile, "image": hostile},
        namespace=hostile,
        labels={hostile: hostile},
        annotations={hostile: hostile},
        spec={"serviceAccountName": hostile, "volumes": [{"name": hostile, "hostPath": {"path": hostile}}]},
        statuses=(),
    )
    identifier = put_in(inside(given))
    result = vedette("findings", *command.format(id=identifier).split())
    assert result.exit_code == 0
    assert re.fullmatch(r"[\n\x20-\x7e…└]*", result.stdout)
    assert "[bold]a" in result.stdout
