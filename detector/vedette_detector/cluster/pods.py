"""What is kept of a pod: the few fields that a finding shows, small, and safe to show.

Field names and defaults are those of the Kubernetes API
(kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1). Whoever may create a pod chooses nearly every
text in it: each passes through `vedette_detector.text.safe_text` and is bounded here, before it is kept. Pods of one
workload differ in little, so what the template determines is one shared object (`Template`), and short texts are
interned.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from weakref import WeakValueDictionary

from vedette_detector.text import safe_text

MAX_NAME = 253
"""Longest name of an object (kubernetes.io/docs/concepts/overview/working-with-objects/names)."""
MAX_TEXT = 512
MAX_CONTAINERS = 64
MAX_MOUNTS = 64
MAX_VOLUMES = 64
MAX_LABELS = 64
MAX_ANNOTATIONS = 16
MAX_ANNOTATION = 256
MAX_CAPABILITIES = 48
_EARLIER_IDS = 4
"""Ids of a container's earlier runs that are remembered: a finding may arrive after a restart."""

MIRROR = "kubernetes.io/config.mirror"
CONFIG_HASH = "kubernetes.io/config.hash"
"""On the mirror pod of a static pod: the UID that the kubelet uses, in cgroup paths too
(kubernetes/pkg/kubelet/pod/mirror_client.go and pkg/kubelet/types/pod_update.go)."""
_TOKEN_VOLUME = "kube-api-access-"  # noqa: S105 - the name of a volume, not a secret
_UNSHOWN_ANNOTATIONS = (
    # May hold a whole earlier object, secrets in its environment included.
    "kubectl.kubernetes.io/last-applied-configuration",
    # Different on each pod and of no use to a reader: they would keep templates from being shared.
    "cni.projectcalico.org/",
    "k8s.v1.cni.cncf.io/",
    "k8s.ovn.org/",
    "kubernetes.io/config.seen",
    "kubernetes.io/config.hash",
    "kubernetes.io/config.mirror",
)


class Kind(StrEnum):
    """What a container is within its pod."""

    CONTAINER = "container"
    INIT = "init"
    SIDECAR = "sidecar"
    """An init container with ``restartPolicy: Always``: it goes on running beside the others."""
    EPHEMERAL = "ephemeral"
    """Added to the running pod, as ``kubectl debug`` does."""
    SANDBOX = "sandbox"
    """The pause container, which holds the pod's namespaces and is in no list of the API."""


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """A controller: the owner reference with ``controller: true``."""

    kind: str
    name: str
    uid: str
    api_version: str


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container as its pod specifies it. `allow_privilege_escalation` is what is in effect."""

    name: str
    kind: Kind
    image: str
    privileged: bool
    allow_privilege_escalation: bool
    read_only_root: bool
    run_as_user: int | None
    run_as_non_root: bool
    seccomp: str
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    mounts: tuple[tuple[str, str], ...]
    """(volume, path in the container)."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Template:
    """What pods of one workload have in common."""

    service_account: str
    host_network: bool
    host_pid: bool
    host_ipc: bool
    share_processes: bool
    containers: tuple[ContainerSpec, ...]
    volumes: tuple[tuple[str, str | None], ...]
    """(name, path on the host or None)."""
    labels: tuple[tuple[str, str], ...]
    annotations: tuple[tuple[str, str], ...]
    runtime_class: str


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """What the kubelet last said of one container.

    Attributes:
        id: without the runtime's prefix; empty until the kubelet has reported it.
        earlier: ids of runs before, newest first.
        running: whether it ran when the kubelet looked.
    """

    name: str
    id: str
    image_id: str
    restarts: int
    running: bool
    finished: bool
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod.

    Attributes:
        mirrored: the kubelet's UID of the static pod that this is the mirror of; empty for other pods.
        runtime: prefix of the container ids: ``containerd``, ``cri-o``, ``docker``.
        token_suffix: random end of the name of the volume with the API token.
    """

    uid: str
    namespace: str
    name: str
    node: str
    created: str
    phase: str
    ip: str
    runtime: str
    mirrored: str
    token_suffix: str
    owner: ObjectRef | None
    template: Template
    statuses: tuple[ContainerStatus, ...]

    def spec(self, name: str) -> ContainerSpec | None:
        """The container of this name."""
        return next((c for c in self.template.containers if c.name == name), None)

    def status(self, name: str) -> ContainerStatus | None:
        """What the kubelet said of the container of this name."""
        return next((s for s in self.statuses if s.name == name), None)

    def volumes(self) -> list[tuple[str, str | None]]:
        """Volumes with their full names."""
        return [(self.full_volume(name), path) for name, path in self.template.volumes]

    def full_volume(self, name: str) -> str:
        """A volume's name as it is in the pod."""
        return name + self.token_suffix if name == _TOKEN_VOLUME else name

    def container_ids(self) -> Iterator[str]:
        """Every id known, those of earlier runs included."""
        for status in self.statuses:
            if status.id:
                yield status.id
            yield from status.earlier


