"""What the API server would refuse in an object of ours, and what it would take and should not.

Not a schema of Kubernetes: the server has that. This finds the mistakes that a template can make, before they are in a
cluster or in Git.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vedette_operator.errors import Problem
from vedette_operator.syntax import (
    dns_label_problem,
    dns_name_problem,
    label_key_problem,
    label_value_problem,
    quantity_problem,
)

_CLUSTER_SCOPED = frozenset(
    ("Namespace", "ClusterRole", "ClusterRoleBinding", "PriorityClass", "CustomResourceDefinition")
)
_MAX_ANNOTATIONS = 256 << 10  # apimachinery: TotalAnnotationSizeLimitB
_MAX_DATA = 1 << 20  # ConfigMaps and Secrets
_WORKLOADS = ("DaemonSet", "StatefulSet", "Deployment")
_GENERATED_NAME_ROOM = 11
"""Characters that controllers append to a workload's name (``-`` and a hash of ten) where it becomes a label."""


def problems_of(content: Mapping[str, Any], namespace: str) -> list[Problem]:
    """Everything that is wrong with an object whose place is ``namespace``."""
    return [Problem(path, message) for path, message in _find(content, namespace)]


def _find(content: Mapping[str, Any], namespace: str) -> Iterator[tuple[str, str]]:
    for name in ("apiVersion", "kind", "metadata"):
        if not content.get(name):
            yield name, "is missing"
            return
    kind, metadata = str(content["kind"]), content["metadata"]
    check = dns_label_problem if kind in ("Namespace", "Service") else dns_name_problem
    if check(str(metadata.get("name", ""))):
        yield "metadata.name", check(str(metadata.get("name", "")))
    if kind in _CLUSTER_SCOPED:
        if "namespace" in metadata:
            yield "metadata.namespace", f"a {kind} has none"
    elif metadata.get("namespace") != namespace:
        yield "metadata.namespace", f"is {metadata.get('namespace')!r}, not {namespace!r}"
    if kind in _WORKLOADS and len(str(metadata.get("name"))) > 63 - _GENERATED_NAME_ROOM:
        yield "metadata.name", f"is too long for a {kind}, whose name becomes part of a label"
    yield from _metadata(metadata, "metadata")
    if kind in ("ConfigMap", "Secret"):
        yield from _data(content.get("data", {}))
    if kind in _WORKLOADS:
        spec = content.get("spec", {})
        template = spec.get("template", {})
        yield from _metadata(template.get("metadata", {}), "spec.template.metadata")
        labels = template.get("metadata", {}).get("labels", {})
        for key, value in spec.get("selector", {}).get("matchLabels", {}).items():
            if labels.get(key) != value:
                yield f"spec.selector.matchLabels.{key}", "the pods do not have this label"
        claims = [claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])]
        yield from _pod(template.get("spec", {}), claims, "spec.template.spec")


def _metadata(metadata: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    size = 0
    for field in ("labels", "annotations"):
        for key, value in metadata.get(field, {}).items():
            if label_key_problem(key):
                yield f"{path}.{field}", label_key_problem(key)
            if not isinstance(value, str):
                yield f"{path}.{field}.{key}", "is not text"
            elif field == "labels" and label_value_problem(value):
                yield f"{path}.{field}.{key}", label_value_problem(value)
            elif field == "annotations":
                size += len(key.encode()) + len(value.encode())
    if size > _MAX_ANNOTATIONS:
        yield f"{path}.annotations", f"have {size} bytes, at most {_MAX_ANNOTATIONS} are allowed"


def _data(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if not re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key):
            yield "data", f"{key!r} is not a key"
        if not isinstance(value, str):
            yield f"data.{key}", "is not text"
    size = sum(len(str(value).encode()) for value in data.values())
    if size > _MAX_DATA:
        yield "data", f"has {size} bytes, at most {_MAX_DATA} are allowed"


def _pod(spec: Mapping[str, Any], claims: list[str], path: str) -> Iterator[tuple[str, str]]:
    volumes = [volume["name"] for volume in spec.get("volumes", [])] + claims
    for name in volumes:
        if dns_label_problem(name):
            yield f"{path}.volumes", dns_label_problem(name)
    if len(volumes) != len(set(volumes)):
        yield f"{path}.volumes", "two have the same name"
    used: set[str] = set()
    containers = [*spec.get("initContainers", []), *spec.get("containers", [])]
    if not spec.get("containers"):
        yield f"{path}.containers", "is missing"
    for container in containers:
        here = f"{path}.containers[{container.get('name')}]"
        if not container.get("image"):
            yield f"{here}.image", "is missing"
        mounts = container.get("volumeMounts", [])
        used |= {mount["name"] for mount in mounts}
        for mount in mounts:
            if mount["name"] not in volumes:
                yield f"{here}.volumeMounts", f"there is no volume {mount['name']}"
        paths = [mount["mountPath"] for mount in mounts]
        if len(paths) != len(set(paths)):
            yield f"{here}.volumeMounts", "two have the same path"
        for field in ("requests", "limits"):
            for name, amount in container.get("resources", {}).get(field, {}).items():
                if quantity_problem(str(amount)):
                    yield f"{here}.resources.{field}.{name}", quantity_problem(str(amount))
    for name in sorted(set(volumes) - used):
        yield f"{path}.volumes", f"nothing mounts {name}"
