"""The operator, installed as a user does it: one resource brings agents and detector, and takes them away.

Runs after `test_uninstall`, in the same cluster: nothing of Vedette is there when it begins.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import e2e_clusters
import pytest
from e2e_world import eventually

from tools.containers.pod import Kubectl, PodError
from tools.demo.installation import NAMESPACE, ROOT, archive, build_images
from tools.localcluster.cluster import Cluster

SAMPLE = ROOT / "manifests/samples/local.yaml"
MANAGEMENT = "vedette.dev/agent-management"
OPERATOR = f"system:serviceaccount:{NAMESPACE}:vedette-operator"
CHILDREN = "daemonset,statefulset,service,configmap,secret,serviceaccount,poddisruptionbudget,persistentvolumeclaim"
READY_S = 120.0


def conditions(kubectl: Kubectl) -> dict[str, tuple[str, str]]:
    """Status and reason of each condition of the resource."""
    status = kubectl.json("get", "rmc", "default").get("status", {})
    return {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", [])}


def settled(kubectl: Kubectl) -> bool:
    """Whether the operator has seen the newest resource and has nothing left to do."""
    resource = kubectl.json("get", "rmc", "default")
    status = resource.get("status", {})
    if status.get("observedGeneration") != resource["metadata"]["generation"]:
        return False
    found = conditions(kubectl)
    return found["Ready"][0] == "True" and found["Progressing"][0] == "False"


def children(kubectl: Kubectl) -> set[str]:
    """Names of what belongs to agents and detector."""
    found = set()
    for component in ("agent", "detector"):
        labels = f"app.kubernetes.io/part-of=vedette,app.kubernetes.io/component={component}"
        arguments = ("get", CHILDREN, f"--namespace={NAMESPACE}", "-l", labels, "-o", "name")
        found |= set(kubectl.run(*arguments).stdout.split())
    return found


def uid(kubectl: Kubectl, what: str) -> str:
    """The object's uid; empty when it is not there."""
    done = kubectl.run("get", what, f"--namespace={NAMESPACE}", "--ignore-not-found", "-o", "jsonpath={.metadata.uid}")
    return done.stdout.strip()


def passes(kubectl: Kubectl) -> int:
    """How many passes the operator has ended, by its log."""
    done = kubectl.run("logs", f"--namespace={NAMESPACE}", "deployment/vedette-operator", "--tail=-1")
    return sum('"message": "pass: ' in line for line in done.stdout.splitlines())


def requests_of_operator(cluster: Cluster) -> list[dict[str, Any]]:
    """What the API server's audit log has of the operator, oldest first."""
    events = (json.loads(line) for line in cluster.audit_log.read_text().splitlines())
    return [e for e in events if e["user"]["username"] == OPERATOR and e["stage"] == "ResponseComplete"]


@pytest.fixture(scope="module")
def kubectl(cluster: tuple[e2e_clusters.TestedCluster, Kubectl]) -> Iterator[Kubectl]:
    """With the operator running and the sample applied."""
    chosen, made = cluster
    build_images(["operator"])
    chosen.load(archive("operator"), "localhost/vedette-operator:dev")
    if chosen.local is not None:
        # What an earlier installation left on the node was meant for its detector.
        shutil.rmtree(chosen.local.node_path("/var/lib/vedette/agent"), ignore_errors=True)
    made.run("apply", "--server-side", "-k", str(ROOT / "manifests/base"))
    for definition in ("runtimemonitoringconfigs", "monitoredclusters"):
        made.run("wait", "--for=condition=Established", f"crd/{definition}.vedette.dev", "--timeout=30s")
    made.run("apply", "-f", str(SAMPLE))
    try:
        made.run("wait", "--for=condition=Ready", "rmc/default", f"--timeout={READY_S:.0f}s", timeout_s=READY_S + 10)
    except PodError as error:
        said = made.run("logs", f"--namespace={NAMESPACE}", "deployment/vedette-operator", "--tail=40", check=False)
        raise AssertionError(f"{error}\n{conditions(made)}\n{said.stdout}") from None
    yield made
    made.run("delete", "rmc", "default", "--ignore-not-found", "--timeout=90s", check=False)
    made.run("delete", "-k", str(ROOT / "manifests/base"), "--timeout=90s", check=False)


