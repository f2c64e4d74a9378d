"""Which container a cgroup path names.

The forms that container runtimes and the kubelet write, with the cgroupfs and the systemd driver:

- docker: ``/docker/<id>``, ``/system.slice/docker-<id>.scope``
- containerd in Kubernetes: ``/kubepods/burstable/pod<uid>/<id>``,
  ``/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope``
- CRI-O: ``.../crio-<id>.scope`` (with ``crio-conmon-<id>.scope`` for its monitor), on newer ones with a ``container``
  leaf below it; with the cgroupfs driver ``.../crio-<id>``
- any root before ``kubepods``: the kubelet's ``--cgroup-root`` (``/kubelet.slice/kubelet-kubepods.slice/…`` of kind)
- podman: ``/machine.slice/libpod-<id>.scope``, with a ``container`` leaf below it
- the nested forms of a runtime inside a container (kind, docker in docker, docker in a pod), where the outermost id is
  the container that the host knows; where that one is in no pod, a pod's container below it is kept aside as ``inner``.

The kubelet's systemd driver writes the pod's UID with ``_`` for ``-``
(kubernetes/pkg/kubelet/cm/cgroup_manager_linux.go). An attacker who is root in a container with a writable cgroup
file system can make further cgroups *below* its own, which is why the outermost id counts.
"""

from __future__ import annotations

import re

from vedette_detector.engine.detection import ContainerRef
from vedette_detector.text import safe_text

INITIAL_PID_NS = 0xEFFFFFFC
"""Inode of the initial pid namespace (PROC_PID_INIT_INO in include/linux/proc_ns.h), the same on every kernel."""

_ID = re.compile(rb"(?:\A|[-.:_])([0-9a-f]{64})(?:\.scope|\.slice|\.service)?\Z")
_POD = re.compile(
    rb"(?:\A|-)pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?::|\Z)"
)
_MONITORS = (b"crio-conmon-", b"libpod-conmon-", b"libpod-payload-conmon-")
_PREFIXES: tuple[tuple[bytes, str], ...] = (
    (b"cri-containerd", "containerd"),
    (b"nerdctl", "containerd"),
    (b"docker", "docker"),
    (b"crio", "cri-o"),
    (b"libpod", "podman"),
)
_PARENTS: dict[bytes, str] = {
    b"docker": "docker",
    b"libpod_parent": "podman",
    b"crio": "cri-o",
    b"containerd": "containerd",
    b"default": "containerd",  # containerd's namespace of nerdctl and ctr: /default/<id>
    b"k8s.io": "containerd",
    b"moby": "docker",
}


def parse_cgroup(path: bytes) -> ContainerRef | None:
    """Tell which container a cgroup path belongs to.

    Args:
        path: path below the hierarchy's root, as the kernel gives it.

    Returns:
        The container, or None where the path names none (host services, sessions, a pod's own cgroup, the
        monitor process of a container).
    """
    return _parse(path.split(b"/"), safe_text(path))


def _parse(parts: list[bytes], shown: str) -> ContainerRef | None:
    pod_uid = None
    parent = b""
    for place, part in enumerate(parts):
        pod = _POD.search(part)
        if pod is not None and pod_uid is None:
            pod_uid = pod.group(1).replace(b"_", b"-").decode("ascii")
        found = _ID.search(part)
        if found is not None:
            if part.startswith(_MONITORS):
                return None
            inner = _parse(parts[place + 1 :], shown) if pod_uid is None else None
            return ContainerRef(
                container_id=found.group(1).decode("ascii"),
                pod_uid=pod_uid,
                runtime=_runtime(part, parent, pod_uid is not None),
                cgroup_path=shown,
                inner=_of_a_pod(inner),
            )
        parent = part
    return None


def _of_a_pod(reference: ContainerRef | None) -> ContainerRef | None:
    """``reference``, or what is in it, if that is in a pod; a path has at most some dozen levels."""
    while reference is not None and reference.pod_uid is None:
        reference = reference.inner
    return reference


def namespaced_cgroup(path: bytes) -> ContainerRef:
    """The container of a process that has a pid namespace of its own in a cgroup whose path holds no 64-hex id."""
    parts = [part for part in path.split(b"/") if part]
    pod_uid = None
    for part in parts:
        pod = _POD.search(part)
        if pod is not None:
            pod_uid = pod.group(1).replace(b"_", b"-").decode("ascii")
    leaf = parts[-1] if parts else b"/"
    for suffix in (b".scope", b".slice", b".service"):
        leaf = leaf.removesuffix(suffix)
    return ContainerRef(safe_text(leaf), pod_uid, "kubernetes" if pod_uid else "unknown", safe_text(path))


def _runtime(part: bytes, parent: bytes, in_pod: bool) -> str:
    for prefix, name in _PREFIXES:
        if part.startswith((prefix + b"-", prefix + b":")):
            return name
    if b":cri-containerd:" in part:
        return "containerd"
    if parent in _PARENTS:
        return _PARENTS[parent]
    return "kubernetes" if in_pod else "unknown"
