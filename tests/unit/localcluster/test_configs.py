from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tools.localcluster import addons, cgroups, configs, dns, namespaces, programs, simulated
from tools.localcluster.api import object_path
from tools.localcluster.build import Components
from tools.localcluster.layout import Layout, Network
from tools.localcluster.processes import Program

LAYOUT = Layout("test")
NETWORK = Network(7)
COMPONENTS = Components(Path("/k"), Path("/etcd"), ())


def test_containerd_is_told_what_this_kind_of_machine_needs() -> None:
    config = tomllib.loads(configs.containerd("/usr/sbin/runc", "/usr/lib/cni", LAYOUT))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]

    # Without the first no pod starts where CAP_SYS_RESOURCE is missing; the others would leave traces in the kernel.
    assert cri["restrict_oom_score_adj"] is True
    assert cri["disable_apparmor"] is True
    assert cri["netns_mounts_under_state_dir"] is True
    assert cri["sandbox_image"] == configs.PAUSE_IMAGE
    assert cri["containerd"]["runtimes"]["runc"]["options"] == {"SystemdCgroup": False, "BinaryName": "/usr/sbin/runc"}


def test_paths_with_quotes_stay_inside_their_string() -> None:
    config = tomllib.loads(configs.containerd('/a"b\n[x]', "/usr/lib/cni", LAYOUT))

    options = config["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["runc"]["options"]
    assert options["BinaryName"] == '/a"b\n[x]'


def test_the_kubelet_stays_in_the_clusters_cgroup_and_authenticates_everybody() -> None:
    kubelet = configs.kubelet(LAYOUT, NETWORK, max_open_files=20000)

    assert kubelet["cgroupRoot"] == "/vedette-test"
    assert kubelet["failCgroupV1"] is False
    assert kubelet["maxOpenFiles"] == 20000
    assert kubelet["authentication"]["anonymous"]["enabled"] is False
    assert kubelet["authorization"]["mode"] == "Webhook"
    assert kubelet["readOnlyPort"] == 0


def _level(policy: dict[str, Any], *, user: str, verb: str, group: str, resource: str) -> str:
    """The level of the first rule that matches, as the API server chooses it."""
    for rule in policy["rules"]:
        if "nonResourceURLs" in rule or "userGroups" in rule:
            continue
        resources = rule.get("resources")
        if (
            user in rule.get("users", [user])
            and verb in rule.get("verbs", [verb])
            and (
                resources is None
                or any(r["group"] == group and resource in r.get("resources", [resource]) for r in resources)
            )
        ):
            return str(rule["level"])
    return "None"


@pytest.mark.parametrize(
    ("user", "verb", "group", "resource", "level"),
    [
        ("jane", "create", "", "secrets", "Metadata"),
        ("jane", "create", "authentication.k8s.io", "tokenreviews", "Metadata"),
        ("jane", "create", "", "serviceaccounts/token", "Metadata"),
        ("jane", "create", "", "pods", "Request"),
        ("jane", "create", "", "pods/exec", "Metadata"),
        ("jane", "create", "rbac.authorization.k8s.io", "clusterrolebindings", "Request"),
        ("jane", "list", "", "pods", "Metadata"),
        ("system:kube-scheduler", "watch", "", "pods", "None"),
        ("system:kube-controller-manager", "create", "", "pods", "Request"),
        ("jane", "update", "coordination.k8s.io", "leases", "None"),
    ],
)
def test_the_audit_log_tells_who_did_what_and_never_a_secret(
    user: str, verb: str, group: str, resource: str, level: str
) -> None:
    assert _level(configs.audit_policy(), user=user, verb=verb, group=group, resource=resource) == level


def test_unknown_names_are_answered_by_another_server_than_the_clusters() -> None:
    # In one server block the template would be asked before the cluster's own names.
    cluster, outside = configs.corefile().split("\n.:5300 ")

    assert "kubernetes cluster.local" in cluster
    assert "template" not in cluster
    assert "rcode NXDOMAIN" in outside


def _flag(program: Program, name: str) -> str:
    (value,) = [word.split("=", 1)[1] for word in program.command if word.startswith(f"--{name}=")]
    return value


def test_the_api_server_authorizes_and_limits_nodes() -> None:
    server = programs.api_server(LAYOUT, NETWORK, COMPONENTS)

    assert _flag(server, "authorization-mode") == "Node,RBAC"
    assert _flag(server, "enable-admission-plugins") == "NodeRestriction"
    assert _flag(server, "service-cluster-ip-range") == str(NETWORK.services)
    assert _flag(server, "requestheader-client-ca-file") == "/var/lib/vedette-cluster/test/pki/front-proxy-ca.crt"
    assert _flag(server, "client-ca-file") != _flag(server, "etcd-cafile")


def test_only_what_needs_the_nodes_mounts_has_them() -> None:
    every = [
        programs.etcd(LAYOUT, COMPONENTS),
        programs.api_server(LAYOUT, NETWORK, COMPONENTS),
        programs.controller_manager(LAYOUT, COMPONENTS),
        programs.scheduler(LAYOUT, COMPONENTS),
        programs.containerd(LAYOUT, "/usr/bin/containerd"),
        programs.kubelet(LAYOUT, NETWORK, COMPONENTS),
        programs.kube_proxy(LAYOUT, COMPONENTS),
        programs.kwok(LAYOUT, NETWORK, Path("/kwok")),
    ]

    assert tuple(program.name for program in every) == programs.NAMES
    assert {program.name for program in every if program.in_node} == {"containerd", "kubelet", "kube-proxy"}


def test_the_nodes_mounts_become_shared_only_when_all_are_there() -> None:
    lines = namespaces.node_script(LAYOUT).splitlines()

    assert lines[-1] == "mount --make-rshared /"
    binds = [shlex.split(line) for line in lines if line.startswith("mount --bind")]
    assert ["mount", "--bind", "/var/lib/vedette-cluster/test/node/run", "/run"] in binds


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", {"/sys/fs/cgroup": 2}),
        (
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
            {"/sys/fs/cgroup/cpu,cpuacct": 1, "/sys/fs/cgroup/unified": 2},
        ),
        ("cgroup /with\\040space cgroup rw 0 0\n", {"/with space": 1}),
        ("/dev/vda / ext4 rw 0 0\n", {}),
    ],
)
def test_cgroup_hierarchies_are_found(mounts: str, expected: dict[str, int]) -> None:
    assert {str(h.mount_point): h.version for h in cgroups.parse_mounts(mounts)} == expected


