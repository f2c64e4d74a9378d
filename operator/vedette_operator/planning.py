"""What is to be done: a pure function of what is wanted and what is there.

The detector comes before the agents, because it takes what older agents send but not what newer ones do; when things
are taken away, the agents go first, so that what they still hold is delivered.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vedette_operator.drift import differences, strangers, surplus
from vedette_operator.rendering import Manifest, Object, digest
from vedette_operator.spec import GROUP, MANAGED_BY, VERSION

MANAGER = MANAGED_BY
"""Field manager of everything that the operator writes."""
HASH = f"{GROUP}/applied-hash"
"""Annotation of each object: digest of what was applied, by which drift is told from a change of what is wanted."""
PART_OF = "app.kubernetes.io/part-of"
MANAGED = "app.kubernetes.io/managed-by"
STATIC = ("ClusterRole", "ClusterRoleBinding", "Namespace")
"""Installed with the operator, which needs no right to hand out rights."""
REMOVAL = ("DaemonSet", "StatefulSet", "PersistentVolumeClaim")
"""What is removed first, one after the other; the rest has no order."""

Key = tuple[str, str]
"""Kind and name: all is in one namespace, or in none."""


@dataclass(frozen=True)
class Action:
    """One write.

    Attributes:
        verb: ``apply`` (server-side), ``patch`` (JSON patch `patch`) or ``delete``.
        content: the object; for ``patch`` and ``delete`` as it is, otherwise as wanted.
        why: ``Missing``, ``Changed``, ``Drifted``, ``NotWanted``, for logs and events.
        detail: which fields.
    """

    verb: Literal["apply", "patch", "delete"]
    content: Object
    why: str
    detail: tuple[str, ...] = ()
    patch: tuple[Object, ...] = ()

    @property
    def key(self) -> Key:
        """Which object it is."""
        return key_of(self.content)


@dataclass(frozen=True)
class Plan:
    """What to do now, in order.

    Attributes:
        actions: the writes.
        waiting: what is left for a later pass and why, in words.
        conflicts: objects of somebody else that have the names of ours.
    """

    actions: tuple[Action, ...] = ()
    waiting: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = field(default=())


def key_of(content: Mapping[str, Any]) -> Key:
    """Kind and name of an object."""
    return content["kind"], content["metadata"]["name"]


def index(objects: Iterable[Object]) -> dict[Key, Object]:
    """Objects by kind and name."""
    return {key_of(content): content for content in objects}


def label(content: Mapping[str, Any], name: str) -> str:
    """A label's value; empty when there is none."""
    return str((content["metadata"].get("labels") or {}).get(name, ""))