_templates: WeakValueDictionary[Template, Template] = WeakValueDictionary()
_references: dict[ObjectRef, ObjectRef] = {}
_REFERENCES_KEPT = 50_000


def shared_reference(reference: ObjectRef) -> ObjectRef:
    """The one object for all equal references; the pods of a ReplicaSet name the same one."""
    if len(_references) > _REFERENCES_KEPT:
        _references.clear()
    return _references.setdefault(reference, reference)


def as_dict(value: Any) -> dict[str, Any]:
    """``value`` if it is an object, else an empty one: what is not of its type reads as absent."""
    return value if isinstance(value, dict) else {}


def as_dicts(value: Any, most: int) -> list[dict[str, Any]]:
    """The first ``most`` objects of a list."""
    return [v for v in value[:most] if isinstance(v, dict)] if isinstance(value, list) else []


def text(value: Any, limit: int = MAX_NAME) -> str:
    """A text made safe, bounded and interned; empty where it is none."""
    return sys.intern(safe_text(value, limit)) if isinstance(value, str) and value else ""


def pairs(value: Any, most: int, limit: int) -> tuple[tuple[str, str], ...]:
    """The first ``most`` entries of a map of texts, by name."""
    entries = sorted((k, v) for k, v in as_dict(value).items() if isinstance(v, str))
    return tuple((text(k, 317), text(v, limit)) for k, v in entries[:most])


def controller_of(metadata: Mapping[str, Any]) -> ObjectRef | None:
    """The owner reference that says ``controller: true``."""
    for owner in as_dicts(metadata.get("ownerReferences"), 64):
        if owner.get("controller") is True:
            return shared_reference(
                ObjectRef(
                    text(owner.get("kind"), 63),
                    text(owner.get("name")),
                    text(owner.get("uid"), 64),
                    text(owner.get("apiVersion"), 128),
                )
            )
    return None


