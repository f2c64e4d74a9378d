"""What is kept of pods and nodes, and which container of a pod an id belongs to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.detector.kubernetes_objects import (
    ID,
    NODE,
    OTHER_ID,
    THIRD_ID,
    UID,
    metadata,
    node,
    owner,
    pod,
    status,
)
from vedette_detector.cluster.index import NodeIndex, OwnerIndex, PodIndex, match_container, top_owner
from vedette_detector.cluster.nodes import parse_node
from vedette_detector.cluster.pods import ObjectRef, parse_pod

DEBUG = {"name": "debugger", "image": "busybox", "targetContainerName": "web"}
STATIC_UID = "99dcb84d2a34f7e338778606703258c4"
MIRROR = {"kubernetes.io/config.mirror": STATIC_UID, "kubernetes.io/config.hash": STATIC_UID}


def kept(given: dict[str, Any]) -> Any:
    return parse_pod(given)


def test_what_is_kept_of_a_pod() -> None:
    found = kept(
        pod(
            owners=(owner("ReplicaSet", "web-6d5f7c9b8", "rs-1"),),
            annotations={
                "team": "payments",
                "kubectl.kubernetes.io/last-applied-configuration": '{"secret": 1}',
                "cni.projectcalico.org/podIP": "10.88.0.7/32",
            },
            spec={"hostNetwork": True, "hostPID": True},
        )
    )
    assert (found.namespace, found.name, found.uid, found.node) == ("prod", "web-6d5f7c9b8-x7k2p", UID, NODE)
    assert found.owner == ObjectRef("ReplicaSet", "web-6d5f7c9b8", "rs-1", "apps/v1")
    template = found.template
    assert (template.host_network, template.host_pid, template.host_ipc) == (True, True, False)
    assert template.annotations == (("team", "payments"),)
    assert template.labels == (("app", "web"), ("pod-template-hash", "6d5f7c9b8"))
    assert found.volumes() == [("kube-api-access-x7k2p", None), ("logs", "/var/log")]
    assert found.full_volume(found.spec("web").mounts[0][0]) == "kube-api-access-x7k2p"
    assert (found.runtime, found.status("web").id, found.status("web").running) == ("containerd", ID, True)


def test_pods_of_one_workload_share_what_they_have_in_common() -> None:
    def of(number: int) -> dict[str, Any]:
        made = pod(f"web-{number}", uid=f"uid-{number}")
        made["spec"] = json.loads(json.dumps(made["spec"]).replace("access-x7k2p", f"access-{number:05}"))
        return made

    first, second = parse_pod(of(1)), parse_pod(of(2))
    assert first.template is second.template
    assert [p.volumes()[0][0] for p in (first, second)] == ["kube-api-access-00001", "kube-api-access-00002"]


@pytest.mark.parametrize(
    ("of_pod", "of_container", "expected"),
    [
        ({}, {}, (False, True)),
        ({}, {"allowPrivilegeEscalation": False}, (False, False)),
        ({}, {"allowPrivilegeEscalation": True}, (False, True)),
        ({}, {"privileged": True}, (True, True)),
        # What the API server would refuse together counts as the kernel would have it.
        ({}, {"privileged": True, "allowPrivilegeEscalation": False}, (True, True)),
        ({}, {"allowPrivilegeEscalation": False, "capabilities": {"add": ["SYS_ADMIN"]}}, (False, True)),
        ({}, {"allowPrivilegeEscalation": False, "capabilities": {"add": ["CAP_SYS_ADMIN"]}}, (False, True)),
        ({}, {"allowPrivilegeEscalation": False, "capabilities": {"add": ["NET_ADMIN"]}}, (False, False)),
    ],
)
def test_privileges_in_effect(
    of_pod: dict[str, Any], of_container: dict[str, Any], expected: tuple[bool, bool]
) -> None:
    container = {"name": "web", "image": "web", "securityContext": of_container}
    spec = kept(pod("p", container, spec={"securityContext": of_pod})).spec("web")
    assert (spec.privileged, spec.allow_privilege_escalation) == expected


def test_the_container_s_security_context_comes_before_the_pod_s() -> None:
    common = {"runAsUser": 1000, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    containers = (
        {"name": "own", "image": "x", "securityContext": {"runAsUser": 0, "runAsNonRoot": False}},
        {"name": "common", "image": "x"},
    )
    found = kept(pod("p", *containers, spec={"securityContext": common}))
    assert [(c.run_as_user, c.run_as_non_root, c.seccomp) for c in found.template.containers] == [
        (0, False, "RuntimeDefault"),
        (1000, True, "RuntimeDefault"),
    ]


INIT = {"name": "migrate", "image": "migrate"}
SIDECAR = {"name": "proxy", "image": "proxy", "restartPolicy": "Always"}


@pytest.mark.parametrize(
    ("given", "wanted", "executable", "expected"),
    [
        # (kind, name, inferred, earlier, candidates, as good as it will get)
        pytest.param(pod(), ID, "", ("container", "web", False, False, (), True), id="reported"),
        pytest.param(
            pod(statuses=(status("web", OTHER_ID, last=ID),)),
            ID,
            "",
            ("container", "web", False, True, (), True),
            id="the run before",
        ),
        pytest.param(
            pod(statuses=()), ID, "", ("container", "web", True, False, (), True), id="the only one, not reported yet"
        ),
        pytest.param(
            pod(statuses=(status("web", state="waiting"),)),
            ID,
            "/bin/sh",
            ("container", "web", True, False, (), True),
            id="the only one, waiting",
        ),
        pytest.param(
            pod("p", "web", "log", statuses=()),
            ID,
            "",
            (None, "", True, False, ("web", "log"), False),
            id="two, none reported",
        ),
        pytest.param(
            pod("p", "web", "log", statuses=(status("web", OTHER_ID),)),
            ID,
            "",
            ("container", "log", True, False, (), True),
            id="two, the other reported",
        ),
        pytest.param(
            pod("p", "web", "log"),
            THIRD_ID,
            "/bin/sh",
            (None, "", False, False, (), False),
            id="all reported, none has it: one was started again",
        ),
        pytest.param(
            pod("p", "web", "log"), THIRD_ID, "/pause", ("sandbox", "", True, False, (), False), id="pause container"
        ),
        pytest.param(
            pod(statuses=()), ID, "/pause", (None, "", True, False, ("web",), False), id="pause, or a program so named"
        ),
        pytest.param(
            pod(statuses=(status("web", ID),)),
            ID,
            "/pause",
            ("container", "web", False, False, (), True),
            id="a program named pause in a container",
        ),
        pytest.param(
            pod(statuses=(status("web", OTHER_ID, state="waiting", restarts=3),)),
            ID,
            "",
            ("container", "web", True, False, (), True),
            id="started again after a crash",
        ),
        pytest.param(
            pod(init=(INIT,), statuses=(status("web", state="waiting"),), init_statuses=(status("migrate", ID),)),
            ID,
            "",
            ("init", "migrate", False, False, (), True),
            id="init container",
        ),
        pytest.param(
            pod(
                init=(INIT,),
                statuses=(status("web", state="waiting"),),
                init_statuses=(status("migrate", OTHER_ID, state="terminated"),),
            ),
            ID,
            "",
            ("container", "web", True, False, (), True),
            id="after the init container ended",
        ),
        pytest.param(
            pod(init=(INIT,), statuses=()),
            ID,
            "",
            (None, "", True, False, ("migrate", "web"), False),
            id="init container or not",
        ),
        pytest.param(
            pod(init=(SIDECAR,), init_statuses=(status("proxy", OTHER_ID),)),
            OTHER_ID,
            "",
            ("sidecar", "proxy", False, False, (), True),
            id="sidecar",
        ),
        pytest.param(
            pod(ephemeral=(DEBUG,), ephemeral_statuses=(status("debugger", OTHER_ID),)),
            OTHER_ID,
            "",
            ("ephemeral", "debugger", False, False, (), True),
            id="ephemeral container",
        ),
        pytest.param(
            pod(ephemeral=(DEBUG,)),
            OTHER_ID,
            "",
            ("ephemeral", "debugger", True, False, (), True),
            id="ephemeral container, not reported yet",
        ),
        pytest.param(
            pod(ephemeral=(DEBUG,), ephemeral_statuses=(status("debugger", THIRD_ID, state="terminated"),)),
            OTHER_ID,
            "",
            (None, "", False, False, (), False),
            id="an ephemeral container that ended does not start again",
        ),
    ],
)
def test_which_container_has_an_id(given: dict[str, Any], wanted: str, executable: str, expected: Any) -> None:
    match, settled = match_container(kept(given), wanted, executable)
    kind = match.kind.value if match.kind is not None else None
    assert (kind, match.name, match.inferred, match.earlier, match.candidates, settled) == expected


def test_ids_of_earlier_runs_are_remembered() -> None:
    index = PodIndex()
    for number, identifier in enumerate((ID, OTHER_ID, THIRD_ID)):
        index.put(pod(statuses=(status("web", identifier, restarts=number),)))
    found = index.get(UID)
    assert found is not None
    (only,) = found.statuses
    assert (only.id, only.earlier, only.restarts) == (THIRD_ID, (OTHER_ID, ID), 2)
    assert index.find(None, ID, NODE) is found


def test_a_pod_is_found_by_uid_and_by_container() -> None:
    index = PodIndex()
    index.put(pod())
    assert [index.find(*w, NODE) for w in ((UID, ID), (UID, "x"), (None, ID))] == [index.get(UID)] * 3
    assert [index.find(*w, NODE) for w in (("other", ID), (None, OTHER_ID), (None, None))] == [None] * 3


def test_a_static_pod_is_found_by_the_uid_of_its_kubelet() -> None:
    index = PodIndex()
    index.put(pod("etcd-a", uid="api-1", annotations=MIRROR, owners=(owner("Node", NODE, "n", "v1"),)))
    found = index.find(STATIC_UID, ID, NODE)
    assert found is not None
    assert (found.name, found.mirrored) == ("etcd-a", STATIC_UID)
    assert top_owner(found, {}) == (ObjectRef("Pod", "etcd-a", "api-1", "v1"), True)


@pytest.mark.parametrize("forged_first", [False, True])
def test_a_pod_that_pretends_to_be_a_mirror_does_not_take_a_static_pod_s_place(forged_first: bool) -> None:
    real = pod("etcd-a", uid="api-1", annotations=MIRROR)
    forged = pod("forged", uid="api-2", annotations=MIRROR, statuses=(status("web", OTHER_ID),))
    elsewhere = pod("elsewhere", uid="api-3", annotations=MIRROR, node="node-b", statuses=(status("web", ID),))
    index = PodIndex()
    for one in (forged, elsewhere, real) if forged_first else (real, forged, elsewhere):
        index.put(one)
    found = index.find(STATIC_UID, ID, NODE)
    assert found is not None
    assert found.name == "etcd-a"


def test_an_annotation_alone_makes_no_mirror() -> None:
    index = PodIndex()
    index.put(pod(annotations={"kubernetes.io/config.hash": STATIC_UID}))
    assert index.find(STATIC_UID, "x", NODE) is None


def test_pods_that_are_gone_stay_for_a_while_and_not_for_ever() -> None:
    now = [0.0]
    index = PodIndex(gone_s=60, gone_most=2, clock=lambda: now[0])
    for number in range(4):
        index.put(pod(f"p{number}", uid=f"u{number}", statuses=(status("web", f"{number:064x}"),)))
    for number in range(3):
        now[0] += 1
        index.remove(pod(f"p{number}", uid=f"u{number}", statuses=(status("web", f"{number:064x}"),)))
    assert (len(index), index.gone) == (1, 2)
    assert [index.get(f"u{n}") is not None for n in range(4)] == [False, True, True, True]
    assert [index.find(None, f"{n:064x}", NODE) is not None for n in range(4)] == [False, True, True, True]
    found = index.get("u2")
    assert found is not None
    assert index.is_gone(found)
    now[0] += 61
    index.retain(set())
    assert [index.get(f"u{n}") is not None for n in range(4)] == [False, False, False, True]


def test_what_a_new_list_does_not_hold_is_gone() -> None:
    index, nodes, owners = PodIndex(), NodeIndex(), OwnerIndex()
    for number in range(3):
        index.put(pod(f"p{number}", uid=f"u{number}"))
        nodes.put(node(f"n{number}"))
        owners.put(metadata("Job", f"j{number}", f"j{number}", owner("CronJob", "nightly", "c")))
    index.retain({"u1"})
    nodes.retain({"uid-n1"})
    owners.retain({"j1"})
    assert (len(index), len(nodes), len(owners)) == (1, 1, 1)
    assert [n.name for n in nodes.all()] == ["n1"]
    assert owners.owner("j0") == (True, ObjectRef("CronJob", "nightly", "c", "apps/v1"))
    assert owners.owner("never") == (False, None)


def test_a_node_that_was_made_again_survives_the_end_of_the_old_one() -> None:
    nodes = NodeIndex()
    nodes.put({**node(), "metadata": {**node()["metadata"], "uid": "new"}})
    nodes.remove(node())
    assert [n.uid for n in nodes.all()] == ["new"]


@pytest.mark.parametrize(
    ("owners", "above", "expected", "certain"),
    [
        ((), (), "Pod web-6d5f7c9b8-x7k2p", True),
        ((owner("ReplicaSet", "web-6d5", "rs"),), (owner("Deployment", "web", "d"),), "Deployment web", True),
        (
            (owner("ReplicaSet", "web-6d5", "rs"),),
            (owner("Rollout", "web", "r", "argoproj.io/v1alpha1"),),
            "Rollout web",
            True,
        ),
        ((owner("ReplicaSet", "bare", "rs"),), (), "ReplicaSet bare", True),
        ((owner("ReplicaSet", "web-6d5", "unseen"),), (), "ReplicaSet web-6d5", False),
        ((owner("Job", "n-1", "job", "batch/v1"),), (owner("CronJob", "n", "c", "batch/v1"),), "CronJob n", True),
        ((owner("Job", "once", "job", "batch/v1"),), (), "Job once", True),
        ((owner("StatefulSet", "db", "s"),), (), "StatefulSet db", True),
        ((owner("DaemonSet", "cni", "s"),), (), "DaemonSet cni", True),
        ((owner("Workflow", "w", "s", "argoproj.io/v1alpha1"),), (), "Workflow w", True),
        ((owner("ReplicaSet", "no", "rs", controller=False),), (), "Pod web-6d5f7c9b8-x7k2p", True),
        ((owner("Node", NODE, "n", "v1"),), (), "Pod web-6d5f7c9b8-x7k2p", True),
    ],
)
def test_the_top_owner(owners: Any, above: Any, expected: str, certain: bool) -> None:
    sets, jobs = OwnerIndex(), OwnerIndex()
    sets.put(metadata("ReplicaSet", "rs", "rs", *above))
    jobs.put(metadata("Job", "job", "job", *above))
    found, sure = top_owner(kept(pod(owners=owners)), {"ReplicaSet": sets, "Job": jobs})
    assert (f"{found.kind} {found.name}", sure) == (expected, certain)


def test_what_is_kept_of_a_node() -> None:
    found = parse_node(node())
    assert (found.instance_id, found.instance_type, found.zone, found.region) == (
        "i-0123456789abcdef0",
        "m7i.large",
        "eu-central-1a",
        "eu-central-1",
    )
    assert (found.internal_ips, found.external_ips) == (("10.0.0.5", "2001:db8::5"), ("198.51.100.5",))
    assert (found.ready, found.unschedulable, found.os, found.runtime) == (True, False, "linux", "containerd://1.7.2")


@pytest.mark.parametrize("provider", ["gce://p/z/n", "kind://docker/x/y", "aws:///z/i-../../x", "", None, 7])
def test_only_ec2_has_instance_ids(provider: Any) -> None:
    assert parse_node(node(providerID=provider)).instance_id == ""


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("metadata", "spec", "status", "name", "uid", "labels", "annotations", "ownerReferences"),
                    *("containers", "initContainers", "ephemeralContainers", "containerStatuses", "containerID"),
                    *("securityContext", "capabilities", "add", "volumes", "hostPath", "path", "volumeMounts", "state"),
                    *("lastState", "terminated", "addresses", "conditions", "taints", "nodeInfo", "controller"),
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=40,
)


@settings(deadline=None)
@given(_JSON)
def test_any_json_gives_a_pod_a_node_and_owners(given: Any) -> None:
    if not isinstance(given, dict):
        return
    found = parse_pod(given)
    parse_pod(given, found)
    match_container(found, ID)
    top_owner(found, {})
    parse_node(given)
    for index in (PodIndex(), NodeIndex(), OwnerIndex()):
        index.put(given)
        index.remove(given)
        index.retain(set())


def test_text_is_bounded_and_made_safe() -> None:
    hostile = "\x1b[2J\u202e" + "x" * 10_000
    found = kept(
        pod(
            "p",
            {"name": hostile, "image": hostile, "volumeMounts": [{"name": hostile, "mountPath": hostile}] * 1000},
            labels={hostile: hostile},
            annotations={f"{n}{hostile}": hostile for n in range(1000)},
            statuses=(),
        )
    )
    shown = repr(found)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert len(found.template.annotations) == 16
    assert len(shown) < 100_000