def test_one_resource_brings_all(kubectl: Kubectl) -> None:
    eventually(lambda: settled(kubectl), "the operator has nothing left to do", READY_S, 0.5)
    found = conditions(kubectl)
    assert {name: status for name, (status, _) in found.items()} == {
        "Ready": "True",
        "Progressing": "False",
        "Degraded": "False",
        "Stalled": "False",
        "AgentAvailable": "True",
        "DetectorAvailable": "True",
        "EndpointAvailable": "True",
    }
    nodes = len(kubectl.json("get", "nodes")["items"])
    coverage = eventually(
        lambda: (s := kubectl.json("get", "monitoredcluster", "local").get("status", {})).get("coverage") and s,
        "the cluster's coverage is known",
    )
    assert (coverage["coverage"], coverage["covered"], coverage["nodes"]) == ("HEALTHY", nodes, nodes)


@pytest.mark.parametrize("what", ["service/vedette-detector", "daemonset/vedette-agent", "configmap/vedette-ca"])
def test_a_child_that_somebody_deleted_comes_back(kubectl: Kubectl, what: str) -> None:
    before = uid(kubectl, what)
    kubectl.run("delete", what, f"--namespace={NAMESPACE}")
    after = eventually(lambda: uid(kubectl, what), f"{what} is made again", 30, 0.3)
    assert before
    assert after != before


def test_a_field_that_somebody_changed_is_put_back(kubectl: Kubectl) -> None:
    patch = json.dumps({"spec": {"replicas": 0}})
    kubectl.run("patch", "statefulset/vedette-detector", f"--namespace={NAMESPACE}", "--type=merge", "-p", patch)

    def replicas() -> int:
        return int(kubectl.json("get", "statefulset/vedette-detector", f"--namespace={NAMESPACE}")["spec"]["replicas"])

    eventually(lambda: replicas() == 1, "one replica is wanted again", 30, 0.3)
    eventually(lambda: settled(kubectl), "the operator has nothing left to do", READY_S, 0.5)


def test_a_pass_that_finds_all_as_wanted_writes_nothing(
    kubectl: Kubectl, cluster: tuple[e2e_clusters.TestedCluster, Kubectl]
) -> None:
    local = cluster[0].local
    if local is None:
        pytest.skip("place: the audit log is read on this machine (CLUSTER=local)")
    eventually(lambda: settled(kubectl), "the operator has nothing left to do", READY_S, 0.5)

    def writes() -> list[str]:
        return [
            f"{e['verb']} {e['objectRef'].get('resource')}/{e['objectRef'].get('name')}"
            for e in requests_of_operator(local)
            if e["verb"] in ("create", "update", "patch", "delete")
            and e["objectRef"].get("resource") != "events"
            # kopf keeps its own record of what it has handled in an annotation.
            and (e["verb"], e["objectRef"].get("resource")) != ("patch", "runtimemonitoringconfigs")
        ]

    before, done = writes(), passes(kubectl)
    kubectl.run("annotate", "rmc", "default", "example.org/touched=now", "--overwrite")
    eventually(lambda: passes(kubectl) > done, "a pass has ended", 90, 0.5)
    assert writes()[len(before) :] == []
    assert [e for e in requests_of_operator(local) if e["responseStatus"]["code"] in (401, 403)] == []