def _security(pod: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    """A container's security context in effect: its own values come before the pod's.

    ``allowPrivilegeEscalation`` is true unless it is false, and always where the container is privileged or has
    CAP_SYS_ADMIN (kubernetes.io/docs/tasks/configure-pod-container/security-context).
    """
    own, common = as_dict(container.get("securityContext")), as_dict(pod.get("securityContext"))

    def either(name: str) -> Any:
        return own[name] if own.get(name) is not None else common.get(name)

    capabilities = as_dict(own.get("capabilities"))

    def names(which: str) -> tuple[str, ...]:
        given = capabilities.get(which)
        return tuple(
            text(c, 63) for c in (given[:MAX_CAPABILITIES] if isinstance(given, list) else []) if isinstance(c, str)
        )

    added, user = names("add"), either("runAsUser")
    privileged = own.get("privileged") is True
    all_powerful = privileged or any(c.upper().removeprefix("CAP_") in ("SYS_ADMIN", "ALL") for c in added)
    return {
        "privileged": privileged,
        "allow_privilege_escalation": all_powerful or own.get("allowPrivilegeEscalation") is not False,
        "read_only_root": own.get("readOnlyRootFilesystem") is True,
        "run_as_user": user if isinstance(user, int) and not isinstance(user, bool) else None,
        "run_as_non_root": either("runAsNonRoot") is True,
        "seccomp": text(as_dict(either("seccompProfile")).get("type"), 63),
        "added": added,
        "dropped": names("drop"),
    }


def _shortened(volume: str) -> str:
    return sys.intern(_TOKEN_VOLUME) if volume.startswith(_TOKEN_VOLUME) else volume


def _container(pod: Mapping[str, Any], container: Mapping[str, Any], kind: Kind) -> ContainerSpec:
    if kind is Kind.INIT and container.get("restartPolicy") == "Always":
        kind = Kind.SIDECAR
    return ContainerSpec(
        name=text(container.get("name"), 63),
        kind=kind,
        image=text(container.get("image"), MAX_TEXT),
        mounts=tuple(
            (_shortened(text(m.get("name"))), text(m.get("mountPath"), MAX_TEXT))
            for m in as_dicts(container.get("volumeMounts"), MAX_MOUNTS)
        ),
        **_security(pod, container),
    )


_LISTS = (("initContainers", Kind.INIT), ("containers", Kind.CONTAINER), ("ephemeralContainers", Kind.EPHEMERAL))
_STATUS_LISTS = ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")


def split_id(value: Any) -> tuple[str, str]:
    """(runtime, id) of ``containerd://4f1d…``; both empty where it is none."""
    runtime, mark, identifier = value.partition("://") if isinstance(value, str) else ("", "", "")
    # An id that the cgroup path could not hold is of no use, and is not kept.
    return (text(runtime, 63), safe_text(identifier, 128)) if mark else ("", "")


def _status(given: Mapping[str, Any], before: ContainerStatus | None) -> ContainerStatus:
    _, identifier = split_id(given.get("containerID"))
    states = as_dict(given.get("state"))
    last = as_dict(as_dict(given.get("lastState")).get("terminated"))
    earlier = [split_id(last.get("containerID"))[1]]
    if before is not None:
        earlier += [before.id, *before.earlier]
    restarts = given.get("restartCount")
    return ContainerStatus(
        name=text(given.get("name"), 63),
        id=identifier,
        image_id=text(given.get("imageID"), MAX_TEXT),
        restarts=restarts if isinstance(restarts, int) else 0,
        running=isinstance(states.get("running"), dict),
        finished=isinstance(states.get("terminated"), dict),
        earlier=tuple(dict.fromkeys(e for e in earlier if e and e != identifier))[:_EARLIER_IDS],
    )


def parse_pod(given: Mapping[str, Any], before: Pod | None = None) -> Pod:
    """Read a Pod object of the API. Pure but for what is shared; wrong types read as absent.

    Args:
        given: the object as JSON gives it.
        before: the same pod as it was known, whose earlier container ids are carried on.
    """
    metadata, spec, status = (as_dict(given.get(k)) for k in ("metadata", "spec", "status"))
    containers: list[ContainerSpec] = []
    for name, kind in _LISTS:
        containers += [_container(spec, c, kind) for c in as_dicts(spec.get(name), MAX_CONTAINERS)]
    suffix = ""
    volumes: list[tuple[str, str | None]] = []
    for volume in as_dicts(spec.get("volumes"), MAX_VOLUMES):
        name = text(volume.get("name"))
        if name.startswith(_TOKEN_VOLUME):
            suffix = name.removeprefix(_TOKEN_VOLUME)
        host = volume.get("hostPath")
        volumes.append((_shortened(name), text(as_dict(host).get("path"), MAX_TEXT) if host is not None else None))
    annotations = as_dict(metadata.get("annotations"))
    template = Template(
        service_account=text(spec.get("serviceAccountName")),
        host_network=spec.get("hostNetwork") is True,
        host_pid=spec.get("hostPID") is True,
        host_ipc=spec.get("hostIPC") is True,
        share_processes=spec.get("shareProcessNamespace") is True,
        containers=tuple(containers),
        volumes=tuple(volumes),
        labels=pairs(metadata.get("labels"), MAX_LABELS, 63),
        annotations=pairs(
            {k: v for k, v in annotations.items() if not k.startswith(_UNSHOWN_ANNOTATIONS)},
            MAX_ANNOTATIONS,
            MAX_ANNOTATION,
        ),
        runtime_class=text(spec.get("runtimeClassName")),
    )
    known = {s.name: s for s in before.statuses} if before is not None else {}
    given_statuses = [s for name in _STATUS_LISTS for s in as_dicts(status.get(name), MAX_CONTAINERS)]
    mirrored = annotations.get(CONFIG_HASH) if MIRROR in annotations else None
    return Pod(
        uid=text(metadata.get("uid"), 64),
        namespace=text(metadata.get("namespace")),
        name=safe_text(str(metadata.get("name") or ""), MAX_NAME),
        node=text(spec.get("nodeName")),
        created=text(metadata.get("creationTimestamp"), 32),
        phase=text(status.get("phase"), 32),
        ip=safe_text(str(status.get("podIP") or ""), 64),
        runtime=next((r for s in given_statuses if (r := split_id(s.get("containerID"))[0])), ""),
        mirrored=text(mirrored, 64),
        token_suffix=suffix,
        owner=controller_of(metadata),
        template=_templates.setdefault(template, template),
        statuses=tuple(_status(s, known.get(text(s.get("name"), 63))) for s in given_statuses),
    )
