"""Container identity from cgroup paths, in the forms that runtimes and the kubelet write."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_detector.engine.container import INITIAL_PID_NS, parse_cgroup
from vedette_detector.engine.history import NodeHistory
from vedette_events.columns import split_batch
from vedette_events.encode import encode_event

ID = "4f0c3b9d" * 8
INNER = "0a1b2c3d" * 8
UID = "6f1d2c3b-0a1b-4c5d-8e9f-001122334455"
UID_ = UID.replace("-", "_")
POD = f"kubepods-burstable-pod{UID_}.slice"
BEST = f"kubepods-besteffort-pod{UID_}.slice"
KUBELET = f"kubelet-kubepods.slice/kubelet-kubepods-pod{UID_}.slice"


@pytest.mark.parametrize(
    ("path", "pod", "runtime"),
    [
        (f"/docker/{ID}", None, "docker"),
        (f"/system.slice/docker-{ID}.scope", None, "docker"),
        (f"/docker/{ID}/init.scope", None, "docker"),
        (f"/kubepods/burstable/pod{UID}/{ID}", UID, "kubernetes"),
        (f"/kubepods/pod{UID}/{ID}", UID, "kubernetes"),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope",
            UID,
            "containerd",
        ),
        (f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-{ID}.scope", UID, "cri-o"),
        (f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-{ID}.scope/container", UID, "cri-o"),
        (f"/kubepods.slice/kubepods-besteffort.slice/{BEST}/docker-{ID}.scope", UID, "docker"),
        (f"/kubelet.slice/{KUBELET}/cri-containerd-{ID}.scope", UID, "containerd"),
        (f"/system.slice/containerd.service/{POD}:cri-containerd:{ID}", UID, "containerd"),
        (f"/machine.slice/libpod-{ID}.scope/container", None, "podman"),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", None, "podman"),
        (f"/default/{ID}", None, "containerd"),
        (f"/system.slice/nerdctl-{ID}.scope", None, "containerd"),
        (f"/docker/{ID}/kubelet/kubepods/pod{UID}/{INNER}", None, "docker"),
        (f"/docker/{ID}/{INNER}", None, "docker"),
        (f"/somewhere/{ID}", None, "unknown"),
    ],
)  # fmt: skip
def test_the_outermost_id_is_the_container(path: str, pod: str | None, runtime: str) -> None:
    found = parse_cgroup(path.encode())
    assert found is not None
    assert (found.container_id, found.pod_uid, found.runtime, found.cgroup_path) == (ID, pod, runtime, path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/system.slice/sshd.service",
        "/user.slice/user-0.slice/session-3.scope",
        f"/kubepods/burstable/pod{UID}",
        f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-conmon-{ID}.scope",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/kubepods/burstable/pod{UID}/crio-conmon-{ID}",
        f"/kubepods.slice/kubepods-burstable.slice/{POD}",
        "/system.slice/containerd.service",
        "/system.slice/kubelet.service",
        "/kubelet.slice/kubelet.service",
        f"/system.slice/{ID[:-1]}.scope",
        f"/system.slice/{ID}0.scope",
        f"/x{ID}y",
    ],
)
def test_paths_that_name_no_container(path: str) -> None:
    assert parse_cgroup(path.encode()) is None


STATIC = "99dcb84d2a34f7e338778606703258c4"
TREE = f"kubepods.slice/kubepods-burstable.slice/{POD}"


@pytest.mark.parametrize(
    ("path", "pod", "runtime"),
    [
        # A containerd of Debian 12 on a hybrid hierarchy, cgroupfs driver: the same path in v1's memory and in v2.
        (f"/kubepods/burstable/pod{UID}/{ID}", UID, "kubernetes"),
        (f"/kubepods/besteffort/pod{UID}/{ID}", UID, "kubernetes"),
        (f"/kubepods/pod{UID}/{ID}", UID, "kubernetes"),
        # The kubelet's --cgroup-root (pkg/kubelet/cm/cgroup_manager_linux.go), with both drivers.
        (f"/vedette-cluster/vedette/kubepods/besteffort/pod{UID}/{ID}", UID, "kubernetes"),
        (f"/a.slice/a-kubepods.slice/a-kubepods-burstable.slice/a-{POD}/cri-containerd-{ID}.scope", UID, "containerd"),
        # EKS (Amazon Linux 2 with docker: cgroupfs; Amazon Linux 2023 with containerd: systemd), GKE (Container-
        # Optimized OS: cgroupfs on v1, systemd on v2), AKS.
        (f"/{TREE}/cri-containerd-{ID}.scope", UID, "containerd"),
        (f"/kubepods.slice/kubepods-burstable.slice/{POD}/docker-{ID}.scope", UID, "docker"),
        # OpenShift and other CRI-O (internal/config/cgmgr): systemd on v1, on v2, with crun's leaf, cgroupfs.
        (f"/{TREE}/crio-{ID}.scope", UID, "cri-o"),
        (f"/{TREE}/crio-{ID}.scope/container", UID, "cri-o"),
        (f"/{TREE}/crio-{ID}", UID, "cri-o"),
        (f"/kubepods/burstable/pod{UID}/crio-{ID}", UID, "cri-o"),
        # containerd with cgroupfs under a kubelet with systemd: runc takes slice:prefix:name as one directory.
        (f"/system.slice/containerd.service/{POD}:cri-containerd:{ID}", UID, "containerd"),
        (f"/{POD}:cri-containerd:{ID}", UID, "containerd"),
        # Static pods: the kubelet's own UID, an MD5 without dashes.
        (f"/kubepods/burstable/pod{STATIC}/{ID}", STATIC, "kubernetes"),
        (f"/kubepods.slice/kubepods-burstable-pod{STATIC}.slice/cri-containerd-{ID}.scope", STATIC, "containerd"),
        # What runs in a pod's container: systemd, docker in docker, a whole kind, names that look like other pods.
        (f"/kubepods/burstable/pod{UID}/{ID}/init.scope", UID, "kubernetes"),
        (f"/kubepods/burstable/pod{UID}/{ID}/docker/{INNER}", UID, "kubernetes"),
        (f"/{TREE}/cri-containerd-{ID}.scope/system.slice/docker-{INNER}.scope", UID, "containerd"),
        (f"/kubepods/pod{UID}/{ID}/kubepods/pod{STATIC}/{INNER}", UID, "kubernetes"),
        (f"/kubepods/pod{UID}/{ID}/docker/{INNER}/kubelet/kubepods/pod{STATIC}/{INNER}", UID, "kubernetes"),
        # Kata Containers: the sandbox's part of the host (src/runtime: cgroups).
        (f"/{TREE}/cri-containerd-{ID}.scope/kata_overhead", UID, "containerd"),
    ],
)  # fmt: skip
def test_a_pod_s_container_in_every_form(path: str, pod: str, runtime: str) -> None:
    found = parse_cgroup(path.encode())
    assert found is not None
    assert (found.container_id, found.pod_uid, found.runtime, found.inner) == (ID, pod, runtime, None)


@pytest.mark.parametrize(
    ("path", "outer", "inner"),
    [
        # kind with the cgroupfs and the systemd driver, minikube's and k3d's nodes in docker.
        (f"/docker/{ID}/kubelet/kubepods/besteffort/pod{UID}/{INNER}", "docker", "kubernetes"),
        (f"/docker/{ID}/kubelet.slice/{KUBELET}/cri-containerd-{INNER}.scope", "docker", "containerd"),
        (f"/system.slice/docker-{ID}.scope/{KUBELET}/cri-containerd-{INNER}.scope", "docker", "containerd"),
        (f"/system.slice/docker-{ID}.scope/{TREE}/docker-{INNER}.scope", "docker", "docker"),
        (f"/docker/{ID}/kubepods/pod{UID}/{INNER}", "docker", "kubernetes"),
        (f"/machine.slice/libpod-{ID}.scope/container/kubelet.slice/{KUBELET}/crio-{INNER}.scope", "podman", "cri-o"),
        # A kind node within a container of its own.
        (f"/docker/{ID}/docker/{ID}/kubelet/kubepods/pod{UID}/{INNER}", "docker", "kubernetes"),
    ],
)  # fmt: skip
def test_a_pod_of_a_node_that_is_a_container_is_kept_aside(path: str, outer: str, inner: str) -> None:
    found = parse_cgroup(path.encode())
    assert found is not None
    assert (found.container_id, found.pod_uid, found.runtime) == (ID, None, outer)
    assert found.inner is not None
    assert (found.inner.container_id, found.inner.pod_uid, found.inner.runtime) == (INNER, UID, inner)
    assert found.inner.inner is None


@settings(deadline=None)
@given(st.lists(st.sampled_from([ID, INNER, f"pod{UID}", "kubepods", f"crio-conmon-{ID}.scope", "", "x"]), max_size=60))
def test_no_path_makes_more_than_one_level(parts: list[str]) -> None:
    found = parse_cgroup("/".join(parts).encode())
    assert found is None or found.inner is None or (found.pod_uid is None and found.inner.inner is None)


def test_a_path_is_made_safe_to_show() -> None:
    found = parse_cgroup(b"/docker/" + ID.encode() + b"/\x1b[2J\xff\xe2\x80\xae")
    assert found is not None
    assert found.cgroup_path == f"/docker/{ID}/\\x1b[2J\\xff\\u202e"


@pytest.mark.parametrize(
    ("path", "pid_ns", "expected"),
    [
        ("/lxc/web", 4026532199, "web"),
        ("/system.slice/web.service", 4026532199, "web"),
        ("/system.slice/web.service", INITIAL_PID_NS, None),
        (f"/docker/{ID}", INITIAL_PID_NS, ID),
        (f"/docker/{ID}/lxc", 4026532199, ID),
    ],
)
def test_an_own_pid_namespace_makes_a_container(path: str, pid_ns: int, expected: str | None) -> None:
    history = NodeHistory("node")
    records = [
        encode_event("cgroup", cgroup=9, time=1, path=path),
        encode_event("exec", cgroup=9, pid=5, start=4, time=5, pid_ns=pid_ns, path="/bin/sh"),
        encode_event("connect", cgroup=9, pid=5, start=4, time=6, family=2),
    ]
    history.append(split_batch(b"".join(records)), 0)
    for name in ("exec", "connect"):
        (event,) = history.events(name)
        assert (event.container.container_id if event.container else None) == expected