def test_the_annotation_stops_the_operators_hand_and_gives_it_back(kubectl: Kubectl) -> None:
    kubectl.run("annotate", "rmc", "default", f"{MANAGEMENT}=manual", "--overwrite")

    def mode() -> tuple[str, str]:
        status = kubectl.json("get", "rmc", "default")["status"]
        return status["mode"], status["modeSource"]

    eventually(lambda: mode() == ("Manual", f"annotation {MANAGEMENT}"), "manual, by the annotation", 30, 0.3)
    kubectl.run("delete", "poddisruptionbudget/vedette-detector", f"--namespace={NAMESPACE}")
    # That nothing happens is only worth something once passes have gone by: the second began after the deletion.
    done = passes(kubectl)
    kubectl.run("annotate", "rmc", "default", "example.org/touched=again", "--overwrite")
    eventually(lambda: passes(kubectl) > done + 1, "two passes have ended", 150, 0.5)
    assert uid(kubectl, "poddisruptionbudget/vedette-detector") == ""

    kubectl.run("annotate", "rmc", "default", f"{MANAGEMENT}=automatic", "--overwrite")
    eventually(lambda: uid(kubectl, "poddisruptionbudget/vedette-detector"), "it is made again", 30, 0.3)


@pytest.mark.parametrize(
    ("resource", "message"),
    [
        ({"metadata": {"name": "second"}, "spec": {}}, "there is one RuntimeMonitoringConfig, and its name is default"),
        ({"metadata": {"name": "default"}, "spec": {"mode": "Sometimes"}}, 'supported values: "Enabled", "Disabled"'),
        (
            {"metadata": {"name": "default"}, "spec": {"detector": {"workers": -1}}},
            "spec.detector.workers in body should be greater than or equal to 0",
        ),
        (
            {"metadata": {"name": "default"}, "spec": {"agent": {"tolerations": [{"operator": "Equal"}]}}},
            "without a key the operator must be Exists",
        ),
    ],
)
def test_a_bad_resource_is_refused_with_its_reason(kubectl: Kubectl, resource: dict[str, Any], message: str) -> None:
    whole = {"apiVersion": "vedette.dev/v1alpha1", "kind": "RuntimeMonitoringConfig", **resource}
    done = kubectl.run(
        "apply",
        "--server-side",
        "--dry-run=server",
        "--force-conflicts",
        "-f",
        "-",
        stdin=json.dumps(whole),
        check=False,
    )
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("sample", sorted((ROOT / "manifests/samples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sample_is_accepted(kubectl: Kubectl, sample: Path) -> None:
    # The present resource's volume cannot be changed, so the samples are tried as if they were the first.
    text = sample.read_text()
    done = kubectl.run("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text, check=False)
    assert done.returncode == 0 or 'runtimemonitoringconfigs.vedette.dev "default" already exists' in done.stderr


def test_disabled_removes_all_and_enabled_brings_it_back(kubectl: Kubectl) -> None:
    assert {"daemonset.apps/vedette-agent", "statefulset.apps/vedette-detector"} <= children(kubectl)
    kubectl.run("patch", "rmc", "default", "--type=merge", "-p", json.dumps({"spec": {"mode": "Disabled"}}))
    eventually(lambda: settled(kubectl) and children(kubectl) == set(), "nothing is left", 60, 0.5)
    assert conditions(kubectl)["Ready"] == ("True", "Disabled")

    kubectl.run("patch", "rmc", "default", "--type=merge", "-p", json.dumps({"spec": {"mode": "Enabled"}}))
    eventually(lambda: conditions(kubectl)["Ready"] == ("True", "AllComponentsReady"), "ready again", READY_S, 0.5)


def test_deleting_the_resource_leaves_the_operator_alone(kubectl: Kubectl) -> None:
    kubectl.run("delete", "rmc", "default", "--timeout=90s", timeout_s=100)
    assert children(kubectl) == set()
    assert kubectl.run("get", "monitoredclusters", "-o", "name").stdout.strip() == ""
    assert uid(kubectl, "deployment/vedette-operator")