@pytest.mark.parametrize(
    ("manifest", "path"),
    [
        (addons.storage_class(), "/apis/storage.k8s.io/v1/storageclasses/local"),
        (addons.volume(LAYOUT, 3), "/api/v1/persistentvolumes/local-03"),
        (simulated.node(LAYOUT, 12), "/api/v1/nodes/test-simulated-0012"),
        (addons.dns(NETWORK)[0], "/api/v1/namespaces/kube-system/serviceaccounts/coredns"),
        (addons.dns(NETWORK)[1], "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:coredns"),
    ],
)
def test_objects_are_applied_where_they_belong(manifest: dict[str, Any], path: str) -> None:
    assert object_path(manifest) == path


def test_a_thousand_simulated_nodes_have_addresses_of_their_own() -> None:
    addresses = {simulated.status(LAYOUT, NETWORK, n)["status"]["addresses"][0]["address"] for n in range(1000)}

    assert len(addresses) == 1000


def test_stages_are_documents_of_one_file() -> None:
    documents = [json.loads(part) for part in simulated.stages_file().split("---\n")]

    assert [d["metadata"]["name"] for d in documents] == ["node-ready", "pod-runs", "pod-done", "pod-goes"]


QUESTION = dns.question("a.example", 0x5644)
ANSWER = b"\x56\x44\x81\x80\0\1\0\1\0\0\0\0" + QUESTION[12:] + b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + bytes([10, 0, 0, 1])


@pytest.mark.parametrize(
    ("reply", "good"),
    [
        (ANSWER, True),
        (b"\x56\x45" + ANSWER[2:], False),
        (ANSWER[:3] + b"\x83" + ANSWER[4:], False),
        (ANSWER[:-1] + b"\x02", False),
        (ANSWER[:11], False),
        (b"", False),
    ],
    ids=["good", "another question", "NXDOMAIN", "another address", "cut off", "empty"],
)
def test_only_the_right_answer_of_dns_counts(reply: bytes, good: bool) -> None:
    assert dns.is_answer(reply, 0x5644, "10.0.0.1") is good
