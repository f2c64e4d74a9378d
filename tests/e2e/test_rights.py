"""What Vedette may do in the cluster, and does: roles against the audit log, Pod Security, and what applying said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e2e_world import World, eventually

from tools.demo.installation import NAMESPACE

Json = dict[str, Any]
DETECTOR = f"system:serviceaccount:{NAMESPACE}:vedette-detector"
AGENT = f"system:serviceaccount:{NAMESPACE}:vedette-agent"
Right = tuple[str, str, str]
"""Verb, API group, resource."""


def granted(world: World) -> set[Right]:
    role = world.kubectl.json("get", "clusterrole", "vedette-detector")
    return {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def requests_of(audit_log: Path, user: str) -> Iterator[Json]:
    """The API server's account of what a user asked for; discovery and reviews of itself are everybody's right."""
    with audit_log.open() as lines:
        for line in lines:
            if user in line:
                entry = json.loads(line)
                if entry["user"]["username"] == user:
                    yield entry


def right_of(entry: Json) -> Right:
    target = entry["objectRef"]
    return entry["verb"], target.get("apiGroup", ""), target["resource"]


def test_detector_has_the_rights_that_it_uses(node_here: World) -> None:
    world = node_here
    assert world.cluster.local is not None
    log = world.cluster.local.audit_log

    def used() -> set[Right]:
        return {right_of(entry) for entry in requests_of(log, DETECTOR) if "objectRef" in entry}

    # What it asks for only now and then.
    with world.agent_that_runs_nowhere() as token, world.forwarded() as port:
        world.ask(port, "POST", "/v1/heartbeat", authorization=f"Bearer {token}", body=b"{}")

    rights = granted(world)
    assert used() - rights == set(), "the detector asks for what it may not do"
    refused = [e["requestURI"] for e in requests_of(log, DETECTOR) if e.get("responseStatus", {}).get("code") == 403]
    assert refused == []
    eventually(lambda: rights - used() == set(), f"rights that nothing uses: {rights - used()}", 20, 0.5)


def test_agents_ask_the_api_server_for_nothing(node_here: World) -> None:
    world = node_here
    assert world.cluster.local is not None

    assert [e["requestURI"] for e in requests_of(world.cluster.local.audit_log, AGENT)] == []


def test_agents_may_do_nothing(world: World) -> None:
    done = world.kubectl.run("auth", "can-i", "--list", f"--as={AGENT}", f"--namespace={NAMESPACE}", "--no-headers")
    everybody = world.kubectl.run(
        *("auth", "can-i", "--list", f"--namespace={NAMESPACE}", "--no-headers"),
        *("--as=system:serviceaccount:default:default",),
    )

    assert sorted(done.stdout.splitlines()) == sorted(everybody.stdout.splitlines())


def test_applying_brings_no_warning(world: World) -> None:
    assert "Warning" not in world.installation.said, world.installation.said

    world.installation.apply()
    assert "Warning" not in world.installation.said, world.installation.said


def test_applying_again_changes_nothing(world: World) -> None:
    def generations() -> dict[str, int]:
        listed = world.kubectl.json("get", "daemonset,statefulset", f"--namespace={NAMESPACE}")["items"]
        return {item["kind"]: item["metadata"]["generation"] for item in listed}

    before = generations()
    world.installation.apply()

    assert generations() == before


def test_only_agents_need_a_privileged_namespace(world: World) -> None:
    """The API server itself says which pods would not be admitted under the restricted standard."""
    namespace = world.kubectl.json("get", "namespace", NAMESPACE)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"

    done = world.kubectl.run(
        *("label", "namespace", NAMESPACE, "--dry-run=server", "--overwrite"),
        "pod-security.kubernetes.io/enforce=restricted",
    )

    assert "vedette-agent" in done.stderr
    assert "vedette-detector" not in done.stderr


def test_pod_of_the_agent_is_as_small_as_said(world: World) -> None:
    pod = world.agent_pod()["spec"]
    (agent,) = pod["containers"]
    security = agent["securityContext"]

    assert security["capabilities"] == {"drop": ["ALL"], "add": ["BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE"]}
    assert (security["runAsUser"], security["allowPrivilegeEscalation"]) == (60700, False)
    assert security["readOnlyRootFilesystem"] is True
    assert "privileged" not in security
    assert pod["automountServiceAccountToken"] is False
    assert not any(v["name"].startswith("kube-api-access") for v in pod["volumes"])