def owned(content: Object, owner: Mapping[str, Any]) -> Object:
    """A copy with the owner's reference, which lets the cluster collect it when the owner is gone, and its digest."""
    made = copy.deepcopy(content)
    made["metadata"]["ownerReferences"] = [
        {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]
    made["metadata"].setdefault("annotations", {})[HASH] = digest(content)[:16]
    return made


def wanted_objects(manifests: Sequence[Manifest], more: Sequence[Object], owner: Mapping[str, Any]) -> list[Object]:
    """All that the operator is to keep, in the order in which to apply it."""
    return [owned(c, owner) for c in (*more, *(m.content for m in manifests)) if c["kind"] not in STATIC]


def make_plan(wanted: Sequence[Object], found: Mapping[Key, Object]) -> Plan:
    """Bring ``found`` to ``wanted``.

    Args:
        wanted: as `wanted_objects` has it.
        found: everything there is of the names that are wanted, and everything with our labels.
    """
    actions: list[Action] = []
    waiting: list[str] = []
    conflicts: list[str] = []
    settled = detector_problem(wanted, found)
    for content in wanted:
        live = found.get(key_of(content))
        if live is not None and label(live, PART_OF) != "vedette":
            conflicts.append(f"{content['kind']} {content['metadata']['name']}")
            continue
        if live is not None and live["metadata"].get("deletionTimestamp"):
            waiting.append(f"{content['kind']} {content['metadata']['name']} is still being deleted")
            continue
        needed = _needed(content, live)
        if content["kind"] == "DaemonSet" and settled and any(a.why != "Drifted" for a in needed):
            waiting.append(f"the agents wait for the detector: {settled}")
            continue
        actions += needed
    keys = {key_of(content) for content in wanted}
    stale = [c for k, c in found.items() if k not in keys and label(c, MANAGED) == MANAGED_BY]
    actions += [Action("delete", c, "NotWanted") for c in stale if not c["metadata"].get("deletionTimestamp")]
    return Plan(tuple(actions), tuple(waiting), tuple(conflicts))


def _needed(wanted: Object, live: Object | None) -> list[Action]:
    if live is None:
        return [Action("apply", wanted, "Missing")]
    former = (live["metadata"].get("annotations") or {}).get(HASH)
    why = "Drifted" if former == wanted["metadata"]["annotations"][HASH] else "Changed"
    actions = []
    if patch := strangers(wanted, live, MANAGER):
        paths = tuple(step["path"] for step in patch if step["op"] == "remove")
        actions.append(Action("patch", live, "Drifted", paths, tuple(patch)))
    if found := [*differences(wanted, live), *surplus(wanted, live, MANAGER)]:
        actions.append(Action("apply", wanted, why, tuple(found)))
    return actions


def detector_problem(wanted: Sequence[Object], found: Mapping[Key, Object]) -> str:
    """Why the detector, if one is wanted, is not there yet in its wanted form; empty when it is."""
    for content in wanted:
        if content["kind"] == "StatefulSet":
            live = found.get(key_of(content))
            if live is None:
                return "it is being made"
            if differences(content, live):
                return "it is being changed"
            return rollout_problem(live)
    return ""


def rollout_problem(live: Object) -> str:
    """Why a StatefulSet is not ready in its newest form; empty when it is."""
    status, wanted = live.get("status") or {}, live["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return "its change has not been taken up yet"
    if status.get("updatedReplicas", 0) < wanted or status.get("updateRevision") != status.get("currentRevision"):
        return f"{status.get('updatedReplicas', 0)} of {wanted} pods are of the newest form"
    if status.get("readyReplicas", 0) < wanted:
        return f"{status.get('readyReplicas', 0)} of {wanted} pods are ready"
    return ""


def make_removal(found: Mapping[Key, Object], pods: Sequence[Object], *, volumes: bool) -> Plan:
    """Take away everything that the operator made, agents first, and nothing else.

    Args:
        found: everything with our labels.
        pods: pods of agents and detector.
        volumes: whether the detector's volume goes, too.
    """
    ours = [c for c in found.values() if label(c, MANAGED) == MANAGED_BY]
    if volumes:
        ours += [c for c in found.values() if c["kind"] == "PersistentVolumeClaim" and label(c, PART_OF) == "vedette"]
    for kind in REMOVAL:
        stage = [c for c in ours if c["kind"] == kind]
        component = {"DaemonSet": "agent", "StatefulSet": "detector"}.get(kind, "")
        left = [p for p in pods if component and label(p, "app.kubernetes.io/component") == component]
        if stage or (left and any(c["kind"] in REMOVAL for c in ours)):
            return _removed(stage, [f"pod {p['metadata']['name']} is still there" for p in left])
    return _removed([c for c in ours if c["kind"] not in REMOVAL], [])


def _removed(stage: Sequence[Object], left: Sequence[str]) -> Plan:
    going = [c for c in stage if c["metadata"].get("deletionTimestamp")]
    actions = tuple(Action("delete", c, "NotWanted") for c in stage if c not in going)
    waiting = [*left, *(f"{c['kind']} {c['metadata']['name']} is being deleted{_held(c)}" for c in going)]
    waiting += [f"{a.key[0]} {a.key[1]} is being deleted" for a in actions]
    return Plan(actions, tuple(waiting))


def _held(content: Object) -> str:
    finalizers = content["metadata"].get("finalizers") or []
    return f", held by {', '.join(finalizers)}" if finalizers else ""
